"""Scores predictions: `python3 test/evaluate_pred.py out_dir n` (`--help` for more)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The script also runs from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from osm.evaluation.evaluate_cli import evaluate_main

    sys.exit(evaluate_main())
