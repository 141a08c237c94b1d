"""Read and write files at local paths, and at http(s), s3, gs and hf URLs through fsspec."""
