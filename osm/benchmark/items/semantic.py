"""Semantic sets: a folder of images, and one of label maps under the same names whose pixels are category ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from osm.benchmark.items.base import ImageFile, Item, Split, image_size, read_map
from osm.data.datasets import Dataset
from osm.data.images import read_ids
from osm.data.sources.base import digest, distinct, files_by_stem
from osm.errors import OsmError

_IMAGES = (".jpg", ".jpeg", ".png")
_MAPS = (".tif", ".tiff", ".png")


class Semantic(Split):
    """One item an image, in the order of their names; a mask is all that has one id, ignored ids apart."""

    needs = ("image_dir", "mask_dir")
    image_needs = ("image_dir",)
    masks_field = "mask_dir"
    prefix = '{"pred": ['
    suffix = "]}"
    category_key = id_key = "mask_unique_id"

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        images = files_by_stem(f"{row.name}_image_dir", Path(str(row.image_dir)), _IMAGES)
        maps = files_by_stem(f"{row.name}_mask_dir", Path(str(row.mask_dir)), _MAPS)
        for stem, path in sorted({**maps, **images}.items()):
            if stem not in images or stem not in maps:
                missing = f"label map in {row.mask_dir}" if stem in images else f"image in {row.image_dir}"
                raise OsmError(f"set {row.name!r}: {path} has no {missing} under the same name")
        self._pairs = [(path, maps[stem]) for stem, path in images.items()]
        # Names and sizes: reading gigabytes of maps only to know that they are the same would be too much.
        listing = [f"{image.name} {mask.name} {mask.stat().st_size}" for image, mask in self._pairs]
        self.source_hash = digest([*listing, f"ignored {sorted(row.ignored_ids)}"])

    def __len__(self) -> int:
        return len(self._pairs)

    def load(self, index: int) -> Item:
        image_path, mask_path = self._pairs[index]
        size = image_size(image_path)
        ids = read_map(mask_path, read_ids, image_path, size)
        asked = [i for i in distinct(ids) if i not in self.row.rules.ignored_ids]
        labels = self.row.label_set
        unknown = [i for i in asked if i not in labels]
        if unknown:
            raise OsmError(
                f"{mask_path}: id {unknown[0]} is neither in the label set {labels.source} of set {self.row.name!r} "
                f"({len(labels.classes)} ids) nor among its ignored_ids ({', '.join(map(str, self.row.ignored_ids))})"
            )
        annotations: list[dict[str, Any]] = [{self.id_key: i} for i in asked]
        entry = {"file_name": image_path.name, "pred": annotations}
        return Item(image_path, size, entry, annotations, lambda k: ids == asked[k], Counter())

    def paths(self, index: int) -> list[Path]:
        return list(self._pairs[index])

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        return self._pairs[index][0].name, None  # gigabytes of label maps, for no more than their ids

    @classmethod
    def images(cls, row: Dataset) -> tuple[list[ImageFile], str]:
        found = files_by_stem(f"{row.name}_image_dir", Path(str(row.image_dir)), _IMAGES)
        files = [ImageFile(stem, (path.name,), path) for stem, path in found.items()]
        return files, digest(path.name for path in found.values())

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        for entry in document["pred"]:
            yield entry.get("file_name"), entry["pred"]
