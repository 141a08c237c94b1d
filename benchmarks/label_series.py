#!/usr/bin/env python3
"""Measures a long run of `osm label`: its speed compared with `generate_pred.py`, its memory, and the effect of kills.

    python3 benchmarks/label_series.py CHECKPOINT DATA/coco_mini/val --pictures 2000 --output label.json

DATA is a folder with `panoptic.json`, `panoptic/` and `images/`. Its photos are copied until there are enough images,
each with `--masks` masks: those of the photo, and shifted copies of them if the photo has fewer. Both commands name the
same masks in the mode `any`. Then `osm label` runs again, is killed after a third and after two thirds of the images,
and must write the same files, byte by byte. Prints one JSON document last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from osm.io.segmentation import encode_rle  # noqa: E402
from osm.labeling.formats import FORMATS  # noqa: E402
from osm.labeling.formats.label_format import LabelShape  # noqa: E402
from osm.labeling.label_tasks import find_tasks  # noqa: E402

FORMS = ("coco", "yolo", "csv", "cvat", "labelme")
_POLL = 0.1  # seconds between two readings of the memory


def masks_of(shapes: list[LabelShape], count: int) -> list[LabelShape]:
    """Return so many masks of a photo: its own, and shifted copies of them."""
    found = shapes[:count]
    for k in range(count - len(found)):
        mask = np.roll(shapes[k % len(shapes)].mask, 7 * (k + 1), axis=1)
        found.append(LabelShape(encode_rle(mask), label=shapes[k % len(shapes)].label))
    return found


def copies(data: Path, folder: Path, pictures: int, masks: int) -> int:
    """Write the pictures and their masks as COCO instances, and a dataset table. Return the number of masks."""
    reader = FORMATS.get("coco_panoptic")
    photos = []
    for task in find_tasks(str(data / "images"), str(data / "panoptic.json")).tasks:
        assert task.source is not None
        size = task.image.photo(None).size
        shapes = [one for one in reader.shapes(task.source, size) if isinstance(one, LabelShape)]
        if shapes:
            photos.append((Path(task.image.location), size, masks_of(shapes, masks)))
    names = sorted({shape.label for _, _, shapes in photos for shape in shapes})
    ids = {name: number for number, name in enumerate(names, 1)}
    (folder / "images").mkdir(parents=True)
    images, rows = [], []
    for number in range(pictures):
        photo, size, shapes = photos[number % len(photos)]
        name = f"{number:06d}{photo.suffix}"
        (folder / "images" / name).write_bytes(photo.read_bytes())
        images.append({"id": number + 1, "file_name": name, "width": size[0], "height": size[1]})
        for shape in shapes:
            place = {"id": len(rows) + 1, "image_id": number + 1, "category_id": ids[shape.label]}
            rows.append({**place, "segmentation": shape.rle, "bbox": shape.bounds, "area": shape.area, "iscrowd": 0})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    document = {"images": images, "annotations": rows, "categories": categories}
    (folder / "masks.json").write_text(json.dumps(document))
    row = {"form": "coco_instances", "title": "copies", "image_dir": str(folder / "images")}
    row["json_file"] = str(folder / "masks.json")
    (folder / "sets.yaml").write_text(yaml.safe_dump({"datasets": {"copies": row}}))
    return len(rows)


def run(words: list[str], until: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Run a command of `osm`, and return its seconds and its peak memory. `until` says when it is killed."""
    started = time.monotonic()
    command = [sys.executable, "-m", "osm", *words]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_kib(process.pid))
            if until is not None and until():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return {"killed": True}
            time.sleep(_POLL)
        said, _ = process.communicate()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}\n{said}{errors.read()}")
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": peak // 1024, "said": said.split(": ")[0]}


def peak_kib(pid: int) -> int:
    """Return the largest memory that a process has had so far, or 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return max((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), default=0)


def digest(out: Path) -> str:
    """Return a hash of all files that a user gets."""
    found = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file() and ".osm_label" not in path.parts:
            found.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--masks", type=int, default=10, help="masks of each picture [%(default)s]")
    parser.add_argument("--name", help="the model's name in the JSON document [CHECKPOINT]")
    parser.add_argument("--output", type=Path, help="file for the JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = copies(args.data.resolve(), folder / "set", args.pictures, args.masks)
        print(f"{args.pictures} pictures, {count} masks", file=sys.stderr, flush=True)
        model = ["--checkpoint", args.checkpoint, "--device", "cpu"]
        words = ["label", str(folder / "set" / "images"), "", "--masks", str(folder / "set" / "masks.json"), *model]
        words += ["--to", ",".join(FORMS)]
        table = ["--datasets", str(folder / "set" / "sets.yaml"), "--sets", "copies", "--modes", "any"]
        predicted = run(["generate", "0", "1", args.checkpoint, str(folder / "predictions"), *table, "--device", "cpu"])
        print("generate", predicted, file=sys.stderr, flush=True)
        whole = run([*words[:2], str(folder / "whole"), *words[3:]])
        print("label", whole, file=sys.stderr, flush=True)
        out = folder / "killed"
        journal = out / ".osm_label" / "images_0.jsonl"
        kills = []
        for part in (1, 2):

            def reached(part: int = part) -> bool:
                return journal.is_file() and journal.read_bytes().count(b"\n") >= part * args.pictures // 3

            run([*words[:2], str(out), *words[3:]], reached)
            kills.append(journal.read_bytes().count(b"\n"))
            print(f"killed after {kills[-1]} pictures", file=sys.stderr, flush=True)
        resumed = run([*words[:2], str(out), *words[3:]])
        document = {
            "model": args.name or args.checkpoint,
            "pictures": args.pictures,
            "masks": count,
            "formats": FORMS,
            "cores": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
            "generate": {**predicted, "masks_per_second": round(count / predicted["seconds"], 2)},
            "label": {**whole, "masks_per_second": round(count / whole["seconds"], 2)},
            "killed_after_pictures": kills,
            "resumed": resumed,
            "byte_identical": digest(out) == digest(folder / "whole"),
        }
    text = json.dumps(document, indent=1)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    print(text)
    return 0 if document["byte_identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
