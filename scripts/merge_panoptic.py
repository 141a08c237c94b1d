#!/usr/bin/env python3
"""Merges folders in COCO panoptic format into one folder, with links to their files.

    python3 scripts/merge_panoptic.py OUT FOLDER FOLDER...

A folder contains images/, panoptic/ and panoptic.json. The ids of the images are renumbered. The categories are the
union of the folders' categories, which must have the same ids in all folders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from osm.errors import OsmError, run_command  # noqa: E402
from osm.files import read_json, write_atomically  # noqa: E402


def merge_sets(folders: Sequence[Path], out: Path) -> None:
    """Merge folders in COCO panoptic format into the folder `out`.

    Raises:
        OsmError: a folder is not in this format, two files have the same name, or two categories have the same id.
    """
    images: list[Any] = []
    annotations: list[Any] = []
    categories: dict[int, Any] = {}
    for kind in ("images", "panoptic"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for folder in folders:
        document, _ = read_json(folder / "panoptic.json", "panoptic.json")
        for row in document["categories"]:
            if categories.setdefault(row["id"], row)["name"] != row["name"]:
                both = f"{categories[row['id']]['name']!r} and {row['name']!r}"
                raise OsmError(f"{folder}: the category id {row['id']} stands for {both}")
        segments = {row["image_id"]: row for row in document["annotations"]}
        for image in document["images"]:
            number, row = len(images), segments[image["id"]]
            size = {"height": image["height"], "width": image["width"]}
            images.append({"id": number, "file_name": image["file_name"], **size})
            annotations.append({**row, "image_id": number})
            for kind, name in (("images", image["file_name"]), ("panoptic", row["file_name"])):
                link, target = out / kind / name, (folder / kind / name).resolve()
                if link.is_symlink() and link.resolve() != target:
                    raise OsmError(f"{folder}: the name {name} also occurs in {link.resolve().parent}")
                if not link.is_symlink():
                    link.symlink_to(target)
    merged = {"images": images, "annotations": annotations, "categories": list(categories.values())}
    write_atomically(out / "panoptic.json", [json.dumps(merged)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    return run_command(merge_sets, args.folders, args.out)


if __name__ == "__main__":
    sys.exit(main())
