#!/usr/bin/env python3
"""Writes the masks of a COCO panoptic json as a list in Osprey's layout, for `osm bench osprey_lvis`.

    python3 benchmarks/osprey_layout.py DATA/coco_mini/val osprey

DATA has `panoptic.json`, `panoptic/` and `images/`. OUT gets `lvis_val_1k_category.json`, and links to the images. The
values on such a list are those of the given photos, not of Osprey's 1,000 images.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from osm.evaluation.bench.osprey import OspreyLvis  # noqa: E402
from osm.labeling.formats import FORMATS  # noqa: E402
from osm.labeling.formats.label_format import LabelShape  # noqa: E402
from osm.labeling.label_tasks import find_tasks  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    reader = FORMATS.get("coco_panoptic")
    args.out.mkdir(parents=True, exist_ok=True)
    listed = []
    for task in find_tasks(str(args.data / "images"), str(args.data / "panoptic.json")).tasks:
        assert task.source is not None
        size = task.image.photo(None).size
        shapes = [one for one in reader.shapes(task.source, size) if isinstance(one, LabelShape)]
        link = args.out / Path(task.image.location).name
        if not link.exists():
            link.symlink_to(Path(task.image.location).resolve())
        listed.append(
            {
                "file_name": link.name,
                "width": size[0],
                "height": size[1],
                "categories": [shape.label for shape in shapes],
                "annotations": [{"segmentation": shape.rle} for shape in shapes],
            }
        )
    (args.out / OspreyLvis.file).write_text(json.dumps(listed))
    print(f"{len(listed)} images, {sum(len(one['categories']) for one in listed)} masks: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
