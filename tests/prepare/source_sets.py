"""Each of the nine sets, small, in the folders and files of its own release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from convert_sets import SIZE, write_image, write_mask
from PIL import Image
from scipy.io import savemat

from osm.prepare.convert import main

WIDTH, HEIGHT = SIZE


@dataclass
class Made:
    """A set on disk.

    Attributes:
        script: of `dataset_preparation`, and `name`, what `osm prepare` calls the set.
        paths: the published command's arguments.
        images: by sample key.
        masks: by sample key: member name, and the file whose bytes it has.
        published: the fields of the published layout, without `image_base64`.
    """

    name: str
    script: str
    paths: dict[str, Path]
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, dict[str, Path]] = field(default_factory=dict)
    published: tuple[str, ...] = ()
    document: dict[str, Any] = field(default_factory=dict)

    def arguments(self, output: Path, *more: str) -> list[str]:
        if self.document:
            self.paths["json_file"].write_text(json.dumps(self.document))
        words = ["--output_dir", str(output), "--num_workers", "1", "--num_files_per_shard", "3"]
        return [*words, *(word for flag, path in self.paths.items() for word in (f"--{flag}", str(path))), *more]

    def convert(self, output: Path, *more: str) -> int:
        return main(self.name, self.arguments(output, *more))


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_ids(path: Path, ids: tuple[int, int], kind: type = np.uint8) -> None:
    """A label map: the upper half is the first id, the lower the second."""
    values = np.full((HEIGHT, WIDTH), ids[0], kind)
    values[HEIGHT // 2 :] = ids[1]
    Image.fromarray(values).save(path)


def _categories(*names: str) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def _panoptic(name: str, root: Path, count: int, images: Path, masks: Path, json_file: Path) -> Made:
    script = "convert_coco_panoptic_to_wds.py"
    paths = {"ann_dir": folder(masks), "image_dir": folder(images), "json_file": json_file}
    made = Made(name, script, paths, published=("pan_base64", "segments_info"))
    made.document = {"images": [], "annotations": [], "categories": _categories("sky", "car")}
    for number in range(count):
        add_panoptic(made, number, f"{number:012d}", f"{number:012d}.jpg", f"{number:012d}.png")
    return made


def add_panoptic(made: Made, id_: Any, key: str, image: str, mask: str, listed: str | None = None) -> None:
    """An image and its PNG; `listed` is what the json calls the image."""
    seed = len(made.images)
    made.images[key], made.masks[key] = made.paths["image_dir"] / image, {"png": made.paths["ann_dir"] / mask}
    folder(made.images[key].parent)
    write_image(made.images[key], seed)
    write_mask(made.masks[key]["png"], (7, 26001))
    ids = zip((7, 26001), made.document["categories"], strict=True)
    segments = [{"id": segment, "category_id": row["id"], "iscrowd": 0} for segment, row in ids]
    size = {"width": WIDTH, "height": HEIGHT}
    made.document["images"].append({"id": id_, "file_name": listed or image, **size})
    made.document["annotations"].append({"image_id": id_, "file_name": mask, "segments_info": segments})


def coco(root: Path, count: int) -> Made:
    top = folder(root / "coco" / "annotations").parent
    json_file = top / "annotations" / "panoptic_train2017.json"
    return _panoptic("coco", root, count, top / "train2017", top / "panoptic_train2017", json_file)


def ade20k(root: Path, count: int) -> Made:
    top = folder(root / "ADEChallengeData2016")
    masks, json_file = top / "ade20k_panoptic_train", top / "ade20k_panoptic_train.json"
    return _panoptic("ade20k", root, count, top / "images" / "training", masks, json_file)


def cityscapes(root: Path, count: int) -> Made:
    top = folder(root / "cityscapes")
    fine = top / "gtFine"
    masks, json_file = fine / "cityscapes_panoptic_train", fine / "cityscapes_panoptic_train.json"
    made = _panoptic("cityscapes", root, 0, top / "leftImg8bit" / "train", masks, json_file)
    made.script = "convert_cityscapes_panoptic_to_wds.py"
    made.document["categories"] = [{"id": 7, "name": "road"}, {"id": 26, "name": "car"}]
    for number in range(count):
        city = ("aachen", "bremen")[number % 2]
        frame = f"{city}_{number:06d}_000019"
        image, mask = f"{city}/{frame}_leftImg8bit.png", f"{frame}_gtFine_panoptic.png"
        add_panoptic(made, frame, frame, image, mask, f"{frame}_gtFine_leftImg8bit.png")
    return made


def lvis(root: Path, count: int) -> Made:
    top = folder(root / "lvis")
    paths = {"image_dir": top, "json_file": top / "lvis_v1_train.json"}
    made = Made("lvis", "convert_lvis_to_wds.py", paths, published=("height", "segments_info", "width"))
    made.document = {"images": [], "annotations": [], "categories": _categories("aerosol_can", "air_conditioner")}
    for number in range(count):
        name = f"{('train2017', 'val2017')[number % 2]}/{number:012d}.jpg"
        made.images[f"{number:012d}"] = top / name
        folder((top / name).parent)
        write_image(top / name, number)
        url = f"http://images.cocodataset.org/{name}"
        made.document["images"].append({"id": number, "coco_url": url, "width": WIDTH, "height": HEIGHT})
        box = {"bbox": [1.0, 1.0, 8.0, 8.0], "area": 64.0, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        made.document["annotations"].append({"id": number + 50, "image_id": number, "category_id": 2, **box})
    return made


def v3det(root: Path, count: int) -> Made:
    top = folder(root / "V3Det")
    paths = {"image_dir": top, "json_file": folder(top / "annotations") / "v3det_2023_v1_train.json"}
    made = Made("v3det", "convert_v3det_to_wds.py", paths, published=("height", "segments_info", "width"))
    made.document = {"images": [], "annotations": [], "categories": _categories("ashtray", "cash_machine")}
    for number in range(count):
        name = f"images/n{number:08d}/1_2_3.jpg"  # one name in every class's folder
        made.images[f"{number:08d}"] = top / name
        folder((top / name).parent)
        write_image(top / name, number)
        made.document["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        row = {"id": number + 70, "image_id": number, "category_id": 1, "bbox": [2.0, 3.0, 9.5, 8.0], "iscrowd": 0}
        made.document["annotations"].append(row)
    return made


def _semantic(name: str, script: str, count: int, images: Path, maps: Path) -> Made:
    paths = {"image_dir": folder(images), "ann_dir": folder(maps)}
    made = Made(name, script, paths, published=("seg_base64",))
    for number in range(count):
        key = f"im_{number:08d}"
        made.images[key], made.masks[key] = images / f"{key}.jpg", {"tif": maps / f"{key}.tif"}
        write_image(made.images[key], number)
        write_ids(made.masks[key]["tif"], (number, 65535), np.uint16)
    return made


def a847(root: Path, count: int) -> Made:
    top = root / "ADE20K_2021_17_01"
    images, maps = top / "images_detectron2" / "training", top / "annotations_detectron2" / "training"
    return _semantic("a847", "convert_ade_847_to_wds.py", count, images, maps)


def pc459(root: Path, count: int) -> Made:
    top = root / "pascal_ctx_d2"
    images, maps = top / "images" / "training", top / "annotations_ctx459" / "training"
    return _semantic("pc459", "convert_pc459_to_wds.py", count, images, maps)


def partimagenet(root: Path, count: int) -> Made:
    top = root / "PartImageNet"
    images, annotations = folder(top / "images" / "train"), top / "annotations"
    parts, whole = folder(annotations / "train"), folder(annotations / "train_whole")
    published = ("part_seg_base64", "whole_seg_base64")
    made = Made("partimagenet", "convert_partimagenet_to_wds.py", {"image_dir": images.parent}, published=published)
    for number in range(count):
        key = f"n0144{number:04d}_1"
        made.images[key] = images / f"{key}.JPEG"
        made.masks[key] = {"part.png": parts / f"{key}.png", "whole.png": whole / f"{key}.png"}
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made.images[key], "JPEG")
        write_ids(made.masks[key]["part.png"], (number, 40))
        write_ids(made.masks[key]["whole.png"], (number, 158))
    return made


def write_mat(path: Path, objects: list[tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]]) -> None:
    """An annotation of Pascal-Part: `anno.objects[].class, .mask, .parts[].part_name, .mask`."""

    def records(rows: list[dict[str, Any]], *names: str) -> np.ndarray:
        if not rows:
            return np.zeros((0, 0), dtype=[(name, object) for name in names])
        table = np.zeros((1, len(rows)), dtype=[(name, object) for name in names])
        for number, row in enumerate(rows):
            for name, value in row.items():
                table[name][0, number] = value
        return table

    rows = []
    for name, mask, parts in objects:
        named = [{"part_name": part, "mask": area.astype(np.uint8)} for part, area in parts]
        row = {"class": name, "class_ind": 1.0, "mask": mask.astype(np.uint8)}
        rows.append({**row, "parts": records(named, "part_name", "mask")})
    anno = records(
        [{"imname": path.stem, "objects": records(rows, "class", "class_ind", "mask", "parts")}], "imname", "objects"
    )
    savemat(path, {"anno": anno}, do_compression=True)


def area(*box: int) -> np.ndarray:
    """A mask of the pixels left, top, right, bottom (exclusive)."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def pascal_part(root: Path, count: int) -> Made:
    top = root / "pascal_part"
    images = folder(top / "VOCdevkit" / "VOC2010" / "JPEGImages")
    paths = {"image_dir": images, "ann_dir": folder(top / "Annotations_Part")}
    published = ("part_seg_base64", "whole_seg_base64")
    made = Made("pascal_part", "convert_pascalpart_to_wds.py", paths, published=published)
    for number in range(count):
        key = f"2008_{number:06d}"
        made.images[key] = images / f"{key}.jpg"
        write_image(made.images[key], number)
        parts = [("head", area(0, 0, 6, 6)), ("lear", area(0, 0, 2, 2))]
        write_mat(paths["ann_dir"] / f"{key}.mat", [("cow", area(0, 0, 12, 12), parts)])
    return made


MAKERS: dict[str, Callable[[Path, int], Made]] = {
    "coco": coco,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "lvis": lvis,
    "v3det": v3det,
    "a847": a847,
    "pc459": pc459,
    "partimagenet": partimagenet,
    "pascal_part": pascal_part,
}


def spoil(path: Path, share: float = 0.6) -> None:
    """Cuts a file short."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
