"""From a COCO json to samples, in two steps.

`plan` reads the json alone: which samples there will be, in which order. What is wrong there is wrong with the set as a
whole, and ends the run before the first shard is written. `build` reads and checks the files of one sample.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from osm.data.images import open_image, read_panoptic
from osm.data.labels import LabelSet, load_labels
from osm.data.paths import safe_join
from osm.data.shard_writer import MAX_NAME_BYTES
from osm.errors import OsmError, SampleError

SEED = 20230731
_LONGEST_EXTENSION = ".image.png"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Item:
    """A sample to be: where its files are, and its json member but for what the files have to tell."""

    key: str
    image: Path
    mask: Path | None
    record: dict[str, Any]


@dataclass
class Built:
    """A sample's members, or the reason why there is none; warnings are (reason, message, count)."""

    members: list[tuple[str, bytes]] = field(default_factory=list)
    warnings: list[tuple[str, str, int]] = field(default_factory=list)
    reason: str = ""
    message: str = ""


Annotated = dict[int | str, tuple[Path | None, list[dict[str, Any]]]]  # by image id: its mask, its segments


class Source:
    """A COCO json, read and checked as far as that goes without the images."""

    def __init__(self, json_file: str | Path) -> None:
        self.path = Path(json_file)
        try:
            data = self.path.read_bytes()
            self.document = json.loads(data)
        except OSError as error:
            raise OsmError(f"--json_file {self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise OsmError(f"--json_file {self.path}: not valid json ({error})") from None
        self.sha256 = hashlib.sha256(data).hexdigest()
        for name in ("images", "annotations", "categories"):
            if not isinstance(self.document, dict) or not isinstance(self.document.get(name), list):
                raise OsmError(f"--json_file {self.path}: has no list {name!r}")
        self.labels = LabelSet.from_categories(self.document["categories"], str(self.path))
        self.images: dict[int | str, dict[str, Any]] = {}
        for number, image in enumerate(self.document["images"]):
            if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
                raise OsmError(f"{self.path}: images[{number}] needs an 'id', a number or a string")
            if image["id"] in self.images:
                raise OsmError(f"{self.path}: images[{number}]: the id {image['id']!r} is given twice")
            self.images[image["id"]] = image

    def annotations(self) -> Iterator[tuple[str, int | str, dict[str, Any]]]:
        """(how to name it in a message, image id, annotation)."""
        for number, row in enumerate(self.document["annotations"]):
            where = f"{self.path}: annotations[{number}]"
            if not isinstance(row, dict) or not isinstance(row.get("image_id"), (int, str)):
                raise OsmError(f"{where} needs an 'image_id', a number or a string")
            if "id" in row:
                where += f" (id {row['id']!r})"
            if row["image_id"] not in self.images:
                raise OsmError(f"{where}: there is no image with the id {row['image_id']!r} in 'images'")
            yield where, row["image_id"], row

    def check_category(self, where: str, segment: dict[str, Any]) -> None:
        category = segment.get("category_id")
        if not isinstance(category, int) or category not in self.labels:
            known = f"the {len(self.labels.classes)} 'categories' of the file"
            raise OsmError(f"{where}: category_id {category!r} is not among {known}")

    def file(self, where: str, flag: str, folder: str | Path, entry: dict[str, Any]) -> Path:
        """The path of an entry's `file_name`, which must lie in the folder."""
        try:
            return safe_join(Path(folder), entry.get("file_name", ""))
        except OsmError as error:
            raise OsmError(f"{where}, {flag}: {error}") from None

    def of_coco(self) -> bool:
        """Whether the categories are COCO's, or some of them, by id; the things by name too (stuff has several)."""
        coco = load_labels("coco").classes
        return all(
            own.id in coco and (not coco[own.id].isthing or own.target in coco[own.id].names)
            for own in self.labels.classes.values()
        )


def _panoptic_annotations(source: Source, ann_dir: str | Path) -> Annotated:
    """The panoptic PNG and the segments of each image."""
    found: Annotated = {}
    for where, image_id, row in source.annotations():
        if image_id in found:
            raise OsmError(f"{where}: image {image_id!r} has a second row; a panoptic json has one an image")
        segments = row.get("segments_info")
        if not isinstance(segments, list):
            raise OsmError(f"{where}: has no list 'segments_info'; is this a panoptic json?")
        for segment in segments:
            at = segment.get("id") if isinstance(segment, dict) else None
            if not isinstance(at, int) or not 0 < at < 256**3:
                raise OsmError(f"{where}, image {image_id!r}: a segment needs an id of 1 to 256^3 - 1, found {at!r}")
            source.check_category(f"{where}, image {image_id!r}, segment {at}", segment)
        found[image_id] = source.file(where, "--ann_dir", ann_dir, row), segments
    return found


def _instance_annotations(source: Source) -> Annotated:
    """The annotations of each image."""
    found: Annotated = {}
    for number, (where, image_id, row) in enumerate(source.annotations()):
        if "segments_info" in row:
            raise OsmError(f"{where}: has 'segments_info': this is a panoptic json, not an instances one")
        source.check_category(f"{where}, image {image_id!r}", row)
        kept: dict[str, Any] = {
            name: row[name] for name in ("bbox", "category_id", "segmentation", "area") if name in row
        }
        kept |= {"id": row.get("id", number), "iscrowd": row.get("iscrowd", 0)}
        found.setdefault(image_id, (None, []))[1].append(kept)
    return found


def _lvis_val(source: Source) -> frozenset[int]:
    """The ids to leave out: none for a set with categories of its own."""
    if not source.of_coco():
        return frozenset()
    table = resources.files("osm.data") / "labels" / "coco_train2017_in_lvis_val.txt"
    return frozenset(map(int, table.read_text(encoding="utf-8").split()))


def plan(
    source: Source, image_dir: str | Path, ann_dir: str | Path | None, filter_lvis_val: bool
) -> tuple[list[Item], Counter[str]]:
    """The items in the order of the shards, and the images left out by reason.

    Args:
        ann_dir: the folder of the panoptic PNGs; None for the instances form.
    """
    annotated = _instance_annotations(source) if ann_dir is None else _panoptic_annotations(source, ann_dir)
    unannotated = "no_annotations" if ann_dir is None else "no_segments"
    lvis_val = _lvis_val(source) if filter_lvis_val else frozenset()
    left_out: Counter[str] = Counter()
    items: dict[str, Item] = {}
    for number, (image_id, image) in enumerate(source.images.items()):
        where = f"{source.path}: images[{number}] (id {image_id!r})"
        path = source.file(where, "--image_dir", image_dir, image)
        mask, segments = annotated.get(image_id, (None, []))
        if image_id in lvis_val and path.stem == f"{image_id:012d}":
            left_out["in_lvis_val"] += 1
            continue
        if not segments:
            left_out[unannotated] += 1
            continue
        key = path.stem.replace(".", "_")  # WebDataset takes what follows the first dot for the extension
        if len((key + _LONGEST_EXTENSION).encode(errors="replace")) > MAX_NAME_BYTES:
            raise OsmError(f"{where}: the name {path.name!r} is too long for a tar member, shorten it")
        if key in items:
            both = f"{items[key].record['file_name']!r} and {image['file_name']!r}"
            raise OsmError(f"{where}: {both} both give the sample key {key!r}; rename one of them")
        record = {name: image[name] for name in ("file_name", "width", "height") if image.get(name) is not None}
        items[key] = Item(key, path, mask, {**record, "image_id": image_id, "segments_info": segments})
    order = [items[key] for key in sorted(items)]
    random.Random(SEED).shuffle(order)
    return order, left_out


@contextmanager
def _about(path: Path, kind: str) -> Iterator[None]:
    """Names the file in an error, and says `mask_...` for a mask's."""
    try:
        yield
    except SampleError as error:
        raise SampleError(error.reason.replace("image_", f"{kind}_"), f"{kind} {path}: {error}") from None
    except (EOFError, IndexError, struct.error, zlib.error) as error:  # Pillow, on some broken files
        raise SampleError(f"{kind}_unreadable", f"{kind} {path}: broken data ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError("image_missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise SampleError("image_unreadable", f"cannot be read ({error})") from None


def _check_image(item: Item) -> tuple[bytes, str, tuple[int, int]]:
    """The image's bytes, extension and (width, height), once it is known to be whole."""
    with _about(item.image, "image"):
        data = _read(item.image)
        image = open_image(data)
        extension = {"JPEG": "jpg", "MPO": "jpg", "PNG": "image.png"}.get(str(image.format))
        if extension is None:
            raise SampleError("image_format", f"is a {image.format}; a JPEG or PNG is needed")
        size = image.size
        given = (item.record.get("width", size[0]), item.record.get("height", size[1]))
        if given != size:
            raise SampleError("size_mismatch", f"is {size[0]} x {size[1]}, in the json {given[0]} x {given[1]}")
        try:
            image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))  # finds a truncated JPEG at little cost
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise SampleError("image_truncated", f"broken data ({error})") from None
        return data, extension, size


