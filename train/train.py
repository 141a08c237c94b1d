#!/usr/bin/env python3
"""Trains an OSM model: by plain python, or under torchrun. `--help` lists the flags; docs/training.md explains them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from osm.training.train_cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
