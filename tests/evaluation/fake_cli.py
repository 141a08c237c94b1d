"""`generate_pred.py` with a namer that needs no model, and takes PAUSE seconds an image."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from six_sets import AreaNamer

from osm.evaluation.predict.generate_cli import generate_main


class Slow(AreaNamer):
    def name_image(self, *arguments: Any) -> Any:
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return super().name_image(*arguments)


if __name__ == "__main__":
    if os.path.basename(sys.argv[1]) in ("generate_pred.py", "evaluate_pred.py"):  # as an interpreter of scripts
        script = os.path.basename(sys.argv.pop(1))
        if script == "evaluate_pred.py":
            from osm.evaluation.evaluate_cli import evaluate_main

            sys.exit(evaluate_main(sys.argv[1:]))
        # One write, because the parts share a pipe: if PYTHONUNBUFFERED is set, `print` writes the newline separately.
        sys.stderr.write(f"part {sys.argv[1]} sees {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        if sys.argv[1] == os.environ.get("FAILING"):
            sys.exit(3)
    sys.exit(generate_main(sys.argv[1:], lambda checkpoint, **options: Slow()))