def _check_panoptic(item: Item, size: tuple[int, int], built: Built) -> bytes:
    """The panoptic PNG's bytes, once it is known to fit the image and the json."""
    assert item.mask is not None
    with _about(item.mask, "mask"):
        data = _read(item.mask)
        if not data.startswith(_PNG):
            raise SampleError("mask_not_png", "is not a PNG file")
        found = open_image(data).size
        if found != size:
            raise SampleError(
                "size_mismatch", f"is {found[0]} x {found[1]}, its image {item.image} is {size[0]} x {size[1]}"
            )
        flat = read_panoptic(data).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))  # of runs of one id: far fewer to sort than there are pixels
    drawn = set(np.unique(flat[starts]).tolist()) - {0}
    ids = [segment["id"] for segment in item.record["segments_info"]]
    listed = set(ids)
    if len(ids) != len(listed):
        twice = next(number for number, count in Counter(ids).items() if count > 1)
        raise SampleError("segment_id_twice", f"image {item.image}: the json has segment id {twice} twice")
    for reason, missing, place in (
        ("id_not_in_png", sorted(listed - drawn), "in the json but not in the PNG"),
        ("id_not_in_json", sorted(drawn - listed), "in the PNG but not in the json"),
    ):
        if missing:
            built.warnings.append((reason, f"mask {item.mask}: segment ids {missing[:5]} {place}", len(missing)))
    return data


