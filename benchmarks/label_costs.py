#!/usr/bin/env python3
"""Measures the time that each step of `osm label --to parts` takes for an image on this machine.

    python3 benchmarks/label_costs.py osm_small DATA/coco_mini/val --output costs.json

DATA is a folder with `panoptic.json`, `panoptic/` and `images/`. Each image has `--masks` masks. Every step is timed
separately: reading the file, decoding it, reading its masks, encoding it with the tower, naming the masks with the
bridge and the LLM, and writing a part. The JSON document has the median and the mean of each step in milliseconds per
image, and the number of bytes that are read and written. `benchmarks/cluster_simulation.py` reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from label_series import copies  # noqa: E402

from osm.labeling.formats.label_format import LabelShape  # noqa: E402
from osm.labeling.label_rules import KeepRules  # noqa: E402
from osm.labeling.label_tasks import find_tasks  # noqa: E402
from osm.labeling.labeler import ImageLabeler  # noqa: E402
from osm.labeling.naming import NamingRequest  # noqa: E402
from osm.labeling.parts.part_rows import part_bytes  # noqa: E402
from osm.recognition.recognizer import load_recognizer  # noqa: E402

WARM_UP = 3  # pictures that are not counted


class Stopwatch:
    """Milliseconds of each step."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def time(self, step: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        self.found.setdefault(step, []).append(1000 * (time.perf_counter() - started))
        return result

    def summary(self) -> dict[str, dict[str, float]]:
        counted = {step: values[WARM_UP:] for step, values in self.found.items()}
        return {
            step: {"median": round(statistics.median(values), 3), "mean": round(statistics.mean(values), 3)}
            for step, values in counted.items()
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--masks", type=int, default=10, help="masks of each picture [%(default)s]")
    parser.add_argument("--name", help="the model's name in the JSON document [CHECKPOINT]")
    parser.add_argument("--output", type=Path, help="file for the JSON document")
    args = parser.parse_args()
    recognizer = load_recognizer(args.checkpoint, device="cpu")
    watch = Stopwatch()
    image_bytes, records = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copies(args.data.resolve(), folder / "set", args.pictures + WARM_UP, args.masks)
        found = find_tasks(str(folder / "set" / "images"), str(folder / "set" / "masks.json"))
        labeler = ImageLabeler(recognizer, NamingRequest(top_k=1), KeepRules(), found.reader)
        reader = labeler.reader
        assert reader is not None
        for task in found.tasks:
            source = task.source
            assert source is not None
            data = watch.time("read", lambda task=task: Path(task.image.location).read_bytes())
            image_bytes.append(len(data))
            photo = watch.time("decode", lambda task=task, data=data: task.image.photo(None, data))
            shapes = watch.time("masks", lambda s=source, size=photo.size: list(reader.shapes(s, size)))
            masks = [dict(shape.rle) for shape in shapes if isinstance(shape, LabelShape)]
            watch.time("tower", lambda photo=photo: recognizer.set_image(photo))
            watch.time("names", lambda masks=masks: labeler.request.run(recognizer, masks))
            records.append(watch.time("picture", lambda task=task, data=data: labeler.label(task, data)))
        part_bytes(records[:WARM_UP])  # imports pyarrow
        started = time.perf_counter()
        part = part_bytes(records[WARM_UP:])
        write_ms = 1000 * (time.perf_counter() - started) / args.pictures
    document = {
        "model": args.name or args.checkpoint,
        "pictures": args.pictures,
        "masks": args.masks,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)),
        "ms": {**watch.summary(), "write": {"median": round(write_ms, 3), "mean": round(write_ms, 3)}},
        "image_bytes": round(statistics.mean(image_bytes)),
        "row_bytes": round(len(part) / args.pictures / args.masks),
    }
    text = json.dumps(document, indent=1)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
