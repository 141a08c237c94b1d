"""Label sets: which names a dataset's category ids have.

One format for the project's own tables (`osm/datasets/labels/*.json`), a COCO or LVIS json, and a user's file: a json
object with `categories`, each with an `id`, a `name`, and optionally `synonyms` (all accepted names), `isthing`, for
parts of objects `supercategory`, the kind of object that the part's name starts with, and `frequency` (r, c or f, as in
LVIS).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError, shown
from osm.files import check_regular_file, read_text
from osm.io.csv_rows import csv_rows
from osm.io.name_lists import read_name_list
from osm.io.values import truth, whole
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public

LABEL_NAME = "label_name"
"""The field of a category that has the set's own sign for it, where its annotations have no ids."""
_TEXTS = (".txt", ".names", ".yaml", ".yml")
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's groups of classes: in 1 to 10, 11 to 100, and more than 100 training images."""


@dataclass(frozen=True)
class LabelClass:
    """One class. `names[0]` is the training target; all of `names` are accepted answers (lower case, stripped).

    `supercategory` (lower case) is the kind of object that a part belongs to, and `frequency` how often the class is in
    training images, as LVIS has it (`r`are, `c`ommon, `f`requent); both empty where the file does not tell.
    """

    id: int
    names: tuple[str, ...]
    isthing: bool = True
    supercategory: str = ""
    frequency: str = ""

    @property
    def target(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class LabelSet:
    """The classes of one dataset by category id."""

    source: str
    classes: Mapping[int, LabelClass]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every accepted name of every class (no plural forms)."""
        return frozenset(name for c in self.classes.values() for name in c.names)

    def __contains__(self, category_id: object) -> bool:
        return category_id in self.classes

    def __getitem__(self, category_id: int) -> LabelClass:
        try:
            return self.classes[category_id]
        except KeyError:
            raise OsmError(
                f"category_id {category_id!r} is not in the label set {self.source} ({len(self.classes)} ids)"
            ) from None

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping[str, Any]], source: str) -> LabelSet:
        """Builds a label set from a COCO json's `categories`.

        Raises:
            OsmError: an entry without an integer `id` or a `name`; a name or synonym that is no text; an id given
                twice; or no entry at all.
        """
        classes: dict[int, LabelClass] = {}
        for entry in categories:
            if not isinstance(entry, Mapping) or type(entry.get("id")) is not int or not entry.get("name"):
                raise OsmError(f"{source}: every category needs an integer 'id' and a 'name', found {shown(entry)}")
            where = f"{source}: category {entry['id']}"
            if not isinstance(entry["name"], str):
                raise OsmError(f"{where}: name {shown(entry['name'])} is not a text")
            if entry["id"] in classes:
                raise OsmError(f"{source}: category id {entry['id']} is given twice")
            synonyms = entry.get("synonyms") or []
            synonyms = [synonyms] if isinstance(synonyms, str) else synonyms
            if not isinstance(synonyms, list):
                raise OsmError(f"{where}: 'synonyms' has to be a list, found {shown(synonyms)}")
            odd = next((name for name in synonyms if not isinstance(name, str)), None)
            if odd is not None or None in synonyms:
                raise OsmError(f"{where}: synonym {shown(odd)} is not a text")
            spoken = [name.lower().strip() for name in [entry["name"], *synonyms]]
            names = tuple(dict.fromkeys(name for name in spoken if name))
            if not names:
                raise OsmError(f"{where} has a blank name")
            # Of the fields that few sets have, what is none of theirs counts as absent.
            kind, often, thing = entry.get("supercategory"), entry.get("frequency"), truth(entry.get("isthing", True))
            kind = kind.lower().strip() if isinstance(kind, str) else ""
            often = often if isinstance(often, str) and often in FREQUENCIES else ""
            classes[entry["id"]] = LabelClass(entry["id"], names, thing is not False, kind, often)
        if not classes:
            raise OsmError(f"{source}: 'categories' is empty, no class could be named")
        return cls(source, classes)


def clean_categories(rows: list[Any], source: str) -> list[dict[str, Any]]:
    """A json's `categories` with integer ids, each once; a class without a name is left out.

    Raises:
        OsmError: two classes have one id.
    """
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        blank = name is None or (isinstance(name, str) and not name.strip())
        if not isinstance(row, dict) or whole(row.get("id")) is None or blank:
            if isinstance(row, dict) and whole(row.get("id")) is not None:
                continue
            found[len(found), "malformed"] = row  # the label set names the fault
            continue
        number = whole(row["id"])
        if number in found and _same_name(found[number]["name"], name):  # jsons that were merged have entries twice
            continue
        key = number if number not in found else (len(found), "twice")
        found[key] = row if type(row["id"]) is int else {**row, "id": number}
    return list(found.values())


def _same_name(one: Any, other: Any) -> bool:
    both = (one, other)
    return one == other or (all(isinstance(name, str) for name in both) and one.strip() == other.strip())


def load_labels(source: str | Path) -> LabelSet:
    """Loads a label set.

    Args:
        source: the name of one of the project's tables (`coco`, `ade20k`, ...), or the path or URL of a file: a json
            with `categories`, a list of names, or an object of ids and names; a text (`.txt`, `.names`) or YAML with a
            list of names (see `osm.io.name_lists`); or a csv without a header, with a set's own sign and the name of
            a class a line (as Open Images has it). Names without ids count from 0; of a csv, an id is the number of the
            line.

    Raises:
        OsmError: no such table or file, or one that is not in the format.
    """
    return LabelSet.from_categories(read_categories(source), public(source))


def read_categories(source: str | Path) -> list[Any]:
    """The categories of a label file, not checked any further; see `load_labels`."""
    table = resources.files("osm.datasets") / "labels" / f"{source}.json"
    if Path(source).suffix == "" and not is_remote(source) and table.is_file():
        data = table.read_bytes()
    else:
        source = localize(source, "labels:")
        check_regular_file(source, "labels:")
        if Path(source).suffix.lower() in _TEXTS:
            return _categories_of_text(Path(source))
        if Path(source).suffix.lower() == ".csv":
            return _categories_of_csv(Path(source))
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise OsmError(
                f"labels: {str(source)!r} is neither a table of the project nor a readable json ({error})"
            ) from None
    try:
        document = parse_json(data)  # of bytes it takes UTF-8 and UTF-16, with their marks
    except ValueError as error:
        raise OsmError(f"labels: {source} is not valid json: {error}") from None
    return _categories_of_json(document, source)


def _categories_of_json(document: Any, source: str | Path) -> list[Any]:
    if isinstance(document, list) and document and all(isinstance(name, str) for name in document):
        return _numbered(document)
    if isinstance(document, list) and document and all(isinstance(one, dict) and "id" in one for one in document):
        return clean_categories(document, str(source))
    if isinstance(document, dict) and isinstance(document.get("id2label"), dict):
        document = document["id2label"]
    if isinstance(document, dict) and document and "categories" not in document:
        pairs = list(document.items())
        if all(whole(value) is not None for _, value in pairs):
            pairs = [(value, key) for key, value in pairs]
        if all(whole(key) is not None for key, _ in pairs):
            return [{"id": whole(key), "name": name} for key, name in pairs]
    if not isinstance(document, dict) or not isinstance(document.get("categories"), list):
        raise OsmError(
            f"labels: {source} has no list 'categories', and is neither a list of names nor an object of ids and names"
        )
    return clean_categories(document["categories"], str(source))


def _categories_of_csv(path: Path) -> list[dict[str, Any]]:
    """A line that is no class costs that class."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in csv_rows(path, "labels:"):
        sign, name = [field.strip() for field in row[:2]] if row and len(row) > 1 else ("", "")
        if sign and name and (sign, name) != ("LabelName", "DisplayName"):
            found.setdefault(sign, {"id": number, "name": name, LABEL_NAME: sign})
    if not found:
        raise OsmError(f"labels: {path}: has no line with a sign and a name (/m/01g317,Person)")
    return list(found.values())


def _categories_of_text(path: Path) -> list[dict[str, Any]]:
    """The classes of a text file; ids that it does not give count from 0, line by line."""
    where = f"labels: {path}"
    listed = read_name_list(read_text(path, "labels:"), where)
    counted = any(one.id is None for one in listed.names)
    if counted and listed.blank is not None:
        raise OsmError(
            f"{where}: line {listed.blank} is blank: ids are counted by lines; give each class a name, or ids"
        )
    return [{"id": n if one.id is None else one.id, "name": one.name} for n, one in enumerate(listed.names)]


def _numbered(names: list[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names)]
