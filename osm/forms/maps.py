"""Annotation formats whose masks are label maps without a JSON file: semantic and part segmentation datasets."""

from __future__ import annotations

import argparse
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osm.datasets.labels import LabelSet, load_labels
from osm.datasets.table import Rules
from osm.errors import OsmError, SampleError
from osm.forms.base import (
    MIN_PIXELS,
    Entry,
    Form,
    Listing,
    Losses,
    Segment,
    SetFiles,
    Size,
    Target,
    member,
)
from osm.forms.pascal_part import draw_maps
from osm.forms.set_files import LABEL_MAP_SUFFIXES, distinct_ids, files_by_stem, names_digest, read_label_map
from osm.io.images import SUFFIXES, read_ids, read_panoptic
from osm.io.values import whole
from osm.storage.locations import is_remote, join, sibling

if TYPE_CHECKING:  # osm.io.views imports torch, which converters do not need
    from osm.io.views import Cut, View

IGNORED_ID = 65535
_VOID = 255  # in 8-bit maps, the id of pixels without a class
_BLANK = frozenset({0, _VOID})  # ids that mean "no class" unless the labels contain them


class LabelMaps(Form):
    """An image and a label map with the same file name. All pixels with the same id form one mask."""

    needs: ClassVar[tuple[str, ...]] = ("image_dir", "mask_dir")
    image_needs: ClassVar[tuple[str, ...]] = ("image_dir",)
    masks_field: ClassVar[str] = "mask_dir"
    fine: ClassVar[frozenset[str]] = frozenset({"nothing_labelled"})
    category_key: ClassVar[str] = "mask_unique_id"
    unknown_is_lost: ClassVar[bool] = True
    id_key: ClassVar[str] = "mask_unique_id"

    def targets(self) -> list[Target]:
        ids = self.map_to_name
        return [Target(place, i, partial(np.equal, ids, i)) for place, i in enumerate(self.ids_to_name)]

    @property
    @abstractmethod
    def map_to_name(self) -> np.ndarray:
        """The label map (H, W) that contains the masks to name in a val split."""

    @cached_property
    def ids_to_name(self) -> list[int]:
        """The class ids that occur in `map_to_name`, in ascending order."""
        return [i for i in distinct_ids(self.map_to_name) if self._is_class(i)]

    def _is_class(self, i: int) -> bool:
        return i in self.labels and i not in self.rules.ignored_ids

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        return [str(folder) for folder in (files.image_dir, files.ann_dir) if folder and is_remote(folder)]

    # -- prediction files --------------------------------------------------------------------------------------------

    @classmethod
    def images(cls, files: SetFiles) -> tuple[list[Entry], str]:
        found = files_by_stem(files.where("image_dir"), Path(files.image_dir), SUFFIXES)
        entries = [Entry(path, {}, {"file_name": path.name, "image_id": stem}) for stem, path in found.items()]
        return entries, names_digest(path.name for path in found.values())

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: entry.image.name)

    @classmethod
    def words(cls, entry: Entry) -> tuple[Any, list[dict[str, Any]]]:
        annotations: list[dict[str, Any]] = []  # filled by the split, because the ids are only in the pixels
        return {"file_name": entry.record["file_name"], "pred": annotations}, annotations

    @classmethod
    def key_of(cls, entry: Entry) -> Hashable:
        return str(entry.record["file_name"])

    @classmethod
    def outline(cls, entry: Entry) -> list[tuple[Hashable, Hashable]] | None:
        return None  # finding the ids would require reading gigabytes of label maps

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        for entry in document["pred"]:
            yield entry.get("file_name"), entry["pred"]


