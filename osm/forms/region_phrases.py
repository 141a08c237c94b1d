"""Regions: boxes or masks with phrases instead of a category.

A sample's JSON is {file_name, image_id, width, height, segments_info: [{id, iscrowd, phrases, bbox or segmentation}]}.
A region's first phrase is the training target, and its other phrases also count as correct names.
Because evaluation needs classes, each distinct list of phrases is treated as a class.

Three kinds of files are supported and are recognized by their structure: region descriptions or objects of Visual
Genome (a list of images with `regions` or `objects`), a JSON file in COCO format whose annotations have phrases, and
RefCOCO's instances with a second JSON file of referring expressions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osm.datasets.labels import LabelClass, LabelSet
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError, shown
from osm.files import read_json
from osm.forms.base import Listing, Losses, Segment, SetFiles, Target, is_crowd
from osm.forms.coco_json import Annotation, CocoJson, ImageAnnotations
from osm.forms.instances import Instances, box_in_view, corners, draw_box, usable_box
from osm.forms.picture import Size
from osm.forms.set_files import localize_files
from osm.forms.split import set_files
from osm.io.values import truth
from osm.storage.locations import public

if TYPE_CHECKING:  # osm.io.views imports torch, which converters do not need
    from osm.io.views import View

PHRASE_FIELDS = ("phrase", "phrases", "caption", "names", "name")
MAX_PHRASE = 300  # in characters; for comparison, a training target has at most 32 tokens
MAX_PHRASES = 100
_VG_FOLDERS = ("VG_100K", "VG_100K_2")
_PICKLES = (".p", ".pkl", ".pickle")
_NAME = re.compile(r"[\w-]{1,100}")
_EXPECTED = (
    "expected a list of images with their regions ([{id, regions: [{region_id, x, y, width, height, phrase}]}]) or "
    "objects ([{image_id, objects: [{object_id, x, y, w, h, names}]}]), or an object {images, annotations}"
)
_SHAPES = ("segmentation", "bbox")


class Regions(Instances):
    """An image whose regions have phrases. A region without a segmentation is treated as a box."""

    name: ClassVar[str] = "regions"
    phrased: ClassVar[bool] = True
    what: ClassVar[str] = "regions with phrases, of Visual Genome, RefCOCO or a COCO-like json"
    more_arguments: ClassVar[tuple[str, ...]] = ("refs_file", "split")

    def _read(self, entries: Any) -> list[tuple[int, Annotation]]:
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise SampleError("bad_json", "segments_info: expected a list of regions")
        found = []
        for place, entry in enumerate(entries):
            if is_crowd(entry):
                continue
            phrases = plain_phrases(entry.get("phrases"))
            if not phrases or not any(entry.get(shape) for shape in _SHAPES):
                message = f"segments_info: a region needs phrases and a segmentation or bbox, found {shown(entry)}"
                raise SampleError("bad_json", message)
            found.append((place, {**entry, "phrases": phrases}))
        return found

    def _segment(self, mask: np.ndarray, entry: Annotation) -> Segment:
        return Segment(mask, LabelClass(_category(entry), entry["phrases"]), _is_box(entry))

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        entry = self.entries[number]
        if _is_box(entry):
            return box_in_view(self._corners(entry), view, (self.height, self.width))
        return super()._mask(number, view)

    def _corners(self, entry: Annotation) -> tuple[int, int, int, int]:
        return corners(entry["bbox"], (self.width, self.height), "segments_info")

    def _draw(self, entry: Annotation) -> np.ndarray:
        if _is_box(entry):
            return draw_box(self._corners(entry), (self.height, self.width))
        return super()._draw(entry)

    def targets(self) -> list[Target]:
        return [
            Target(place, _category(entry), partial(self._draw, entry), _is_box(entry))
            for place, entry in self.segments
        ]

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--image_dir", required=True, help="folder of the images; for Visual Genome, the parent folder of VG_100K"
        )
        parser.add_argument("--json_file", required=True, help="json of the regions; its structure shows the format")
        parser.add_argument("--refs_file", help="for RefCOCO: json of the refs; json_file is then its instances.json")
        parser.add_argument("--split", help="split of the refs to convert: train, val, testA, ...")

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        """Return one class per distinct list of phrases in the JSON file, or no classes if there is no such file."""
        if row.json_file is None:
            return LabelSet("the phrases of the shards", {})
        lists = phrase_lists(read_regions(localize_files(set_files(row), cls))[0])
        return LabelSet(public(row.json_file), {i: LabelClass(i, phrases) for i, phrases in enumerate(lists, 1)})

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        source = CocoJson(files, LabelSet(str(files.json_file), {}), read_regions(files))
        ids = {} if labels is None else {one.names: i for i, one in labels.classes.items()}
        seen = 0

        def read_row(where: str, row: Annotation, collected: ImageAnnotations) -> None:
            nonlocal seen
            own_id = row.get("id")
            own: Annotation = {"id": own_id if isinstance(own_id, (int, str)) else seen, "iscrowd": int(is_crowd(row))}
            phrases, shape = phrases_of(row), {name: row[name] for name in _SHAPES if row.get(name)}
            own |= {"phrases": list(phrases)} | ({"category_id": ids[phrases]} if phrases in ids else {})
            seen += 1
            # Evaluation needs the original masks and boxes. Converters leave them out to save memory.
            collected.raw.append(own if labels is None else {**own, "image_id": row.get("image_id"), **shape})
            if not phrases and not own["iscrowd"]:
                raise SampleError("phrase_missing", f"{where}: {_why_none(row)}")
            if "segmentation" in shape:
                shape.pop("bbox", None)
            collected.segments.append(own | shape)
            collected.places.append(len(collected.raw) - 1)

        found = source.by_image(read_row)
        listing = source.listing(found)
        more = {name: value for name, value in files.extra_fields.items() if value is not None}
        if "refs_file" in more:
            more["refs_file"] = files.recorded("refs_file")
        listing.arguments.update(more)
        return listing

    @classmethod
    def wrong_class(cls, annotation: Mapping[str, Any], label: LabelClass) -> str:
        """Return an error message if a prediction's phrases differ from those of its category id, else an empty string.

        Category ids of phrases are assigned per JSON file, so the same id may stand for different phrases in different
        files.
        """
        if plain_phrases(annotation.get("phrases")) == label.names:
            return ""
        found = f"phrases {shown(annotation.get('phrases'))}, but category_id {label.id} is {shown(label.names)}"
        return f"{found}: the json_file is not the one used for prediction"

    @classmethod
    def _usable(cls, annotation: Annotation, size: Size, where: str, losses: Losses) -> Annotation:
        if "segmentation" in annotation:
            return super()._usable(annotation, size, where, losses)
        if "bbox" not in annotation:
            raise SampleError("annotation_without_mask", f"{where}: has neither a segmentation nor a bbox")
        return {**annotation, "bbox": usable_box(annotation["bbox"], size, where)}


def _is_box(entry: Annotation) -> bool:
    return not entry.get("segmentation")


def _category(entry: Annotation) -> int:
    """Return a region's category id, or 0 for a region read from a shard, because shards store no region classes."""
    category = entry.get("category_id")
    return category if type(category) is int else 0


