"""Vocabularies: lists of allowed names, tries of their token ids, and readers for vocabulary files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osm.data.processor import Processor
from osm.datasets.labels import LabelClass
from osm.documents import parse_json
from osm.errors import OsmError, SampleError, shown
from osm.files import read_text
from osm.io.name_lists import read_name_list
from osm.io.values import whole
from osm.storage.cache import localize
from osm.storage.locations import public
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_NAMES = 100_000
MAX_NAME_LENGTH = 200
_NAME = f"a text of 1 to {MAX_NAME_LENGTH} characters"


NONE_OF_THESE = "none of these"
"""The answer for a region that no name of a vocabulary fits."""


@dataclass(frozen=True)
class Ranking:
    """How the names of a vocabulary are compared, although they differ in length and frequency.

    A name's score is `(likelihood - prior_weight * prior) / tokens ** length_power`. The likelihood is the logarithm of
    the LLM's probability of the name for the region, and the prior is the same for a gray image. Both include the end
    token, which also counts as a token.

    Attributes:
        length_power: 0 compares whole names, which favors short names. 1 compares the mean per token.
        prior_weight: 0 keeps the frequency of the names in training, which is best if the model was trained with the
            names. Larger values remove more of it, so that names without training are not always the least likely.
    """

    length_power: float = 0.0
    prior_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("length_power", self.length_power), ("prior_weight", self.prior_weight)):
            if not 0 <= value <= 2:
                raise OsmError(f"{name} {shown(value)} is not between 0 and 2")

    @property
    def raw(self) -> bool:
        """Whether names are compared by their likelihood alone, as in earlier versions."""
        return not (self.length_power or self.prior_weight)

    def scores(self, likelihoods_RK: Tensor, prior_RK: Tensor | None, tokens_K: Tensor) -> Tensor:
        """Return the scores (R, K) of K names, multiplied by the mean number of tokens to the power `length_power`.

        The factor is the same for all names, so that a softmax over the scores has a similar sharpness for any power.

        Args:
            likelihoods_RK: the names' log-likelihoods.
            prior_RK: the names' log-likelihoods for a gray image; None if `prior_weight` is 0.
            tokens_K: the names' numbers of tokens, including the end token.
        """
        corrected_RK = likelihoods_RK if prior_RK is None else likelihoods_RK - self.prior_weight * prior_RK
        tokens_K = tokens_K.to(corrected_RK)
        return corrected_RK * (tokens_K.mean() / tokens_K) ** self.length_power


class Trie:
    """A trie of names. Each name is stored as a sequence of token ids that includes an end token."""

    def __init__(self, names: Iterable[Sequence[int]]) -> None:
        self._root: dict[int, Any] = {}
        for ids in names:
            node = self._root
            for token in ids:
                node = node.setdefault(token, {})

    def common(self, ids: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        """Return the longest common beginning of all names that start with the given token ids.

        No name is the beginning of another one, because each ends with an end token that occurs nowhere else in a name.

        Returns:
            the longest common beginning of these names, and the token ids that may follow it. The latter are empty if
            there is only one name, which is then complete.
        """
        node, common = self._root, list(ids)
        for token in ids:
            node = node[token]
        while len(node) == 1:
            [(token, node)] = node.items()
            common.append(token)
        return tuple(common), list(node)


@dataclass(frozen=True)
class ListedClass:
    """A class of a vocabulary: its spellings, of which the first is the answer, and its id if the list has ids."""

    names: tuple[str, ...]
    id: int | None = None


class Vocabulary:
    """The names that decoding may produce, with their token ids.

    Args:
        entries: names, or classes with one or more names and an id (see `check_classes`).
        processor: tokenizes the names.
        prompt: the prompt that precedes a name. The tokens of a name depend on the text before the name.

    Attributes:
        classes: the classes that have a name left. A name without an id is a class of its own.
        names: the names of all classes. Of several names with the same tokens, only the first is kept.
        class_of: for each name, the index of its class.
        candidates: for each name, its token ids, with the end token last.
        priors: float64 (K,), the log-likelihood of each name for a gray image, once computed. The key is the mode, and
            whether the known names of the mode apply, because the list does not replace them.

    Raises:
        OsmError: the list is empty, there are too many names, or a name is empty or too long.
    """

    def __init__(self, entries: Iterable[str | LabelClass], processor: Processor, prompt: str) -> None:
        self.classes: list[ListedClass] = []
        self.names: list[str] = []
        self.class_of: list[int] = []
        self.candidates: list[tuple[int, ...]] = []
        known: dict[tuple[int, ...], str] = {}
        left_out: list[str] = []
        for one in check_classes(entries):
            own = []
            for name in one.names:
                ids = _ids_of(processor, prompt, name)
                if known.setdefault(ids, name) == name:
                    own.append(name)
                    self.candidates.append(ids)
                else:
                    left_out.append(f"{shown(name)} (as {shown(known[ids])})")
            if own:
                self.class_of += [len(self.classes)] * len(own)
                self.names += own
                self.classes.append(one)
        if left_out:
            logger.warning(
                f"vocabulary: {len(left_out)} names have the same tokens as an earlier name and are left out; for "
                f"example {left_out[0]}"
            )
        self.trie = Trie(self.candidates)
        self._index_of_ids = {ids[:-1]: number for number, ids in enumerate(self.candidates)}
        self.priors: dict[tuple[str, bool], Tensor] = {}

    def index_of(self, ids: Sequence[int]) -> int:
        """Return the index of the name with the given token ids, without the end token."""
        return self._index_of_ids[tuple(ids)]

    @cached_property
    def spellings(self) -> dict[str, list[int]]:
        """The indices of the names of each class, by the first name of the class."""
        found: dict[str, list[int]] = {}
        for place, number in enumerate(self.class_of):
            found.setdefault(self.classes[number].names[0], []).append(place)
        return found

    def allowed(self, known: Sequence[str]) -> Tensor | None:
        """Return which known names of a model may be chosen, as bool (K + 1,); None without known names.

        These are the known names in the vocabulary or, if the model does not know all classes of the vocabulary, all
        names. The last value stands for the class *other* (`osm.models.bridges.known_names`).
        """
        if not known:
            return None
        number_of = dict(zip(self.names, self.class_of, strict=True))
        numbers = [number_of.get(_plain(name)) for name in known]
        if len(set(numbers) - {None}) < len(self.classes):
            return torch.ones(len(known) + 1, dtype=torch.bool)
        return torch.tensor([number is not None for number in numbers] + [False])

    @cached_property
    def class_of_ids(self) -> dict[tuple[int, ...], int] | None:
        """The index of the class for each name's token ids, without the end token. None if no class has two names."""
        if len(self.names) == len(set(self.class_of)):
            return None
        return {ids: self.class_of[number] for ids, number in self._index_of_ids.items()}


