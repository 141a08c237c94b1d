"""Reads sampled predictions with verdicts: the list of one person, or a key and the files of its raters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from judgements import FORMAT
from rater_statistics import lower_median

from osm.errors import OsmError, not_one_of, shown
from osm.evaluation.metrics import normalize
from osm.evaluation.predict.records import prediction_in
from osm.files import read_json

GRADES = ("wrong", "acceptable", "right")
"""The verdicts in ascending order. A grade is the place of a verdict in this order."""
UNRATED = -1
"""The grade of an item without a verdict."""
PERSON = "the person"
"""The rater of a list of one person."""
_SHOWN = 3  # items that an error message names


@dataclass(frozen=True)
class RatedItem:
    """A predicted name of a mask, which raters judge.

    Attributes:
        item: the id, or the number in a list of one person.
        dataset: name of the dataset.
        image: id of the image in the dataset; None if it is unknown.
        names: all names of the mask's class.
        prediction: the predicted name.
        models: the probability of the name (or None) by the title of each model that gave it.
    """

    item: str
    dataset: str
    image: Any
    names: tuple[str, ...]
    prediction: str
    models: dict[str, float | None]


@dataclass(frozen=True)
class RatedSample:
    """Items with the verdicts of their raters.

    Attributes:
        items: the items.
        raters: names of the raters.
        grades: int (items, raters), places in `GRADES`, or `UNRATED`.
    """

    items: tuple[RatedItem, ...]
    raters: tuple[str, ...]
    grades: np.ndarray

    @cached_property
    def images(self) -> np.ndarray:
        """The index of each item's image, int (items,). An item whose image is unknown has an image of its own."""
        numbers: dict[Any, int] = {}
        keys = [
            (one.dataset, repr(one.image)) if one.image is not None else (one.dataset, place, "unknown")
            for place, one in enumerate(self.items)
        ]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], int)

    @cached_property
    def complete(self) -> np.ndarray:
        """Whether every rater has judged an item, bool (items,)."""
        return (self.grades != UNRATED).all(1)

    def only(self, kept: np.ndarray) -> RatedSample:
        """Return the sample with the items that a bool array (items,) keeps."""
        items = tuple(one for one, keep in zip(self.items, kept, strict=True) if keep)
        return RatedSample(items, self.raters, self.grades[kept])

    def majority(self, without: int | None = None) -> np.ndarray:
        """Return the median grade of each item over all raters, or over all but one, as int (items,).

        Of two middle grades, the lower one counts. Every item needs a verdict of every rater.
        """
        kept = [place for place in range(len(self.raters)) if place != without]
        return lower_median(self.grades[:, kept])


def read_sample(path: Path, rater_paths: Sequence[Path] = ()) -> RatedSample:
    """Read the list of one person, or a key with the files of its raters.

    Raises:
        OsmError: a file is invalid. The message names the file, the item, the value, and what would be right.
    """
    document, _ = read_json(path, "list")
    if isinstance(document, dict) and "format" in document:
        return _read_raters(path, document, rater_paths)
    if rater_paths:
        raise OsmError(f"{path}: a list of one person takes no files of raters; expected the key that `sample` wrote")
    return _read_list(path, document)


def _read_list(path: Path, entries: Any) -> RatedSample:
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise OsmError(f"{path}: expected the list that `sample` wrote, found {shown(entries)}")
    items, grades = [], []
    for place, entry in enumerate(entries, 1):
        number = entry.get("number", place)
        where = f"{path}: number {shown(number)}"
        if entry.get("verdict") not in GRADES:
            raise OsmError(f"{where}: verdict {shown(entry.get('verdict'))} is not one of {', '.join(GRADES[::-1])}")
        names = _names(entry, where)
        one = prediction_in({"class": entry.get("prediction"), "prob": entry.get("prob")}, where)
        items.append(RatedItem(str(number), str(entry.get("set")), entry.get("image"), names, one.name, {"": one.prob}))
        grades.append([GRADES.index(entry["verdict"])])
    found = RatedSample(tuple(items), (PERSON,), np.array(grades))
    if len(set((found.grades > 0).ravel().tolist())) == 1:
        raise OsmError(f"{path}: {len(entries)} verdicts of one kind; some wrong and some others are needed")
    return found


