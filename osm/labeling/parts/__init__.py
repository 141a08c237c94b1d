"""Labels as Parquet files with one row for each mask, written part by part by any number of machines."""
