#!/usr/bin/env python3
"""Measures how much accuracy `osm finetune` gains on a few photos, and how long it takes.

    python3 benchmarks/finetune.py OUT FOLDER [FOLDER...] [--photos 60]

A folder contains images/, panoptic/ and panoptic.json (COCO panoptic format). The photos of the first folder, followed
by as many of the next folders as are needed, are exported in COCO instance format (RLE masks), as a labeling tool does.
Then `osm finetune` runs on the export. Prints its summary, and one JSON document last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from osm.io.segmentation import encode_rle, rle_box  # noqa: E402


def export(folders: Sequence[Path], photos: int, out: Path) -> tuple[Path, list[int]]:
    """Write `out/instances.json` and links to the photos. Returns the file and the number of photos of each folder."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[int, Any] = {}
    counts = []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for folder in folders:
        document = json.loads((folder / "panoptic.json").read_text())
        categories |= {row["id"]: row for row in document["categories"]}
        segments = {row["image_id"]: row for row in document["annotations"]}
        chosen = document["images"][: photos - len(images)]
        counts.append(len(chosen))
        for image in chosen:
            row = segments[image["id"]]
            colors_HW3 = np.asarray(Image.open(folder / "panoptic" / row["file_name"]).convert("RGB")).astype(np.uint32)
            ids_HW = colors_HW3 @ np.array([1, 256, 65536], np.uint32)
            number = len(images) + 1
            images.append({**image, "id": number})
            link = out / "images" / image["file_name"]
            if not link.exists():
                link.symlink_to((folder / "images" / image["file_name"]).resolve())
            for segment in row["segments_info"]:
                mask_HW = ids_HW == segment["id"]
                rle = encode_rle(mask_HW)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": segment["category_id"],
                        "segmentation": rle,
                        "area": int(mask_HW.sum()),
                        "bbox": rle_box(rle),
                        "iscrowd": 0,
                    }
                )
    path = out / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories.values())}))
    return path, counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--photos", type=int, default=60, help="number of photos [%(default)s]")
    args = parser.parse_args()
    if args.out.exists():
        shutil.rmtree(args.out)
    path, counts = export(args.folders, args.photos, args.out / "export")
    command = [sys.executable, "-m", "osm", "finetune", str(path), str(args.out / "run")]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment)
    minutes = (time.monotonic() - started) / 60
    compared = json.loads((args.out / "run" / "comparison.json").read_text())
    stages = json.loads((args.out / "run" / "stages.json").read_text())
    found = {"photos": counts, "minutes": round(minutes, 2), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    own = json.loads((args.out / "run" / "after.json").read_text())
    print(json.dumps({**found, "stages": stages, "comparison": compared["sets"], "own": own}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