def _ids_of(processor: Processor, prompt: str, name: str) -> tuple[int, ...]:
    """Return the token ids of a name after a prompt, including the end token."""
    try:
        ids, start = processor.training_row(prompt, name)
    except SampleError as error:
        raise OsmError(f"vocabulary: {error}") from None
    return tuple(ids[start:])


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= MAX_NAME_LENGTH


def check_classes(entries: Iterable[str | LabelClass]) -> list[ListedClass]:
    """Return the classes of a vocabulary, with names in lower case, in the order of the list.

    A name that occurs twice belongs to the first class that has it. A class without a name of its own is dropped.

    Args:
        entries: names, or classes with one or more names and an id.

    Raises:
        OsmError: the list is empty, there are too many names, or a name is invalid.
    """
    if isinstance(entries, str) or not isinstance(entries, Iterable):
        return [ListedClass((name,)) for name in check_names(entries)]
    given = list(entries)
    spelled = [one.names if isinstance(one, LabelClass) else (one,) for one in given]
    left = dict.fromkeys(check_names(name for names in spelled for name in names))
    found = []
    for one, names in zip(given, spelled, strict=True):
        own = tuple(name for name in dict.fromkeys(map(_plain, names)) if name in left)
        for name in own:
            del left[name]
        if own:
            found.append(ListedClass(own, one.id if isinstance(one, LabelClass) else None))
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


def check_names(names: Iterable[str]) -> list[str]:
    """Return the names in lowercase, without duplicates. Raises OsmError if a name is invalid."""
    if isinstance(names, str):
        raise OsmError(f"vocabulary is the string {shown(names)}; expected a list of names")
    if not isinstance(names, Iterable):
        raise OsmError(f"vocabulary is a {type(names).__name__}; expected a list of names")
    found: dict[str, None] = {}
    for name in names:
        if not _is_name(name):
            raise OsmError(f"vocabulary: {shown(name)} is no name ({_NAME})")
        found[_plain(name)] = None
        if len(found) > MAX_NAMES:
            raise OsmError(f"vocabulary: over {MAX_NAMES} names")
    if not found:
        raise OsmError("vocabulary: no name in it")
    return list(found)


def read_names(path: str | Path) -> list[str]:
    """Read the names in a vocabulary file, without ids; see `read_vocabulary`."""
    return [name for one in check_classes(read_vocabulary(path)) for name in one.names]