class Semantic(LabelMaps):
    """A label map whose pixels are category ids."""

    name: ClassVar[str] = "semantic"
    what: ClassVar[str] = "a semantic dataset: images, and TIFFs or PNGs of class ids (8 or 16 bits)"
    more_arguments: ClassVar[tuple[str, ...]] = ("ignored_ids",)
    masks: ClassVar[str] = "label maps"
    mask_members: ClassVar[Mapping[str, str]] = {"tif": "seg_base64", "png": "seg_base64"}

    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        self._check_size(document)
        self._ids = self._map(read_ids(member(members, document, "seg_base64", ("tif", "png"))))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        cut = view.cut(self._ids)
        areas = cut.areas()
        unknown = [i for i in areas if i not in self.rules.ignored_ids and i not in self.labels]
        if unknown and not self.has_segments():
            raise SampleError(
                "unknown_category",
                f"id {unknown[0]} of the label map is neither in the label set {self.labels.source} nor ignored",
            )
        return _draw(cut, _counting(areas, self.labels, self.rules), self.labels, count, rng)

    def has_segments(self) -> bool:
        return bool(self.ids_to_name)

    @property
    def map_to_name(self) -> np.ndarray:
        return self._ids

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="folder of the images")
        parser.add_argument("--ann_dir", required=True, help=f"folder of the label maps; {IGNORED_ID} is no class")
        parser.add_argument("--json_file", help="accepted, but not used")
        parser.add_argument("--labels", help="table or json of class names; ids without a name are counted as unusable")
        parser.add_argument(
            "--ignored_ids",
            default="",
            metavar="ID,ID",
            help="further ids without a class; 65535 has none, and 0 and (8 bits) 255 only have one if labels do",
        )

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        images = files_by_stem(files.where("image_dir"), Path(files.image_dir), SUFFIXES)
        maps = files_by_stem(files.where("ann_dir"), Path(str(files.ann_dir)), LABEL_MAP_SUFFIXES)
        entries = []
        for stem in sorted(images.keys() | maps.keys()):
            image = images.get(stem, Path(files.image_dir) / f"{stem}.jpg")
            masks = {"tif": maps.get(stem, Path(str(files.ann_dir)) / f"{stem}.tif")}
            entries.append(Entry(image, masks, {"file_name": image.name}))
        _numbers(files)
        given = None if files.labels is None else load_labels(files.labels)
        return Listing(
            entries,
            _digest_of(entries, files),
            None if given is None else categories(given),
            {
                "form": files.name,
                "image_dir": files.recorded("image_dir"),
                "ann_dir": files.recorded("ann_dir"),
                "labels": files.urls.get("labels", files.labels),
                **({"ignored_ids": files.extra_fields["ignored_ids"]} if files.extra_fields.get("ignored_ids") else {}),
                "files_sha256": names_digest(path.name for path in [*images.values(), *maps.values()]),
            },
        )

    @classmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        path = entry.masks["tif"]
        data, form, ids = read_label_map(path, entry.image, size)
        given = _numbers(files)
        ids -= {IGNORED_ID, *given}
        if files.labels is not None:
            known = known_ids(files.labels)
            ids -= (_BLANK if max(ids, default=0) <= _VOID else {0}) - known
            strange = sorted(ids - known - set(files.row.ignored_ids))
            ids -= set(strange)
            if strange:
                message = f"mask {path}: ids {strange[:5]} are not in the labels {files.labels} and are ignored"
                losses.add("id_not_in_labels", message, len(strange))
        if not ids:
            raise SampleError("nothing_labelled", f"mask {path}: no pixel has a class")
        return {"tif" if form == "TIFF" else "png": data}, None, tuple(range(len(ids)))


def _numbers(files: SetFiles) -> list[int]:
    """Return the ids given by --ignored_ids. Raises OsmError if an id is not an integer."""
    given = [whole(text) for text in str(files.extra_fields.get("ignored_ids") or "").split(",") if text.strip()]
    if None in given:
        raise OsmError(f"{files.where('ignored_ids')} is not a list of ids, such as 0,255")
    return [number for number in given if number is not None]