def _why_none(row: Annotation) -> str:
    given = {field: row[field] for field in PHRASE_FIELDS if field in row}
    return f"has no phrase of 1 to {MAX_PHRASE} characters ({shown(given) if given else 'it has no field for phrases'})"


def read_regions(files: SetFiles) -> tuple[dict[str, Any], str]:
    """Read a dataset's region file and convert its content to a document {images, annotations}.

    Returns:
        the document and a hash of the files that were read.

    Raises:
        OsmError: a file is missing, has an unsupported structure, is a pickle, or does not contain the split.
    """
    path, flag = Path(str(files.json_file)), files.flag.format("json_file")
    _refuse_pickle(path, files.where("json_file"))
    document, sha256 = read_json(path, flag, nesting=None)
    if files.extra_fields.get("refs_file") is not None:
        return _with_refs(files, document, sha256)
    if files.extra_fields.get("split") is not None:
        raise OsmError(f"{files.where('split')}: requires --refs_file, which was not given")
    if isinstance(document, list):
        return _visual_genome(files, document), sha256
    _check_coco(files, document)
    rows = [row for row in document["annotations"] if isinstance(row, dict)]
    if rows and not any(field in row for row in rows for field in PHRASE_FIELDS):
        raise OsmError(
            f"{files.where('json_file')}: none of the {len(rows)} annotations has a phrase "
            f"({', '.join(PHRASE_FIELDS)}); if they have categories, use the annotation format coco_instances or boxes"
        )
    return document, sha256


def phrases_of(row: Annotation) -> tuple[str, ...]:
    """Return a region's distinct phrases in lower case. The first phrase is the training target."""
    return next((found for field in PHRASE_FIELDS if (found := plain_phrases(row.get(field)))), ())


def plain_phrases(value: Any) -> tuple[str, ...]:
    """Return the phrases in a string or list of strings, ignoring values that are empty, too long or not strings."""
    values = value[: 10 * MAX_PHRASES] if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str) and len(text) <= MAX_PHRASE]
    plain = dict.fromkeys(" ".join(text.lower().split()) for text in texts)
    return tuple(text for text in plain if text)[:MAX_PHRASES]


