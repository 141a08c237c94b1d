"""Arguments shared by several evaluation commands, and the dataset table that they select."""

from __future__ import annotations

import argparse

from osm.config import find_config
from osm.datasets.table import DatasetTable


def add_predictions(parser: argparse.ArgumentParser, files: str = "the predictions") -> None:
    """Add the positional arguments `out_dir` and `n`, which select the files written by generate_pred.py.

    The parsed value of `n` is stored as `parts`.
    """
    parser.add_argument("out_dir", help=f"folder of {files}, or its URL")
    parser.add_argument("parts", metavar="n", type=int, help="number of parts that generate_pred.py was run with")


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--benchmark`, whose value is passed to `dataset_table` as its first argument."""
    parser.add_argument(
        "--benchmark", default="benchmark", help="YAML file with the paths of the datasets, or its name in configs/"
    )


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--datasets`, whose value is passed to `dataset_table` as its second argument."""
    parser.add_argument("--datasets", help="YAML file with your own datasets")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--json FILE`, with which a command also writes its metrics to a JSON file."""
    parser.add_argument("--json", help="also write the metrics to this JSON file, or to a URL on s3:// or gs://")


def dataset_table(benchmark: str | None = "benchmark", datasets: str | None = None) -> DatasetTable:
    """Build the dataset table for a command.

    Args:
        benchmark: YAML file with the paths of the datasets, or its name in `configs/`. None selects the built-in table.
        datasets: YAML file with the user's own datasets, which are added to the table. None adds no datasets.
    """
    table = DatasetTable()
    if benchmark is not None:
        table = table.with_yaml(find_config(benchmark))
    return table if datasets is None else table.with_yaml(datasets)
