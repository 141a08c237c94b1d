"""Files wherever they lie: local paths, and http(s), s3, gs and hf through fsspec."""