class Parts(LabelMaps):
    """An image with a label map of object parts and, optionally, a label map of whole objects.

    Ids that are not in the label tables are ignored. During training, the number of whole objects among a crop's
    segments is random. In a val split, only parts are named.
    """

    name: ClassVar[str] = "parts"
    what: ClassVar[str] = "label maps of parts and of whole objects, as in PartImageNet"
    masks: ClassVar[str] = "PNGs of parts, or .mat files of Pascal-Part"
    more_arguments: ClassVar[tuple[str, ...]] = ("split",)
    mask_members: ClassVar[Mapping[str, str]] = {"part.png": "part_seg_base64", "whole.png": "whole_seg_base64"}

    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        self._check_size(document)
        read = read_panoptic if self.rules.id_coding == "rgb" else read_ids
        self._parts = self._map(read(member(members, document, "part_seg_base64", ("part.png",))))
        self._whole: np.ndarray | None = None
        if self.rules.whole_labels is not None:
            self._whole = self._map(read(member(members, document, "whole_seg_base64", ("whole.png",))))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        if self._whole is None or whole_prob == 0:
            return self._pick_parts(view, count, rng)
        wanted = int(rng.binomial(count, whole_prob))  # the number of whole objects
        picked = self._pick_whole(view, wanted, rng) if wanted else []
        if picked or wanted < count:  # if there are fewer objects than wanted, more parts are picked
            picked += self._pick_parts(view, count - len(picked), rng)
        if not picked and fixed_view:
            picked = self._pick_parts(view, count, rng) or self._pick_whole(view, count, rng)
        return picked

    def _pick_parts(self, view: View, count: int, rng: np.random.Generator) -> list[Segment]:
        if not count:
            return []
        cut = view.cut(self._parts)
        return _draw(cut, _counting(cut.areas(), self.labels, self.rules), self.labels, count, rng)

    def _pick_whole(self, view: View, count: int, rng: np.random.Generator) -> list[Segment]:
        labels = self.rules.whole_labels
        assert labels is not None and self._whole is not None
        cut = view.cut(self._whole)
        return _draw(cut, _counting(cut.areas(), labels, self.rules), labels, count, rng, whole=True)

    def has_segments(self) -> bool:
        return bool(self.ids_to_name) or bool(self._objects)

    @property
    def map_to_name(self) -> np.ndarray:
        return self._parts

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """Return the name of a part.

        With probability `prepend_prob`, the kind of object in the part's name is replaced by the object's class name,
        so "quadruped head" becomes "impala head".

        Raises:
            SampleError: `not_one_object` if the map of whole objects has no object class or several.
        """
        label, labels = segment.label, self.rules.whole_labels
        named_so = label.supercategory and label.target.startswith(label.supercategory)
        if labels is None or segment.whole or not named_so or rng.random() >= prepend_prob:
            return label.target
        if len(self._objects) != 1:
            raise SampleError(
                "not_one_object",
                f"the map of whole objects contains {len(self._objects)} classes; expected exactly one",
            )
        return labels[self._objects[0]].target + label.target.removeprefix(label.supercategory)

    @cached_property
    def _objects(self) -> list[int]:
        """The classes of all whole objects in the image, even if they are not visible in a particular crop."""
        labels = self.rules.whole_labels
        if self._whole is None or labels is None:
            return []
        return [i for i in distinct_ids(self._whole) if i in labels and i not in self.rules.ignored_ids]

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="folder images; the folder annotations is beside it")
        parser.add_argument("--split", default="train", help="subfolder of images and annotations (default train)")

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        split = files.extra_fields.get("split")
        if split is None or not is_remote(files.image_dir):
            return super().whole_folders(files)
        beside = sibling(files.image_dir, "annotations")
        return [join(files.image_dir, split), join(beside, split), join(beside, f"{split}_whole")]

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        """List images and masks, either in PartImageNet's folder layout or in one image folder and one mask folder.

        If `--split` is given, the folders are `images/<split>`, `annotations/<split>` and `annotations/<split>_whole`,
        where `annotations` is next to `images`. Without `--split` (as in evaluation), `image_dir` contains the images,
        and `ann_dir` contains the part PNGs or .mat files. In evaluation, only parts are named.
        """
        split = files.extra_fields.get("split")
        if split is not None and (Path(split).name != split or split in ("", ".", "..")):
            raise OsmError(f"{files.flag.format('split')} {split!r}: expected the name of a subfolder, such as train")
        folder = files.folder("image_dir")
        arguments: dict[str, Any] = {"form": files.name, "image_dir": files.recorded("image_dir")}
        if split is None:
            parts = Path(str(files.ann_dir))
        else:
            # The folder `annotations` is next to `image_dir`. Symbolic links in `image_dir` are not resolved.
            parts = Path(os.path.abspath(folder)).parent / "annotations" / split
            folder, arguments = folder / split, arguments | {"split": split}
        if any(path.suffix.lower() == ".mat" for path in parts.glob("*")) and split is None:
            return _with_mats(files, folder, parts, arguments)
        images = files_by_stem(files.where("image_dir"), folder, SUFFIXES)
        beside = {"part.png": parts}
        if split is not None:
            beside["whole.png"] = parts.with_name(f"{parts.name}_whole")
        where = files.where("ann_dir" if split is None else "image_dir")
        maps = {member: files_by_stem(where, at, (".png",)) for member, at in beside.items()}
        entries = []
        for stem in sorted(images.keys() | maps["part.png"].keys()):
            image = images.get(stem, folder / f"{stem}.JPEG")
            masks = {member: maps[member].get(stem, at / f"{stem}.png") for member, at in beside.items()}
            entries.append(Entry(image, masks, {"file_name": image.name}))
        names = [path.name for path in images.values()]
        names += [f"{member}/{path.name}" for member, found in maps.items() for path in found.values()]
        arguments["files_sha256"] = names_digest(names)
        return Listing(entries, _digest_of(entries, files), categories(files.row.label_set), arguments)

    @classmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        if "mat" in entry.masks:
            return draw_maps(entry, size, losses, known_ids(files.row.labels), files.row.id_coding), None, (0,)
        tables = {"part.png": files.row.labels, "whole.png": files.row.whole_labels or files.row.labels}
        members: dict[str, bytes] = {}
        known: set[int] = set()
        for name, path in entry.masks.items():
            members[name], form, ids = read_label_map(path, entry.image, size)
            if form != "PNG":
                raise SampleError("mask_not_png", f"mask {path}: is a {form}; a PNG is needed")
            known |= ids & known_ids(tables[name])
        if not known:
            raise SampleError(
                "nothing_labelled",
                f"mask {entry.masks['part.png']}: no pixel has the id of a part or object in the label tables",
            )
        return members, None, tuple(range(len(known)))