def phrase_lists(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the distinct lists of phrases in a converted region file, sorted."""
    rows = (row for row in document["annotations"] if isinstance(row, dict) and not truth(row.get("iscrowd")))
    return sorted({found for row in rows if (found := phrases_of(row))})


def _check_coco(files: SetFiles, document: Any) -> None:
    for name in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise OsmError(f"{files.where('json_file')}: {_EXPECTED}; found {shown(document)}")


# -- Visual Genome -----------------------------------------------------------------------------------------------------


def _visual_genome(files: SetFiles, document: list[Any]) -> dict[str, Any]:
    lists = Counter(name for item in document if isinstance(item, dict) for name in _VG_ROWS if name in item)
    if not lists:
        raise OsmError(f"{files.where('json_file')}: {_EXPECTED}; found {shown(document)}")
    rows = max(_VG_ROWS, key=lists.__getitem__)
    shape = _VG_ROWS[rows]
    where = {name: f"{part}/{name}" for part in _VG_FOLDERS for name in _names_in(files, part)}
    images: dict[Any, dict[str, Any]] = {}
    annotations: list[Any] = []
    for item in document:
        if not isinstance(item, dict):
            annotations.append(item)
            continue
        image_id = item.get("image_id", item.get("id"))
        if isinstance(image_id, bool) or not isinstance(image_id, (int, str)) or not _NAME.fullmatch(str(image_id)):
            image_id = None
        else:
            name = f"{image_id}.jpg"
            images.setdefault(image_id, {"id": image_id, "file_name": where.get(name, name)})
        listed = item.pop(rows, None)  # frees the original list while the converted list grows
        for row in listed if isinstance(listed, list) else ():
            annotations.append(shape(row, image_id) if isinstance(row, dict) else row)
    return {"images": list(images.values()), "annotations": annotations}


def _region(row: Annotation, image_id: Any) -> Annotation:
    box = [row.get(side) for side in ("x", "y", "width", "height")]
    return _vg_row(row, "region_id", image_id, box) | {"phrases": row.get("phrase")}


def _object(row: Annotation, image_id: Any) -> Annotation:
    box = [row.get(side) for side in ("x", "y", "w", "h")]
    return _vg_row(row, "object_id", image_id, box) | {"phrases": row.get("names")}


_VG_ROWS = {"regions": _region, "objects": _object}


def _vg_row(row: Annotation, id_key: str, image_id: Any, box: list[Any]) -> Annotation:
    found = {"image_id": image_id, "bbox": box}
    return found | ({"id": row[id_key]} if id_key in row else {})


def _names_in(files: SetFiles, part: str) -> list[str]:
    if "image_dir" in files.folders:
        listed = files.listed("image_dir") or ()
        return sorted(name.removeprefix(f"{part}/") for name in listed if name.startswith(f"{part}/"))
    folder = Path(files.image_dir) / part
    return sorted(os.listdir(folder)) if folder.is_dir() else []


# -- RefCOCO -----------------------------------------------------------------------------------------------------------


def _with_refs(files: SetFiles, document: Any, sha256: str) -> tuple[dict[str, Any], str]:
    _check_coco(files, document)
    path, split = Path(str(files.extra_fields["refs_file"])), files.extra_fields.get("split")
    _refuse_pickle(path, files.where("refs_file"))
    refs, refs_sha256 = read_json(path, files.flag.format("refs_file"), nesting=None)
    if not isinstance(refs, list):
        expected = "expected a list of {ref_id, ann_id, image_id, sentences, split}"
        raise OsmError(f"{files.where('refs_file')}: {expected}; found {shown(refs)}")
    splits = {ref["split"] for ref in refs if isinstance(ref, dict) and isinstance(ref.get("split"), str)}
    if split not in splits:
        flag = files.flag.format("split")
        raise OsmError(f"{flag} {shown(split)}: expected one of {', '.join(sorted(splits)) or '(the refs have none)'}")
    masks = {_key(row.get("id")): row for row in document["annotations"] if isinstance(row, dict)}
    annotations = [
        _ref(ref, masks) if isinstance(ref, dict) else ref
        for ref in refs
        if not isinstance(ref, dict) or ref.get("split") == split
    ]
    used = {_key(row["image_id"]) for row in annotations if isinstance(row, dict)}
    images = [row for row in document["images"] if not isinstance(row, dict) or _key(row.get("id")) in used]
    digest = hashlib.sha256(f"{sha256} {refs_sha256} {split}".encode()).hexdigest()
    return {"images": images, "annotations": annotations}, digest


def _ref(ref: Annotation, masks: dict[str, Annotation]) -> Annotation:
    annotation = masks.get(_key(ref.get("ann_id")), {})
    sentences = ref.get("sentences")
    phrases = [_sentence(one) for one in sentences] if isinstance(sentences, list) else []
    row = {"image_id": annotation.get("image_id", ref.get("image_id")), "phrases": phrases}
    row |= {name: annotation[name] for name in ("segmentation", "bbox") if name in annotation}
    return row | ({"id": ref["ref_id"]} if "ref_id" in ref else {})


def _sentence(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("sent") or value.get("raw")
    return value


def _key(value: Any) -> str:
    """Convert an id to a string, so that 1 and "1" become the same key."""
    return str(value)


def _refuse_pickle(path: Path, where: str) -> None:
    if path.suffix.lower() in _PICKLES:
        raise OsmError(
            f"{where}: is a Python pickle, which can run arbitrary code when it is loaded, so it is not read; "
            'if you trust it, convert it to JSON: python -c "import json, pickle, sys; '
            f"json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))\" '{path.name}' refs.json"
        )


__all__ = ["MAX_PHRASE", "Regions"]
