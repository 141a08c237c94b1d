"""Names the masks of the val sets: `python3 test/generate_pred.py i n ckpt out_dir` (`--help` for more)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The script also runs from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from osm.evaluation.predict.generate_cli import generate_main

    sys.exit(generate_main())
