#!/usr/bin/env python3
"""Measures how well each format of `osm label` preserves real masks, as read by `osm` and by other programs.

    python3 -m venv readers
    readers/bin/pip install supervision labelformat label-studio-sdk labelme pycocotools opencv-python-headless
    python3 benchmarks/label_formats.py data/val --readers readers/bin/python --output label_formats.json

DATA is a folder with `panoptic.json`, `panoptic/` and `images/`. Its masks are written in every format with their own
labels as names. They are read by `osm`, and by other programs in their own environment. Then they pass through ten
random pairs of formats. A mask is compared with the mask of its image with the same name and the highest IoU. `simple`
masks have one part, no hole, and at least 400 pixels.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

PLACES = {
    "coco": "labels.json",
    "coco_panoptic": "panoptic.json",
    "coco_polygons": "labels_polygons.json",
    "cvat": "cvat.xml",
    "label_studio": "label_studio.json",
    "labelme": "labelme",
    "xanylabeling": "xanylabeling",
    "yolo": "yolo",
}
PAIRS = random.Random(22).sample(list(permutations(PLACES, 2)), 10)
Found = dict[str, list[tuple[str, Any]]]  # image -> (name, mask) of each object

# What follows up to `READERS` runs without this project, in the environment of the other programs.


def read_pycocotools(folder: Path, name: str, images: Path) -> Found:
    from pycocotools.coco import COCO

    coco = COCO(str(folder / PLACES[name]))
    return {
        Path(image["file_name"]).stem: [
            (coco.cats[row["category_id"]]["name"], coco.annToMask(row).astype(bool))
            for row in coco.imgToAnns[image["id"]]
        ]
        for image in coco.imgs.values()
    }


def read_supervision(folder: Path, name: str, images: Path) -> Found:
    import supervision

    kind = supervision.DetectionDataset
    place = folder / PLACES[name]
    if name == "yolo":
        read = kind.from_yolo(str(images), str(place / "labels"), str(place / "data.yaml"), force_masks=True)
    elif name == "labelme":
        read = kind.from_labelme(str(images), str(place), force_masks=True)
    else:
        read = kind.from_coco(str(images), str(place), force_masks=True)
    found: Found = {}
    for path, _, detections in read:
        masks = [] if detections.mask is None else list(detections.mask)
        names = [read.classes[k] for k in detections.class_id]
        found[Path(path).stem] = list(zip(names, masks, strict=True))
    return found


def read_labelme(folder: Path, name: str, images: Path) -> Found:
    import base64
    import io

    import numpy
    from labelme.utils.shape import shape_to_mask
    from PIL import Image

    found: Found = {}
    for file in sorted((folder / PLACES[name]).rglob("*.json")):
        document = json.loads(file.read_text())
        size = document["imageHeight"], document["imageWidth"]
        objects = []
        for shape in document["shapes"]:
            if shape["shape_type"] == "mask":
                patch = numpy.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
                x, y = map(int, shape["points"][0])
                mask = numpy.zeros(size, bool)
                mask[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
            else:
                mask = shape_to_mask(size, shape["points"], shape["shape_type"])
            objects.append((shape["label"], mask))
        found[file.stem] = objects
    return found


def read_label_studio(folder: Path, name: str, images: Path) -> Found:
    import numpy
    from label_studio_sdk.converter.brush import decode_rle

    found: Found = {}
    for task in json.loads((folder / PLACES[name]).read_text()):
        objects = []
        for row in task["predictions"][0]["result"]:
            pixels = numpy.reshape(decode_rle(row["value"]["rle"]), (row["original_height"], row["original_width"], 4))
            objects.append((row["value"]["brushlabels"][0], pixels[..., 3] > 0))
        found[Path(task["data"]["image"]).stem] = objects
    return found


def read_labelformat(folder: Path, name: str, images: Path) -> Found:
    """Read polygons, and draw them with pycocotools. labelformat reads an RLE only where `iscrowd` is 1."""
    from labelformat.formats.coco import COCOInstanceSegmentationInput
    from pycocotools import mask as coco_mask

    found: Found = {}
    for labels in COCOInstanceSegmentationInput(str(folder / PLACES[name])).get_labels():
        objects = []
        for one in labels.objects:
            polygons = [[value for point in polygon for value in point] for polygon in one.segmentation.polygons]
            rles = coco_mask.frPyObjects(polygons, labels.image.height, labels.image.width)
            objects.append((one.category.name, coco_mask.decode(coco_mask.merge(rles)).astype(bool)))
        found[Path(labels.image.filename).stem] = objects
    return found


READERS = {
    "pycocotools": (read_pycocotools, ("coco", "coco_polygons")),
    "supervision": (read_supervision, ("coco", "coco_polygons", "yolo")),
    "labelformat": (read_labelformat, ("coco_polygons",)),
    "labelme": (read_labelme, ("labelme",)),
    "label_studio_sdk": (read_label_studio, ("label_studio",)),
}


def read_elsewhere(reader: str, name: str, folder: Path, images: Path) -> None:
    """Read a format with another program, and save the masks to `<reader>_<name>.npz`, packed to bits."""
    import numpy

    arrays, names = {}, {}
    for image, objects in READERS[reader][0](folder, name, images).items():
        names[image] = [label for label, _ in objects]
        for k, (_, mask) in enumerate(objects):
            arrays[f"{image}/{k}"] = numpy.packbits(numpy.asarray(mask, bool))
    numpy.savez_compressed(folder / f"{reader}_{name}.npz", **arrays)
    (folder / f"{reader}_{name}.json").write_text(json.dumps(names))


# What follows runs with this project.


def load(data: Path) -> Any:
    from osm.io.images import open_image
    from osm.labeling.formats import FORMATS
    from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape

    reader, images = FORMATS.get("coco_panoptic"), []
    for number, source in enumerate(reader.sources(data / "panoptic.json")):
        path = data / "images" / source.image
        size = open_image(path).size
        shapes = [one for one in reader.shapes(source, size) if isinstance(one, LabelShape)]
        own = tuple(LabelShape(one.rle, None, one.id, "", one.label, 0.5) for one in shapes)
        images.append(LabeledImage(number, source.image, str(path), size, own))
    names = dict.fromkeys(shape.name for image in images for shape in image.shapes)
    return LabeledImages(images, {name: number for number, name in enumerate(names, 1)}, "labels of the dataset")


def read_here(labels: Any, folder: Path, name: str) -> Any:
    """Read a format with this project, as labels whose names are what was read."""
    from osm.labeling.formats import recognized
    from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape

    place = folder / PLACES[name]
    reader = recognized(place)
    sources = {Path(source.image).stem: source for source in reader.sources(place)}
    images = []
    for image in labels.images:
        found = reader.shapes(sources[Path(image.file_name).stem], image.size)
        shapes = (LabelShape(one.rle, one.box, one.id, "", one.label, 0.5) for one in found)
        images.append(LabeledImage(image.number, image.file_name, image.path, image.size, tuple(shapes)))
    return LabeledImages(images, labels.categories, labels.model)


def masks_of(labels: Any) -> Found:
    return {Path(i.file_name).stem: [(shape.name, shape.mask) for shape in i.shapes] for i in labels.images}


def compare(labels: Any, found: Found) -> dict[str, Any]:
    """Compare masks with the original masks, all and the simple ones."""
    import numpy as np

    from osm.labeling.outlines import outlines

    every, simple = [], []
    for image, objects in masks_of(labels).items():
        for name, mask in objects:
            others = [other for label, other in found.get(image, ()) if label == name]
            iou = max((float((mask & o).sum() / (mask | o).sum()) for o in others), default=0.0)
            every.append(iou)
            if len(outlines(mask)) == 1 and mask.sum() >= 400:
                simple.append(iou)
    facts = {"masks": len(every), "objects": sum(map(len, found.values())), "equal": sum(iou == 1 for iou in every)}
    facts |= {"mean_iou": float(np.mean(every)), "simple": len(simple), "simple_equal": sum(i == 1 for i in simple)}
    return facts | {"simple_lowest_iou": min(simple)}


def elsewhere(labels: Any, folder: Path, reader: str, name: str) -> Found:
    import numpy as np

    arrays = np.load(folder / f"{reader}_{name}.npz", allow_pickle=False)
    names = json.loads((folder / f"{reader}_{name}.json").read_text())
    found: Found = {}
    for image in labels.images:
        stem, (width, height) = Path(image.file_name).stem, image.size
        found[stem] = [
            (label, np.unpackbits(arrays[f"{stem}/{k}"], count=width * height).reshape(height, width).astype(bool))
            for k, label in enumerate(names.get(stem, ()))
        ]
    return found


def measure(data: Path, readers: str, folder: Path) -> list[dict[str, Any]]:
    from osm.labeling.formats import FORMATS

    labels, rows = load(data), []
    for name in PLACES:
        FORMATS.get(name).write(labels, folder)
        rows.append({"format": name, "reader": "osm", **compare(labels, masks_of(read_here(labels, folder, name)))})
    for reader, (_, names) in READERS.items() if readers else ():
        for name in names:
            words = [readers, __file__, str(data), "--read", reader, name, str(folder)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{reader}, {name}: {done.stderr[-2000:]}")
            rows.append({"format": name, "reader": reader, **compare(labels, elsewhere(labels, folder, reader, name))})
    for number, (first, second) in enumerate(PAIRS):
        for part in "ab":
            (folder / f"{number}{part}").mkdir()
        FORMATS.get(first).write(labels, folder / f"{number}a")
        FORMATS.get(second).write(read_here(labels, folder / f"{number}a", first), folder / f"{number}b")
        found = masks_of(read_here(labels, folder / f"{number}b", second))
        rows.append({"format": f"{first}, {second}", "reader": "osm", **compare(labels, found)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--readers", default="", help="the Python that has the other programs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        reader, name, folder = args.read
        read_elsewhere(reader, name, Path(folder), args.data / "images")
        return 0
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.data, args.readers, Path(folder))
    print("| format | reader | objects | equal masks | mean IoU | simple masks: equal | lowest IoU |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        equal, simple = f"{row['equal']} of {row['masks']}", f"{row['simple_equal']} of {row['simple']}"
        head = f"| {row['format']} | {row['reader']} | {row['objects']} | {equal} | {row['mean_iou']:.4f}"
        print(f"{head} | {simple} | {row['simple_lowest_iou']:.4f} |")
    if args.output:
        args.output.write_text(json.dumps({"data": args.data.name, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
