"""WebDataset shards: masks beside their images, read from any shards with COCO's fields, and written for training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError, shown
from osm.files import read_json
from osm.io.images import read_panoptic
from osm.labeling.formats.coco_labels import CocoLabels, coco_shape
from osm.labeling.formats.label_format import (
    Holds,
    LabeledImages,
    LabelFormat,
    LabelShape,
    MaskSource,
    Size,
    category_names,
    check_map_size,
)
from osm.labeling.formats.panoptic_labels import segment_shape
from osm.labeling.stored_images import StoredImage, samples_of

_STAGED = "staged"


class ShardSamples(LabelFormat):
    """WebDataset shards. Reading takes SA-1B's tar files too; writing makes shards that `osm train` takes."""

    name, title = "shards", "WebDataset shards"
    output = "shards"
    holds = Holds(scores=False, ids=False)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".tar"

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        labels = path.parent / "categories.json"
        names: dict[Any, str] = {}
        if labels.is_file():
            document, _ = read_json(labels, "categories")
            names = category_names(document) if isinstance(document, dict) else {}
        for sample in samples_of(str(path)):
            if sample.image and "json" in sample.members:
                image = StoredImage(str(path), sample.members[sample.image_extension])
                png = sample.members.get("png") if sample.image_extension != "png" else None
                data = (path, sample.members["json"], png, names)
                where = f"{path}: sample {shown(sample.key)}, annotation"
                yield MaskSource(sample.image, where, data=data, stored=image)

    @classmethod
    def count(cls, source: MaskSource) -> int:
        return len(_rows(source))

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        path, _, png, names = source.data
        ids = read_panoptic(_bytes(path, png)) if png is not None else None
        if ids is not None:
            check_map_size(ids, size, f"{source.where}: the PNG")
        return replace(source, rows=tuple(_rows(source)), data=(ids, names))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        ids, names = source.data
        if ids is not None and isinstance(row, Mapping) and "segmentation" not in row:
            return [segment_shape(row, ids, names, where)]
        label = names.get(row.get("category_id"), "") if isinstance(row, Mapping) else ""
        return [coco_shape(row, size, where, label)]

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        """Convert the labels as `osm prepare coco_instances` does, from a COCO json that is removed afterwards."""
        from osm.prepare.convert import ConvertOptions, convert_coco_instances

        staged = out / ".osm_label" / _STAGED
        for folder in (staged, out / "shards"):
            if folder.is_dir():
                shutil.rmtree(folder)
        staged.mkdir(parents=True)
        try:
            CocoLabels.write(labels, staged)
            options = ConvertOptions(out / "shards", max_bad_annotations=1.0, num_workers=1)
            convert_coco_instances(staged / "labels.json", cls._images(labels, staged), options, False)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @classmethod
    def _images(cls, labels: LabeledImages, staged: Path) -> str:
        """Return the folder or URL of all images. Images without a common folder are copied to one."""
        roots = {image.path.removesuffix(image.file_name) if image.member is None else "" for image in labels.images}
        root = next(iter(roots), "")
        if len(roots) == 1 and root and all(image.path == root + image.file_name for image in labels.images):
            return root
        for image in labels.images:
            source = StoredImage(image.path, image.member).source()
            place = staged / "images" / image.file_name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        return str(staged / "images")


def _rows(source: MaskSource) -> list[Any]:
    """Return the annotations in a sample's JSON. Raises OsmError if it has none."""
    path, place, _, _ = source.data
    try:
        document = parse_json(_bytes(path, place))
    except ValueError as error:
        raise OsmError(f"{source.where}: not valid json ({error})") from None
    found = document.get("annotations", document.get("segments_info")) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise OsmError(f"{source.where}: the json has no list 'annotations' or 'segments_info'")
    return found


def _bytes(path: Path, place: tuple[int, int]) -> bytes:
    found = StoredImage(str(path), place).source()
    assert isinstance(found, bytes)
    return found