def _polygons(polygons: list[Any]) -> list[Any]:
    """Those with three points or more. (pycocotools takes one of two points for a box.)"""
    return [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _finite(p)]


def _finite(numbers: Sequence[Any]) -> bool:
    return all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def _check_instances(item: Item, size: tuple[int, int], built: Built) -> list[dict[str, Any]]:
    """The annotations that have a mask, once they are known to fit the image."""
    kept = []
    for annotation in item.record["segments_info"]:
        where = f"image {item.image}, annotation {annotation['id']!r}"
        box, segmentation = annotation.get("bbox"), annotation.get("segmentation", [])
        if not isinstance(box, list) or len(box) != 4 or not _finite(box):
            raise SampleError("annotation_malformed", f"{where}: bbox {box!r} is not [x, y, width, height]")
        if isinstance(segmentation, dict):
            if segmentation.get("size") != [size[1], size[0]] or "counts" not in segmentation:
                found = segmentation.get("size")
                raise SampleError("size_mismatch", f"{where}: RLE of size {found}, the image's is {[size[1], size[0]]}")
            counts = segmentation["counts"]
            if isinstance(counts, list) and (not _finite(counts) or sum(counts) != size[0] * size[1]):
                raise SampleError("annotation_malformed", f"{where}: the RLE's counts do not add up to the image")
        elif isinstance(segmentation, list):
            usable = _polygons(segmentation)
            if len(usable) < len(segmentation):
                unusable = len(segmentation) - len(usable)
                built.warnings.append(("polygon_unusable", f"{where}: under three points, left out", unusable))
            segmentation = usable
        else:
            raise SampleError("annotation_malformed", f"{where}: segmentation is neither polygons nor RLE")
        if segmentation:
            kept.append({**annotation, "segmentation": segmentation})
        else:
            built.warnings.append(("annotation_without_mask", f"{where}: has no mask, left out", 1))
    if not kept:
        raise SampleError("no_masks", f"image {item.image}: none of its annotations has a mask")
    return kept


def _json(value: dict[str, Any], item: Item) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise SampleError("annotation_malformed", f"image {item.image}: {error} (NaN or infinity)") from None


def build(item: Item, layout: str) -> Built:
    """Checks an item's files and makes its sample."""
    built = Built()
    try:
        image, extension, (width, height) = _check_image(item)
        mask = None if item.mask is None else _check_panoptic(item, (width, height), built)
        segments = item.record["segments_info"] if mask is not None else _check_instances(item, (width, height), built)
        record = {**item.record, "width": width, "height": height, "segments_info": segments}
        if layout == "published":
            published = {"image_base64": base64.b64encode(image).decode(), "segments_info": segments}
            if mask is None:
                published |= {"width": width, "height": height}
            else:
                published["pan_base64"] = base64.b64encode(mask).decode()
            built.members = [("json", _json(published, item))]
        else:
            built.members = [(extension, image), *([] if mask is None else [("png", mask)])]
            built.members.append(("json", _json(record, item)))
    except SampleError as error:
        return Built(reason=error.reason, message=str(error))
    return built
