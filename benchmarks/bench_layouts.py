#!/usr/bin/env python3
"""Writes the masks of a COCO panoptic folder in the layouts of the benchmarks that `osm bench` runs.

    python3 benchmarks/bench_layouts.py osprey_lvis DATA/coco_mini/val layouts/osprey_lvis
    python3 benchmarks/bench_layouts.py osprey_paco DATA/coco_mini/val layouts/osprey_paco
    python3 benchmarks/bench_layouts.py dlc DATA/coco_mini/val layouts/dlc
    python3 benchmarks/bench_layouts.py coco DATA/coco_mini/val layouts/coco
    python3 benchmarks/bench_layouts.py lvis DATA/coco_mini/val layouts/lvis
    python3 benchmarks/bench_layouts.py ade20k DATA/coco_panoptic/val layouts/ade20k
    python3 benchmarks/bench_layouts.py cityscapes DATA/camvid/val layouts/cityscapes

DATA has `panoptic.json`, `panoptic/` and `images/`. A class that the target dataset does not have by name is left out,
and is counted. The values on such a layout are those of the given photos, not of the dataset whose layout it is. With
`--most N`, only the first N images are written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from osm.datasets.table import DatasetTable  # noqa: E402
from osm.errors import run_command  # noqa: E402
from osm.evaluation.bench import BENCHES  # noqa: E402
from osm.evaluation.bench.dlc import CLASS_NAMES  # noqa: E402
from osm.files import read_json  # noqa: E402
from osm.io.images import read_panoptic  # noqa: E402
from osm.io.segmentation import encode_rle, rle_box  # noqa: E402


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(target)


class PanopticFolder:
    """A folder with `panoptic.json`, `panoptic/` and `images/`."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder = folder.resolve()
        self.document, _ = read_json(folder / "panoptic.json", "data")
        self.document["images"] = self.document["images"][:most]
        kept = {image["id"] for image in self.document["images"]}
        self.document["annotations"] = [row for row in self.document["annotations"] if row["image_id"] in kept]
        self.names = {row["id"]: row["name"] for row in self.document["categories"]}
        self.things = {row["id"] for row in self.document["categories"] if row.get("isthing")}
        self.entries = {row["image_id"]: row for row in self.document["annotations"]}

    def link_images(self, out: Path) -> None:
        for image in self.document["images"]:
            link(out / image["file_name"], self.folder / "images" / image["file_name"])

    def masks(self, image: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each non-crowd segment of an image, together with its RLE."""
        entry = self.entries[image["id"]]
        ids_HW = read_panoptic(self.folder / "panoptic" / entry["file_name"])
        for segment in entry["segments_info"]:
            if not segment.get("iscrowd"):
                yield segment, encode_rle(ids_HW == segment["id"])


def osprey(bench: str) -> Callable[[PanopticFolder, Path], int]:
    """Return the function that writes the layout of Osprey's LVIS or PACO. No mask is a part of an object."""

    def write_layout(source: PanopticFolder, out: Path) -> int:
        source.link_images(out)
        listed = []
        for image in source.document["images"]:
            masks = list(source.masks(image))
            listed.append(
                {
                    **{key: image[key] for key in ("file_name", "height", "width")},
                    "categories": [source.names[segment["category_id"]] for segment, _ in masks],
                    "annotations": [{"segmentation": rle} for _, rle in masks],
                }
            )
        write(out / BENCHES.get(bench).file, listed)
        return sum(len(one["categories"]) for one in listed)

    return write_layout


def dlc(source: PanopticFolder, out: Path) -> int:
    """Write all masks as `annotations.json`, and their names by annotation id as `class_names.json`."""
    source.link_images(out)
    rows = instances(source, set(source.names))
    write_instances(out / BENCHES.get("dlc_names").file, source.document["images"], rows, source.document["categories"])
    names = {str(number): source.names[row["category_id"]] for number, row in enumerate(rows, 1)}
    write(out / CLASS_NAMES, names)
    return len(rows)


def coco(source: PanopticFolder, out: Path) -> int:
    """Write the panoptic json and PNGs, and the things as `instances_val2017.json`."""
    source.link_images(out / "val2017")
    link(out / "panoptic_val2017", source.folder / "panoptic")
    write(out / "annotations" / "panoptic_val2017.json", source.document)
    rows = instances(source, source.things)
    categories = [row for row in source.document["categories"] if row["id"] in source.things]
    write_instances(out / "annotations" / "instances_val2017.json", source.document["images"], rows, categories)
    return len(rows)


def lvis(source: PanopticFolder, out: Path) -> int:
    """Write the things that LVIS has. In each image, its other COCO classes are known to be absent."""
    classes = same_names(source, "lvis")
    source.link_images(out / "val2017")
    known = {classes[one] for one in source.things if one in classes}
    images, rows = [], []
    for image in source.document["images"]:
        found = [
            instance(image, rle, classes[segment["category_id"]])
            for segment, rle in source.masks(image)
            if segment["category_id"] in source.things and segment["category_id"] in classes
        ]
        rows += found
        absent = sorted(known - {row["category_id"] for row in found})
        url = f"http://images.cocodataset.org/val2017/{image['file_name']}"
        more = {"coco_url": url, "neg_category_ids": absent, "not_exhaustive_category_ids": []}
        images.append({key: image[key] for key in ("id", "height", "width")} | more)
    labels = DatasetTable()["lvis"].label_set.classes
    categories = [{"id": one, "name": labels[one].target} for one in sorted(labels)]
    write_instances(out / "lvis_v1_val.json", images, rows, categories)
    return len(rows)


def as_they_are(number: int, image: str, mask: str) -> tuple[str, str, str]:
    """Return an image's place, its name in the json, and the name of its PNG."""
    return image, image, mask


def of_cityscapes(number: int, image: str, mask: str) -> tuple[str, str, str]:
    frame = f"photos_000000_{number:06}"
    place = f"photos/{frame}_leftImg8bit.png"
    return place, f"{frame}_gtFine_leftImg8bit.png", f"{frame}_gtFine_panoptic.png"


def panoptic(
    dataset: str, named: Callable[[int, str, str], tuple[str, str, str]] = as_they_are
) -> Callable[[PanopticFolder, Path], int]:
    """Return the function that writes the layout of a panoptic dataset, with the classes of the same names."""

    def write_layout(source: PanopticFolder, out: Path) -> int:
        places = BENCHES.get(f"true_masks_{dataset}").places
        classes, labels = same_names(source, dataset), DatasetTable()[dataset].label_set.classes
        images, rows = [], []
        for number, image in enumerate(source.document["images"]):
            entry = source.entries[image["id"]]
            place, image_name, mask_name = named(number, image["file_name"], entry["file_name"])
            link(out / places["image_dir"] / place, source.folder / "images" / image["file_name"])
            link(out / places["mask_dir"] / mask_name, source.folder / "panoptic" / entry["file_name"])
            kept = [one for one in entry["segments_info"] if one["category_id"] in classes]
            segments = [{**one, "category_id": classes[one["category_id"]]} for one in kept]
            images.append({**image, "file_name": image_name})
            rows.append({**entry, "file_name": mask_name, "segments_info": segments})
        categories = [{"id": i, "name": labels[i].target, "isthing": int(labels[i].isthing)} for i in sorted(labels)]
        document = {"images": images, "annotations": rows, "categories": categories}
        write(out / places["json_file"], document)
        return sum(len(row["segments_info"]) for row in rows)

    return write_layout


def same_names(source: PanopticFolder, dataset: str) -> dict[int, int]:
    """Return the class of a dataset with the same name, for each class of the source that has one."""
    owners: dict[str, int] = {}
    for label in DatasetTable()[dataset].label_set.classes.values():
        for name in label.names:
            owners.setdefault(name, label.id)
    found = {one: owners[name.lower()] for one, name in source.names.items() if name.lower() in owners}
    missing = [name for one, name in source.names.items() if one not in found]
    print(f"{len(missing)} of {len(source.names)} classes are not in {dataset}: {', '.join(missing) or 'none'}")
    return found


def instances(source: PanopticFolder, classes: set[int]) -> list[dict[str, Any]]:
    """Return the masks of the given classes in all images as COCO annotations, without ids."""
    return [
        instance(image, rle, segment["category_id"])
        for image in source.document["images"]
        for segment, rle in source.masks(image)
        if segment["category_id"] in classes
    ]


def instance(image: Mapping[str, Any], rle: dict[str, Any], category_id: int) -> dict[str, Any]:
    box = rle_box(rle)
    return {
        "image_id": image["id"],
        "category_id": category_id,
        "segmentation": rle,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def write_instances(path: Path, images: list[Any], rows: list[dict[str, Any]], categories: list[Any]) -> None:
    numbered = [{"id": number, **row} for number, row in enumerate(rows, 1)]
    write(path, {"images": images, "annotations": numbered, "categories": categories})


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


LAYOUTS: dict[str, Callable[[PanopticFolder, Path], int]] = {
    "osprey_lvis": osprey("osprey_lvis"),
    "osprey_paco": osprey("osprey_paco"),
    "dlc": dlc,
    "coco": coco,
    "lvis": lvis,
    "ade20k": panoptic("ade20k"),
    "cityscapes": panoptic("cityscapes", of_cityscapes),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--most", type=int, metavar="N", help="write only the first N images [all]")
    args = parser.parse_args()
    if args.most is not None and args.most < 1:
        parser.error(f"--most {args.most} is less than 1")
    return run_command(write_masks, args)


def write_masks(args: argparse.Namespace) -> None:
    source = PanopticFolder(args.data, args.most)
    masks = LAYOUTS[args.layout](source, args.out)
    print(f"{len(source.document['images'])} images, {masks} masks: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
