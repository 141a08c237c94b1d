"""Lists of names: as a trie of tokens, and files of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from osm.data.processor import Processor
from osm.errors import OsmError, SampleError, shown
from osm.files import check_regular_file

MAX_NAMES = 100_000
MAX_NAME_LENGTH = 200


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


def check_names(names: Iterable[str]) -> list[str]:
    """The names, each once, in lower case. Raises OsmError where one is none."""
    if isinstance(names, str):
        raise OsmError(f"vocabulary is the text {shown(names)}; a list of names is needed")
    if not isinstance(names, Iterable):
        raise OsmError(f"vocabulary is a {type(names).__name__}; a list of names is needed")
    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH:
            raise OsmError(f"vocabulary: {shown(name)} is no name (a text of 1 to {MAX_NAME_LENGTH} characters)")
        found[" ".join(name.lower().split())] = None
        if len(found) > MAX_NAMES:
            raise OsmError(f"vocabulary: over {MAX_NAMES} names")
    if not found:
        raise OsmError("vocabulary: no name in it")
    return list(found)


def read_names(path: str | Path) -> list[str]:
    """Names from a text file, one a line; blank lines and lines that begin with # are left out.

    Raises:
        OsmError: it cannot be read, or holds no names.
    """
    check_regular_file(path, "--vocabulary")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OsmError(f"--vocabulary {path}: {error}") from None
    try:
        return check_names(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    except OsmError as error:
        raise OsmError(f"--vocabulary {path}: {error}") from None
