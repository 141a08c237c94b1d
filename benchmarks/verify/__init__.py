"""An independent recomputation of the metrics, without the project's own code for metrics."""
