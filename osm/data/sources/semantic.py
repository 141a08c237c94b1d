"""Semantic sets: an image, and a 16-bit TIFF of its name whose pixels are class ids (A-847, PC-459, one's own)."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from osm.data.labels import LabelSet, load_labels
from osm.data.sources.base import (
    SEED,
    Item,
    Items,
    Plan,
    Size,
    Source,
    Warnings,
    check_label_map,
    digest,
    files_by_stem,
)
from osm.errors import SampleError

IGNORED = 65535
IMAGES = (".jpg", ".jpeg", ".png")
_MAPS = (".tif", ".tiff")


def categories(labels: LabelSet) -> list[dict[str, Any]]:
    """As `categories.json` has them."""
    return [
        {"id": one.id, "name": one.target, "synonyms": list(one.names[1:]), "isthing": int(one.isthing)}
        for one in labels.classes.values()
    ]


@lru_cache(maxsize=8)
def known_ids(labels: str) -> frozenset[int]:
    return frozenset(load_labels(labels).classes)


@dataclass(frozen=True)
class Semantic(Source):
    """Pairs of files.

    Attributes:
        labels: a table of the project or a json with `categories`; None where the ids' names are not known here.
    """

    image_dir: str | Path
    ann_dir: str | Path
    labels: str | None = None

    form: ClassVar[str] = "semantic"
    what: ClassVar[str] = "a semantic set: images and 16-bit TIFFs of class ids"
    fine: ClassVar[frozenset[str]] = frozenset({"nothing_labelled"})

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="folder of the images")
        parser.add_argument("--ann_dir", required=True, help=f"folder of the TIFFs; {IGNORED} is no class")
        parser.add_argument("--json_file", help="accepted, not used")
        parser.add_argument("--labels", help="table or json of the ids' names: ids that it lacks are then warned of")

    def plan(self) -> Plan:
        images = files_by_stem("image_dir", Path(self.image_dir), IMAGES)
        maps = files_by_stem("ann_dir", Path(self.ann_dir), _MAPS)
        labels = None if self.labels is None else load_labels(self.labels)
        items = Items()
        for stem in sorted(images.keys() | maps.keys()):
            image = images.get(stem, Path(self.image_dir) / f"{stem}.jpg")
            pair = {"tif": maps.get(stem, Path(self.ann_dir) / f"{stem}.tif")}
            items.add(f"--image_dir {self.image_dir}", stem, image, pair, {"file_name": image.name})
        arguments = {
            "form": self.form,
            "image_dir": str(Path(self.image_dir).resolve()),
            "ann_dir": str(Path(self.ann_dir).resolve()),
            "labels": self.labels,
            "files_sha256": digest(path.name for path in [*images.values(), *maps.values()]),
            "seed": SEED,
        }
        return Plan(items.shuffled(), Counter(), arguments, None if labels is None else categories(labels))

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        data, ids = check_label_map(item, "tif", size)
        ids -= {IGNORED}
        if self.labels is not None:
            strange = sorted(ids - known_ids(self.labels))
            ids -= set(strange)
            if strange:
                message = f"mask {item.masks['tif']}: ids {strange[:5]} are not in the labels {self.labels}"
                message += ": training leaves the image out, unless the set's row ignores them"
                warnings.append(("id_not_in_labels", message, len(strange)))
        if not ids:
            raise SampleError("nothing_labelled", f"mask {item.masks['tif']}: no pixel has a class")
        return {"tif": data}, {}
