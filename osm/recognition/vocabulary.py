"""Lists of names: as a trie of tokens, and files of them."""

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
    """Token ids of names, each with the token that ends it.

    Attributes:
        depth: how many ids the longest has.
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
        """The ids that may follow."""
        node = self._root
        for token in ids:
            node = node[token]
        return list(node)


class Vocabulary:
    """Names that may be said, and their tokens.

    Args:
        names: each once; blanks around them are dropped, as are capitals.
        processor, prompt: a name's tokens are those it has as an answer to the prompt.

    Raises:
        OsmError: no name, an empty or far too long one, or too many.
    """

    def __init__(self, names: Iterable[str], processor: Processor, prompt: str) -> None:
        self.names = check_names(names)
        self.candidates = []
        for name in self.names:
            try:
                ids, start = processor.training_row(prompt, name)
            except SampleError as error:
                raise OsmError(f"vocabulary: {error}") from None
            self.candidates.append(tuple(ids[start:]))  # with the end token
        self.trie = Trie(self.candidates)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= MAX_NAME_LENGTH


def check_names(names: Iterable[str]) -> list[str]:
    """The names, each once, in lower case. Raises OsmError where one is none."""
    if isinstance(names, str):
        raise OsmError(f"vocabulary is the text {shown(names)}; a list of names is needed")
    if not isinstance(names, Iterable):
        raise OsmError(f"vocabulary is a {type(names).__name__}; a list of names is needed")
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
    """Names from a text file: one a line, in a list with commas, or in a json.

    Of lines, blank ones and those that begin with # are left out; see `read_name_list` for what else is a list. A json
    is a list of names, an object of ids and names (either may be the key), or has `categories`. What is not plain lines
    is said on standard error.

    Raises:
        OsmError: it cannot be read, or holds no names; names the file and the line.
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


_Found = list[tuple[str, Any]]  # where each is, and what should be a name


def _of_json(text: str, where: str) -> tuple[str, _Found]:
    """What the json is, and the names."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise OsmError(f"{where} begins as json does, but is none ({error})") from None
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
        raise OsmError(f"{where}: of a json, a list of names, an object of ids and names, or 'categories' is needed")
    entries = [entry.get("name") if isinstance(entry, dict) else entry for entry in document]
    return kind, [(f"entry {number}", name) for number, name in enumerate(entries, 1)]
