"""Label sets, which map the category ids of a dataset to names.

The built-in label tables (`osm/datasets/labels/*.json`), COCO and LVIS JSON files, and user-provided label files share
one format: a JSON object with a `categories` list. Each category has an `id` and a `name`. A category may also have the
fields `synonyms` (further accepted names), `isthing`, `supercategory` and `frequency`. For an object part,
`supercategory` is the name of the whole object, and the part's name starts with the name of the whole object. The
`frequency` is r, c or f, as in LVIS.
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
"""The category field that holds the dataset's own label, if annotations refer to labels instead of category ids."""
_TEXTS = (".txt", ".names", ".yaml", ".yml")
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's frequency groups: rare (1 to 10 training images), common (11 to 100) and frequent (more than 100) classes."""


@dataclass(frozen=True)
class LabelClass:
    """One class of a label set.

    Attributes:
        id: the category id.
        names: the accepted names, lowercased and stripped. The first name is the training target.
        isthing: False for stuff classes.
        supercategory: for a part, the kind of object to which the part belongs, in lower case; empty if unknown.
        frequency: LVIS's frequency group of the class (`r`are, `c`ommon or `f`requent); empty if unknown.
    """

    id: int
    names: tuple[str, ...]
    isthing: bool = True
    supercategory: str = ""
    frequency: str = ""

    @property
    def target(self) -> str:
        """The class name used as the training target, which is the first accepted name."""
        return self.names[0]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a dataset, keyed by category id."""

    source: str
    classes: Mapping[int, LabelClass]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The accepted names of all classes, without plural forms."""
        return frozenset(name for c in self.classes.values() for name in c.names)

    def __contains__(self, category_id: object) -> bool:
        return category_id in self.classes

    def __getitem__(self, category_id: int) -> LabelClass:
        try:
            return self.classes[category_id]
        except KeyError:
            raise OsmError(
                f"category_id {category_id!r} is not in the label set {self.source}, which has {len(self.classes)} ids"
            ) from None

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping[str, Any]], source: str) -> LabelSet:
        """Build a label set from the `categories` in a COCO JSON file.

        Args:
            categories: the entries of the list.
            source: the name of the file, for error messages.

        Raises:
            OsmError: An entry has no integer `id` or no `name`, a name or synonym is not a string, two entries have the
                same id, or the list is empty.
        """
        classes: dict[int, LabelClass] = {}
        for entry in categories:
            if not isinstance(entry, Mapping) or type(entry.get("id")) is not int or not entry.get("name"):
                raise OsmError(f"{source}: every category needs an integer 'id' and a 'name', but found {shown(entry)}")
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
            # Invalid values of optional category fields are treated as missing.
            kind, often, thing = entry.get("supercategory"), entry.get("frequency"), truth(entry.get("isthing", True))
            kind = kind.lower().strip() if isinstance(kind, str) else ""
            often = often if isinstance(often, str) and often in FREQUENCIES else ""
            classes[entry["id"]] = LabelClass(entry["id"], names, thing is not False, kind, often)
        if not classes:
            raise OsmError(f"{source}: 'categories' is empty; expected at least one class")
        return cls(source, classes)


def clean_categories(rows: list[Any], source: str) -> list[dict[str, Any]]:
    """Convert the category ids of a JSON file to integers and drop duplicate entries.

    Classes without a name are skipped. Malformed entries and different classes with the same id are kept so that
    `LabelSet.from_categories` can report them as errors.
    """
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        blank = name is None or (isinstance(name, str) and not name.strip())
        if not isinstance(row, dict) or whole(row.get("id")) is None or blank:
            if isinstance(row, dict) and whole(row.get("id")) is not None:
                continue
            found[len(found), "malformed"] = row  # for which LabelSet.from_categories raises an error
            continue
        number = whole(row["id"])
        if number in found and _same_name(found[number]["name"], name):  # merged json files repeat entries
            continue
        key = number if number not in found else (len(found), "twice")
        found[key] = row if type(row["id"]) is int else {**row, "id": number}
    return list(found.values())


def _same_name(one: Any, other: Any) -> bool:
    both = (one, other)
    return one == other or (all(isinstance(name, str) for name in both) and one.strip() == other.strip())


def load_labels(source: str | Path) -> LabelSet:
    """Load a label set.

    Args:
        source: the name of a table of the project (`coco`, `ade20k`, ...), or the path or URL of a file. A json file
            contains `categories`, a list of names, or an object that maps ids to names or names to ids. A text (`.txt`,
            `.names`) or YAML file contains a list of names (see `osm.io.name_lists`). A csv file has no header, and
            each line contains the dataset's label and the name of a class, as in Open Images. Names without ids are
            numbered from 0. In a csv file, the id is the number of the line.

    Raises:
        OsmError: The table or file does not exist, or the file is not in a supported format.
    """
    return LabelSet.from_categories(read_categories(source), public(source))


def read_categories(source: str | Path) -> list[Any]:
    """Read the categories from a label file (see `load_labels`) without validating each one."""
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
                f"labels: {str(source)!r} is neither a built-in label table nor a readable json file ({error})"
            ) from None
    try:
        document = parse_json(data)  # bytes may be UTF-8 or UTF-16, with or without a byte order mark
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
            f"labels: {source} has no list 'categories', and is neither a list of names nor a mapping from ids to names"
        )
    return clean_categories(document["categories"], str(source))


def _categories_of_csv(path: Path) -> list[dict[str, Any]]:
    """Return the categories in a csv file. Lines that lack the class label, the class name or both are skipped."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in csv_rows(path, "labels:"):
        sign, name = [field.strip() for field in row[:2]] if row and len(row) > 1 else ("", "")
        if sign and name and (sign, name) != ("LabelName", "DisplayName"):
            found.setdefault(sign, {"id": number, "name": name, LABEL_NAME: sign})
    if not found:
        raise OsmError(
            f"labels: {path} has no line with a label and a class name; expected lines such as /m/01g317,Person"
        )
    return list(found.values())


def _categories_of_text(path: Path) -> list[dict[str, Any]]:
    """Return the categories in a text file.

    If a line contains no category id, its zero-based line number is used as the id.
    """
    where = f"labels: {path}"
    listed = read_name_list(read_text(path, "labels:"), where)
    counted = any(one.id is None for one in listed.names)
    if counted and listed.blank is not None:
        raise OsmError(
            f"{where}: line {listed.blank} is blank, but line numbers are used as ids; remove the line, or add an id "
            "to every class"
        )
    return [{"id": n if one.id is None else one.id, "name": one.name} for n, one in enumerate(listed.names)]


def _numbered(names: list[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names)]