def _names(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    names = entry.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OsmError(f"{where}: names {shown(names)} is not a list of texts")
    return tuple(names)


def _read_raters(path: Path, key: dict[str, Any], rater_paths: Sequence[Path]) -> RatedSample:
    if key.get("format") != FORMAT:
        raise OsmError(f"{path}: format {shown(key.get('format'))}: expected {FORMAT!r}, the key that `sample` wrote")
    if not rater_paths:
        raise OsmError(f"{path}: a key has no verdicts; expected the files of one or more raters after it")
    raters = key.get("raters")
    if not isinstance(raters, list) or not all(isinstance(name, str) for name in raters):
        raise OsmError(f"{path}: raters {shown(raters)}: expected a list of names")
    items = {one.item: one for one in map(lambda entry: _key_item(path, entry), _objects(path, key))}
    if len(items) < len(key["items"]):
        raise OsmError(f"{path}: {len(key['items']) - len(items)} items have the id of another one")
    columns: dict[str, list[int]] = {}
    files: dict[str, Path] = {}
    for rater_path in rater_paths:
        name, verdicts = _read_rater(rater_path, items, raters)
        if name in files:
            raise OsmError(f"{rater_path}: rater {name!r} is that of {files[name]} too; give one file for each rater")
        files[name] = rater_path
        columns[name] = [verdicts[item] for item in items]
    return RatedSample(tuple(items.values()), tuple(columns), np.array(list(columns.values()), int).T)


def _objects(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    found = document.get("items")
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise OsmError(f"{path}: items {shown(found)}: expected a list of objects, one or more")
    return found


def _key_item(path: Path, entry: dict[str, Any]) -> RatedItem:
    item, models = entry.get("item"), entry.get("models")
    if not isinstance(item, str):
        raise OsmError(f"{path}: item {shown(item)}: expected a text, the id of the item")
    where = f"{path}: item {shown(item)}"
    if not isinstance(models, dict) or not models:
        raise OsmError(f"{where}: models {shown(models)}: expected the probability of the name by model")
    name = entry.get("prediction")
    probs = {title: prediction_in({"class": name, "prob": prob}, where).prob for title, prob in models.items()}
    return RatedItem(item, str(entry.get("set")), entry.get("image"), _names(entry, where), str(name), probs)


def _read_rater(path: Path, items: dict[str, RatedItem], raters: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Return a rater's name, and the grade of each item by its id."""
    document, _ = read_json(path, "rater's file")
    if not isinstance(document, dict) or not isinstance(document.get("rater"), str):
        found = document.get("rater") if isinstance(document, dict) else document
        raise OsmError(f"{path}: rater {shown(found)}: expected the file of a rater that `sample --raters` wrote")
    if document["rater"] not in raters:
        raise not_one_of(f"{path}: rater", document["rater"], raters)
    grades: dict[str, int] = {}
    for entry in _objects(path, document):
        item, verdict = entry.get("item"), entry.get("verdict")
        where = f"{path}: item {shown(item)}"
        if not isinstance(item, str) or item not in items:
            raise OsmError(f"{where} is not in the key; expected the file of a rater of the same sample")
        if item in grades:
            raise OsmError(f"{where} is given twice; expected one verdict")
        if normalize(str(entry.get("prediction"))) != normalize(items[item].prediction):
            raise OsmError(
                f"{where}: prediction {shown(entry.get('prediction'))}: expected {shown(items[item].prediction)}, as "
                "in the key; only verdicts may be changed"
            )
        if verdict not in ("", *GRADES):
            raise OsmError(
                f"{where}: verdict {shown(verdict)} is not one of {', '.join(GRADES[::-1])}, or '' if it is not rated"
            )
        grades[item] = GRADES.index(verdict) if verdict else UNRATED
    missing = [item for item in items if item not in grades]
    if missing:
        some = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise OsmError(
            f"{path}: {len(missing)} of {len(items)} items of the key are missing ({some}); expected all of them, with "
            "the verdict '' if they are not rated"
        )
    return document["rater"], grades
