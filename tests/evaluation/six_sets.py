"""The val sets of the published benchmark, small, in the folders, files and fields of their own releases.

Every image is 8 x 6; what has a mask lies in its left half (24 pixels) or right half, if nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fake_namer import FakeName, FakeNamer
from PIL import Image

from osm.config import find_config
from osm.datasets.table import PUBLISHED_MODES, Dataset, DatasetTable

HEIGHT, WIDTH = 6, 8
LEFT = [0, 0, 4, 0, 4, 6, 0, 6]
RIGHT = [4, 0, 8, 0, 8, 6, 4, 6]
SETS = ("coco", "ade20k", "cityscapes", "lvis", "a847", "pc459")


def row_of(name: str) -> Dataset:
    """The dataset with the paths of `configs/benchmark.yaml`."""
    return DatasetTable().with_yaml(find_config("benchmark"))[name]


class AreaNamer(FakeNamer):
    """Names a mask by its mode and its area."""

    def __init__(self, die_at: int | None = None, fingerprint: str = "fake-1") -> None:
        super().__init__(die_at, fingerprint)
        self.modes = PUBLISHED_MODES

    def name_image(
        self, image: Image.Image, masks: np.ndarray, modes: Sequence[str]
    ) -> list[dict[str, FakeName] | None]:
        named = super().name_image(image, masks, modes)
        texts = [{mode: FakeName(f" {mode} {mask.sum()}\n", 0.25) for mode in modes} for mask in masks]
        return [text if name else None for name, text in zip(named, texts, strict=True)]


def said(name: str, area: int) -> dict[str, Any]:
    """What the namer makes of a mask."""
    return {mode: {"class": f"{mode} {area}", "prob": 0.25} for mode in (name, "any")}


@dataclass(frozen=True)
class Folders:
    """The paths of a panoptic set."""

    images: Path
    masks: Path
    json_file: Path


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 100, 200)).save(path)


def _map(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path, compression="tiff_lzw")


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def panoptic(folders: Folders, images: list[dict[str, Any]], files: list[str], pngs: list[str], ids: Any) -> list[Any]:
    """A panoptic set: a thing (id 26001) left, a class (id 7) right but for a crowd (id 26) in the last column."""
    thing, stuff = ids
    annotations = []
    for image, file, png in zip(images, files, pngs, strict=True):
        _picture(folders.images / file)
        drawn = np.full((HEIGHT, WIDTH), 7)
        drawn[:, :4], drawn[:, 7] = 26001, 26
        folders.masks.mkdir(parents=True, exist_ok=True)
        rgb = np.stack([drawn % 256, drawn // 256 % 256, drawn // 65536], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(folders.masks / png)
        segments = [
            {"id": 26001, "category_id": thing, "area": 24, "bbox": [0, 0, 4, 6], "iscrowd": 0},
            {"id": 7, "category_id": stuff, "area": 18, "bbox": [4, 0, 3, 6], "iscrowd": 0},
            {"id": 26, "category_id": thing, "area": 6, "bbox": [7, 0, 1, 6], "iscrowd": 1},
        ]
        annotations.append({"image_id": image["id"], "file_name": png, "segments_info": segments})
    size = {"width": WIDTH, "height": HEIGHT}
    _write(folders.json_file, {"images": [{**i, **size} for i in images], "annotations": annotations, "categories": []})
    return [
        {
            **entry,
            "segments_info": [
                {**thing, "open_end_pred": said("SET", 24)},
                {**stuff, "open_end_pred": said("SET", 18)},
                crowd,
            ],
        }
        for entry in annotations
        for thing, stuff, crowd in [entry["segments_info"]]
    ]


def coco(root: Path, count: int) -> Any:
    top = root / "coco"
    folders = Folders(top / "val2017", top / "panoptic_val2017", top / "annotations" / "panoptic_val2017.json")
    names = [f"{139 + number:012d}" for number in range(count)]
    urls = "http://images.cocodataset.org/val2017"
    images = [{"id": int(n), "file_name": f"{n}.jpg", "license": 2, "coco_url": f"{urls}/{n}.jpg"} for n in names]
    return panoptic(folders, images, [f"{n}.jpg" for n in names], [f"{n}.png" for n in names], (16, 187))


def ade20k(root: Path, count: int) -> Any:
    top = root / "ADEChallengeData2016"
    folders = Folders(top / "images" / "validation", top / "ade20k_panoptic_val", top / "ade20k_panoptic_val.json")
    names = [f"ADE_val_{number:08d}" for number in range(1, count + 1)]
    images = [{"id": name, "file_name": f"{name}.jpg"} for name in names]
    return panoptic(folders, images, [f"{n}.jpg" for n in names], [f"{n}.png" for n in names], (20, 0))


def cityscapes(root: Path, count: int) -> Any:
    """The json calls the images by names that no file has, as cityscapesscripts writes it."""
    fine = root / "cityscapes" / "gtFine"
    folders = Folders(
        root / "cityscapes" / "leftImg8bit" / "val",
        fine / "cityscapes_panoptic_val",
        fine / "cityscapes_panoptic_val.json",
    )
    names = [f"{('frankfurt', 'lindau')[number % 2]}_{number:06d}_000294" for number in range(count)]
    images = [{"id": name, "file_name": f"{name}_gtFine_leftImg8bit.png"} for name in names]
    files = [f"{name.split('_')[0]}/{name}_leftImg8bit.png" for name in names]
    return panoptic(folders, images, files, [f"{name}_gtFine_panoptic.png" for name in names], (26, 7))


def lvis(root: Path, count: int) -> Any:
    """Without `file_name`, in two of COCO's folders, not in order of id; the last image has no annotation."""
    top = root / "lvis"
    images, annotations = [], []
    for number in range(count, 0, -1):
        name = f"{('train2017', 'val2017')[number % 2]}/{number:012d}.jpg"
        _picture(top / name)
        size = {"width": WIDTH, "height": HEIGHT}
        more = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
        images.append({"id": number, "coco_url": f"http://images.cocodataset.org/{name}", **size, **more})
        for polygon, category in ((RIGHT, 1), (LEFT, 3)) if number < count else ():
            box = {"bbox": [polygon[0], 0, 4, 6], "area": 24.0, "segmentation": [polygon]}
            annotations.append({"id": 100 + len(annotations), "image_id": number, "category_id": category, **box})
    _write(top / "lvis_v1_val.json", {"images": images, "annotations": annotations, "categories": []})
    named = [{**annotation, "open_end_pred": said("SET", 24)} for annotation in annotations]
    return {"pred": [[image, [a for a in named if a["image_id"] == image["id"]]] for image in reversed(images)]}


