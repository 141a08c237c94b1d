"""Small real sets for the tests of the converters."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.prepare.convert import ConvertOptions, convert_coco_instances, convert_coco_panoptic

SCRIPTS = Path(__file__).resolve().parents[2] / "dataset_preparation"
CATEGORIES = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}]
SIZE = (24, 16)


def write_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, ids: tuple[int, int], size: tuple[int, int] = SIZE) -> None:
    """The upper half is the first segment, the lower the second."""
    values = np.full((size[1], size[0]), ids[0])
    values[size[1] // 2 :] = ids[1]
    rgb = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


class Set:
    """A set of `count` images in both forms; a test changes `json` or the files, then converts."""

    def __init__(self, root: Path, form: str, count: int = 4, ending: str = ".jpg") -> None:
        self.root, self.form = root, form
        self.images, self.masks = root / "images", root / "panoptic"
        for folder in (self.images, self.masks):
            folder.mkdir(parents=True)
        self.json: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for number in range(count):
            self.add(number, f"im{number}", ending)

    def add(self, number: int, stem: str, ending: str = ".jpg") -> None:
        write_image(self.images / f"{stem}{ending}", number)
        size = {"width": SIZE[0], "height": SIZE[1]}
        self.json["images"].append({"id": number, "file_name": f"{stem}{ending}", **size})
        row: dict[str, Any] = {"image_id": number}
        if self.form == "coco_panoptic":
            write_mask(self.masks / f"{stem}.png", (300, 70000))
            segments = [{"id": 300, "category_id": 1, "iscrowd": 0}, {"id": 70000, "category_id": 2, "iscrowd": 0}]
            row |= {"file_name": f"{stem}.png", "segments_info": segments}
        else:
            polygon = [[1, 1, 9, 1, 9, 9, 1, 9]]
            row |= {"id": number + 50, "category_id": 2, "bbox": [1, 1, 8, 8], "segmentation": polygon}
            row |= {"iscrowd": 0, "area": 64.0}
        self.json["annotations"].append(row)

    def write(self) -> Path:
        path = self.root / "set.json"
        path.write_text(json.dumps(self.json))
        return path

    def convert(self, output: Path | None = None, **options: Any) -> dict[str, Any]:
        lvis_val = options.pop("filter_lvis_val", True)
        opts = ConvertOptions(output or self.root / "out", **{"num_workers": 1, "num_files_per_shard": 3, **options})
        if self.form == "coco_panoptic":
            return convert_coco_panoptic(self.write(), self.images, self.masks, opts, lvis_val)
        return convert_coco_instances(self.write(), self.images, opts, lvis_val)

    def command(self, output: Path, *more: str) -> list[str]:
        script = SCRIPTS / f"convert_{self.form}_to_wds.py"
        paths = ["--image_dir", str(self.images), "--ann_dir", str(self.masks), "--json_file", str(self.write())]
        return [sys.executable, str(script), "--output_dir", str(output), *paths, *more]


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                found[info.name] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def summary(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return value