class PascalParts(Parts):
    """An image from Pascal-Part: a VOC2010 image, and a .mat file with the masks of objects and their parts.

    A sample stores one label map of parts and one of objects, both as PNGs with id = R + 256 G + 65536 B. Id 0 is the
    background. Where masks overlap, later masks overwrite earlier ones.
    """

    what: ClassVar[str] = "Pascal-Part"
    fine: ClassVar[frozenset[str]] = frozenset({"no_part_masks"})
    more_arguments: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="folder JPEGImages of VOC2010")
        parser.add_argument("--ann_dir", required=True, help="folder of the .mat files (Annotations_Part)")

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        folder = Path(files.image_dir)
        return _with_mats(files, folder, Path(str(files.ann_dir)), {"form": files.name})


def _with_mats(files: SetFiles, folder: Path, mat_folder: Path, arguments: dict[str, Any]) -> Listing:
    images = files_by_stem(files.where("image_dir"), folder, (".jpg", ".jpeg"))
    mats = files_by_stem(files.where("ann_dir"), mat_folder, (".mat",))
    entries = []
    for stem, mat in mats.items():
        image = images.get(stem, folder / f"{stem}.jpg")
        entries.append(Entry(image, {"mat": mat}, {"file_name": image.name}))
    unannotated = len(images.keys() - mats.keys())  # half of the images of VOC2010
    arguments = {
        **arguments,
        "image_dir": files.recorded("image_dir"),
        "ann_dir": files.recorded("ann_dir"),
        "files_sha256": names_digest(path.name for path in [*images.values(), *mats.values()]),
    }
    left_out = Counter({"no_mat_file": unannotated} if unannotated else {})
    listed = categories(files.row.label_set)
    return Listing(entries, _digest_of(entries, files), listed, arguments, left_out=left_out)


def categories(labels: LabelSet) -> list[dict[str, Any]]:
    """Return the classes in the format of `categories.json`."""
    return [
        {"id": one.id, "name": one.target, "synonyms": list(one.names[1:]), "isthing": int(one.isthing)}
        for one in labels.classes.values()
    ]


@lru_cache(maxsize=8)
def known_ids(labels: str) -> frozenset[int]:
    """Return the class ids in a label table or label file. The result is cached."""
    return frozenset(load_labels(labels).classes)


def _digest_of(entries: list[Entry], files: SetFiles) -> str:
    """Hash only file names and sizes, because hashing gigabytes of label maps would take too long."""
    listing = [
        f"{entry.image.name} {mask.name} {mask.stat().st_size if mask.exists() else 0}"
        for entry in entries
        for mask in list(entry.masks.values())[:1]
    ]
    return names_digest([*listing, f"ignored {sorted(files.row.ignored_ids)}"])


def _counting(areas: Mapping[int, int], labels: LabelSet, rules: Rules) -> list[int]:
    return [i for i, area in areas.items() if area > MIN_PIXELS and i in labels and i not in rules.ignored_ids]


def _draw(
    cut: Cut, ids: list[int], labels: LabelSet, count: int, rng: np.random.Generator, whole: bool = False
) -> list[Segment]:
    """Return the segments for up to `count` randomly chosen ids."""
    order = rng.permutation(len(ids))[:count]
    return [Segment(cut.enlarge(cut.labels == ids[i]), labels[ids[i]], whole=whole) for i in order]


__all__ = ["IGNORED_ID", "LabelMaps", "Parts", "PascalParts", "Semantic", "categories", "known_ids"]