def read_vocabulary(path: str | Path) -> list[str | LabelClass]:
    """Read a vocabulary from a file with one name per line, comma-separated names, or JSON.

    A class may have several spellings and an id: every line is `cup, mug -> 47`. Blank lines and lines that begin with
    # are skipped; see `read_name_list` for other list formats. The JSON may be a list of names, or an object. An object
    has `categories`, maps ids to names (or to lists of spellings), or maps names to ids. If the file does not have one
    name per line, the detected format is reported on standard error.

    Returns:
        the names, or the classes if the file has ids.

    Raises:
        OsmError: the file cannot be read, or contains no names. The message states the file and the line.
    """
    where = f"--vocabulary {public(path)}"
    text = read_text(localize(path, "--vocabulary"), "--vocabulary")
    if text.lstrip()[:1] in ("[", "{"):
        kind, found = _of_json(text, where)
    elif arrows := _of_arrows(text, where):
        kind, found = "a list of spellings and ids", arrows
    else:
        listed = read_name_list(text, where)
        kind, found = listed.kind, [(one.place, one.id, one.name) for one in listed.names]
    owner: dict[str, int | None] = {}
    twice: dict[str, int | None] = {}
    for place, number, name in found:
        if not _is_name(name):
            raise OsmError(f"{where}: {place}: {shown(name)} is no name ({_NAME})")
        if number != owner.setdefault(_plain(name), number):
            twice.setdefault(_plain(name), number)
    if twice:
        name, other = next(iter(twice.items()))
        logger.warning(
            f"{where}: {len(twice)} names have several ids, of which the first is used; for example {shown(name)}: "
            f"{owner[name]}, not {other}"
        )
    try:
        names = check_names(name for _, _, name in found)
    except OsmError as error:
        raise OsmError(f"{where}: {error}") from None
    if kind:
        logger.info(f"{where}: read as {kind} of {len(names)} names")
    if not found or any(number is None for _, number, _ in found):
        return list(names)
    spellings: dict[int, list[str]] = {}
    for _, number, name in found:
        spellings.setdefault(int(number or 0), []).append(name)
    return [LabelClass(number, tuple(dict.fromkeys(map(_plain, of_id)))) for number, of_id in spellings.items()]


# (the position in the file, the id or None, the value that should be a name)
_Found = list[tuple[str, int | None, Any]]
_ARROW = re.compile(r"(.+?)\s*(?:->|→)\s*(-?\d{1,18})")


def _of_arrows(text: str, where: str) -> _Found:
    """Return the entries of a file whose lines have the form `cup, mug -> 47`, or [] if no line has it.

    Raises:
        OsmError: only some of the lines have this form.
    """
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    pairs = [(number, pair) for number, line in lines if (pair := _ARROW.fullmatch(line))]
    if not pairs:
        return []
    for number, line in lines:
        if _ARROW.fullmatch(line):
            continue
        if "->" in line or "→" in line:
            raise OsmError(f"{where}: line {number}: {shown(line)}: the id after the arrow must be a whole number")
        example = shown(f"{line} -> 7")
        raise OsmError(
            f"{where}: line {number}: {shown(line)} has no id, but other lines have one; write {example} with the id "
            "of this class, or remove all ids"
        )
    return [(f"line {number}", int(pair[2]), name.strip()) for number, pair in pairs for name in pair[1].split(",")]


def _of_json(text: str, where: str) -> tuple[str, _Found]:
    """Return the detected format of a JSON vocabulary (for messages) and the names in it."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise OsmError(f"{where} looks like JSON, but is not valid JSON ({error})") from None
    kind = "a json list"
    if isinstance(document, dict) and "categories" in document:
        kind, document = "the categories of a json", document["categories"]
    if isinstance(document, dict) and isinstance(document.get("id2label"), dict):
        document = document["id2label"]
    if isinstance(document, dict) and document and all(whole(value) is not None for value in document.values()):
        return "a json of ids and names", [
            (f"id {shown(value)}", whole(value), name) for name, value in document.items()
        ]
    if isinstance(document, dict) and all(_spellings(value) is not None for value in document.values()):
        return "a json of ids and names", [
            (f"id {shown(key)}", whole(key), name)
            for key, value in document.items()
            for name in _spellings(value) or ()
        ]
    if not isinstance(document, list):
        raise OsmError(
            f"{where}: the JSON must be a list of names, an object that maps ids to names or names to ids, "
            "or an object with 'categories'"
        )
    return kind, [
        (f"entry {number}", whole(entry.get("id")), entry.get("name"))
        if isinstance(entry, dict)
        else (f"entry {number}", None, entry)
        for number, entry in enumerate(document, 1)
    ]


def _spellings(value: Any) -> list[str] | None:
    """Return the spellings in a JSON value, a string or a list of strings, or None for any other value."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(one, str) for one in values) else None
