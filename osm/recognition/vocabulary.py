"""Vocabularies: lists of allowed names, tries of their token ids, and readers for vocabulary files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from osm.data.processor import Processor
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


class Trie:
    """A trie of names. Each name is stored as a sequence of token ids that includes an end token.

    Attributes:
        depth: number of token ids in the longest sequence.
    """

    def __init__(self, names: Iterable[Sequence[int]]) -> None:
        self._root: dict[int, Any] = {}
        self.depth = 0
        for ids in names:
            self.depth = max(self.depth, len(ids))
            node = self._root
            for token in ids:
                node = node.setdefault(token, {})

    def after(self, ids: Sequence[int]) -> list[int]:
        """Return the token ids that may follow the given sequence of token ids."""
        node = self._root
        for token in ids:
            node = node[token]
        return list(node)


class Vocabulary:
    """The names that decoding may produce, with their token ids.

    Args:
        names: the names. They are converted to lower case, surrounding blanks are removed, and duplicates are dropped.
        processor: tokenizes the names.
        prompt: the prompt that precedes a name. The tokens of a name depend on the text before the name.

    Raises:
        OsmError: the list is empty, there are too many names, or a name is empty or too long.
    """

    def __init__(self, names: Iterable[str], processor: Processor, prompt: str) -> None:
        self.names = check_names(names)
        self.candidates = []
        for name in self.names:
            try:
                ids, start = processor.training_row(prompt, name)
            except SampleError as error:
                raise OsmError(f"vocabulary: {error}") from None
            self.candidates.append(tuple(ids[start:]))  # includes the end token
        self.trie = Trie(self.candidates)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= MAX_NAME_LENGTH


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
        found[" ".join(name.lower().split())] = None
        if len(found) > MAX_NAMES:
            raise OsmError(f"vocabulary: over {MAX_NAMES} names")
    if not found:
        raise OsmError("vocabulary: no name in it")
    return list(found)


def read_names(path: str | Path) -> list[str]:
    """Read names from a file with one name per line, comma-separated names, or JSON.

    Blank lines and lines that begin with # are skipped; see `read_name_list` for other list formats. The JSON may be a
    list of names, an object that maps ids to names or names to ids, or an object with `categories`. If the file does
    not have one name per line, the detected format is reported on standard error.

    Raises:
        OsmError: the file cannot be read, or contains no names. The message states the file and the line.
    """
    where = f"--vocabulary {public(path)}"
    text = read_text(localize(path, "--vocabulary"), "--vocabulary")
    if text.lstrip()[:1] in ("[", "{"):
        kind, found = _of_json(text, where)
    else:
        listed = read_name_list(text, where)
        kind, found = listed.kind, [(one.place, one.name) for one in listed.names]
    for place, name in found:
        if not _is_name(name):
            raise OsmError(f"{where}: {place}: {shown(name)} is no name ({_NAME})")
    try:
        names = check_names(name for _, name in found)
    except OsmError as error:
        raise OsmError(f"{where}: {error}") from None
    if kind:
        logger.info(f"{where}: read as {kind} of {len(names)} names")
    return names


_Found = list[tuple[str, Any]]  # pairs of the position in the file and the value that should be a name


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
        document = {value: name for name, value in document.items()}
    if isinstance(document, dict) and all(isinstance(name, str) for name in document.values()):
        return "a json of ids and names", [(f"id {shown(key)}", name) for key, name in document.items()]
    if not isinstance(document, list):
        raise OsmError(
            f"{where}: the JSON must be a list of names, an object that maps ids to names or names to ids, "
            "or an object with 'categories'"
        )
    entries = [entry.get("name") if isinstance(entry, dict) else entry for entry in document]
    return kind, [(f"entry {number}", name) for number, name in enumerate(entries, 1)]
