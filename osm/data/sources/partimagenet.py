"""PartImageNet: an image, a PNG of part ids and a PNG of the whole objects' class ids."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from osm.data.labels import load_labels
from osm.data.sources.base import (
    SEED,
    Item,
    Items,
    Plan,
    Size,
    Source,
    Warnings,
    check_folder,
    check_label_map,
    digest,
    files_by_stem,
)
from osm.data.sources.semantic import IMAGES, categories, known_ids
from osm.errors import OsmError, SampleError

_TABLES = {"part.png": "partimagenet", "whole.png": "partimagenet_whole"}


@dataclass(frozen=True)
class PartImageNet(Source):
    """`images/<split>`, and beside `images` the folders `annotations/<split>` and `annotations/<split>_whole`."""

    image_dir: str | Path
    split: str = "train"

    form: ClassVar[str] = "partimagenet"
    what: ClassVar[str] = "PartImageNet"
    fine: ClassVar[frozenset[str]] = frozenset({"nothing_labelled"})

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="the folder images, with annotations beside it")
        parser.add_argument("--split", default="train", help="subfolder of both (default train)")

    def plan(self) -> Plan:
        if Path(self.split).name != self.split or self.split in ("", ".", ".."):
            raise OsmError(f"--split {self.split!r} is not the name of a subfolder, like train")
        root = check_folder("image_dir", self.image_dir)
        folder = root / self.split
        annotations = Path(os.path.abspath(root)).parent / "annotations"  # beside the name, wherever a link leads
        images = files_by_stem("image_dir", folder, IMAGES)
        beside = {"part.png": annotations / self.split, "whole.png": annotations / f"{self.split}_whole"}
        maps = {member: files_by_stem("image_dir", at, (".png",)) for member, at in beside.items()}
        items = Items()
        for stem in sorted(images.keys() | maps["part.png"].keys()):
            image = images.get(stem, folder / f"{stem}.JPEG")
            masks = {member: maps[member].get(stem, at / f"{stem}.png") for member, at in beside.items()}
            items.add(f"--image_dir {self.image_dir}", stem, image, masks, {"file_name": image.name})
        names = [path.name for path in images.values()]
        names += [f"{member}/{path.name}" for member, found in maps.items() for path in found.values()]
        arguments = {
            "form": self.form,
            "image_dir": str(root.resolve()),
            "split": self.split,
            "files_sha256": digest(names),
            "seed": SEED,
        }
        return Plan(items.shuffled(), Counter(), arguments, categories(load_labels(_TABLES["part.png"])))

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        members: dict[str, bytes] = {}
        known: set[int] = set()
        for member, table in _TABLES.items():
            members[member], ids = check_label_map(item, member, size)
            known |= ids & known_ids(table)
        if not known:
            raise SampleError("nothing_labelled", f"mask {item.masks['part.png']}: no part and no object in it")
        return members, {}