def _semantic(images: Path, maps: Path, names: list[str], ids: tuple[int, ...], ignored: tuple[int, ...]) -> Any:
    """Right half: the first id; the left one in columns: the ignored ids, and the other ones."""
    entries = []
    for name in names:
        _picture(images / f"{name}.jpg")
        drawn = np.full((HEIGHT, WIDTH), ids[0])
        for column, i in enumerate((*ignored, *ids[1:])):
            drawn[:, column] = i
        _map(maps / f"{name}.tif", drawn)
        areas = {i: int((drawn == i).sum()) for i in sorted(ids)}
        pred = [{"mask_unique_id": i, "open_end_pred": said("SET", area)} for i, area in areas.items()]
        entries.append({"file_name": f"{name}.jpg", "pred": pred})
    return {"pred": entries}


def a847(root: Path, count: int) -> Any:
    top = root / "ADE20K_2021_17_01"
    names = [f"ADE_val_{number:08d}" for number in range(1, count + 1)]
    folders = (top / "images_detectron2" / "validation", top / "annotations_detectron2" / "validation")
    return _semantic(*folders, names, (846, 0), (65535,))


def pc459(root: Path, count: int) -> Any:
    top = root / "pascal_ctx_d2"
    names = [f"2008_{number:06d}" for number in range(2, count + 2)]
    folders = (top / "images" / "validation", top / "annotations_ctx459" / "validation")
    return _semantic(*folders, names, (0, 458), (65535, 430))


MAKERS = {"coco": coco, "ade20k": ade20k, "cityscapes": cityscapes, "lvis": lvis, "a847": a847, "pc459": pc459}


def make(name: str, root: Path, count: int) -> Any:
    """Writes a set, and returns the published prediction file of the whole of it, as `AreaNamer` names it."""
    return json.loads(json.dumps(MAKERS[name](root, count)).replace('"SET', f'"{name}'))
