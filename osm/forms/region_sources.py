"""Files of regions with phrases, brought into one form: {images, annotations: [{id, image_id, phrases, ...}]}.

Which file it is shows in its shape: Visual Genome's region descriptions or objects (a list of images with `regions` or
`objects`), a json in COCO's form whose annotations have a phrase, or RefCOCO's instances with a json of its refs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import read_json
from osm.forms.base import SetFiles
from osm.forms.coco_json import Annotation
from osm.io.values import truth

PHRASE_FIELDS = ("phrase", "phrases", "caption", "names", "name")
MAX_PHRASE = 300  # characters; what is trained has room for 32 tokens
MAX_PHRASES = 100
_VG_FOLDERS = ("VG_100K", "VG_100K_2")
_PICKLES = (".p", ".pkl", ".pickle")
_NAME = re.compile(r"[\w-]{1,100}")
_EXPECTED = (
    "expected a list of images with their regions ([{id, regions: [{region_id, x, y, width, height, phrase}]}]) or "
    "objects ([{image_id, objects: [{object_id, x, y, w, h, names}]}]), or an object {images, annotations}"
)


def read_regions(files: SetFiles) -> tuple[dict[str, Any], str]:
    """The document of a set's regions and a hash of what it was read from.

    Raises:
        OsmError: a file is missing, of another shape, a pickle, or has no such split.
    """
    path, flag = Path(str(files.json_file)), files.flag.format("json_file")
    _refuse_pickle(path, files.where("json_file"))
    document, sha256 = read_json(path, flag, nesting=None)
    if files.more.get("refs_file") is not None:
        return _with_refs(files, document, sha256)
    if files.more.get("split") is not None:
        raise OsmError(f"{files.where('split')}: is one of --refs_file, which is not given")
    if isinstance(document, list):
        return _visual_genome(files, document), sha256
    _check_coco(files, document)
    rows = [row for row in document["annotations"] if isinstance(row, dict)]
    if rows and not any(field in row for row in rows for field in PHRASE_FIELDS):
        raise OsmError(
            f"{files.where('json_file')}: none of its {len(rows)} annotations has a phrase "
            f"({', '.join(PHRASE_FIELDS)}); with categories it is of the form coco_instances or boxes"
        )
    return document, sha256


def phrases_of(row: Annotation) -> tuple[str, ...]:
    """What is said of a region, in lower case, each once: what is trained, then what is right as well."""
    return next((found for field in PHRASE_FIELDS if (found := plain_phrases(row.get(field)))), ())


def plain_phrases(value: Any) -> tuple[str, ...]:
    """The phrases of a text or a list of texts; what is empty, too long or no text is none."""
    values = value[: 10 * MAX_PHRASES] if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str) and len(text) <= MAX_PHRASE]
    plain = dict.fromkeys(" ".join(text.lower().split()) for text in texts)
    return tuple(text for text in plain if text)[:MAX_PHRASES]


def phrase_lists(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every distinct list of phrases, sorted."""
    rows = (row for row in document["annotations"] if isinstance(row, dict) and not truth(row.get("iscrowd")))
    return sorted({found for row in rows if (found := phrases_of(row))})


def _check_coco(files: SetFiles, document: Any) -> None:
    for name in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise OsmError(f"{files.where('json_file')}: {_EXPECTED}; found {shown(document)}")


# Visual Genome.


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
        listed = item.pop(rows, None)  # the file's own lists are not kept beside what is made of them
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


# RefCOCO.


def _with_refs(files: SetFiles, document: Any, sha256: str) -> tuple[dict[str, Any], str]:
    _check_coco(files, document)
    path, split = Path(str(files.more["refs_file"])), files.more.get("split")
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
    of = masks.get(_key(ref.get("ann_id")), {})
    sentences = ref.get("sentences")
    said = [_sentence(one) for one in sentences] if isinstance(sentences, list) else []
    row = {"image_id": of.get("image_id", ref.get("image_id")), "phrases": said}
    row |= {name: of[name] for name in ("segmentation", "bbox") if name in of}
    return row | ({"id": ref["ref_id"]} if "ref_id" in ref else {})


def _sentence(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("sent") or value.get("raw")
    return value


def _key(value: Any) -> str:
    """An id by its value: 1 and "1" are one."""
    return str(value)


def _refuse_pickle(path: Path, where: str) -> None:
    if path.suffix.lower() in _PICKLES:
        raise OsmError(
            f"{where}: is a Python pickle, which can run anything when it is loaded, so it is not read here; where you "
            'trust it, make a json of it: python -c "import json, pickle, sys; '
            f"json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))\" '{path.name}' refs.json"
        )


__all__ = ["MAX_PHRASE", "PHRASE_FIELDS", "phrase_lists", "phrases_of", "plain_phrases", "read_regions"]
