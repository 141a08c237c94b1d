"""Bounded parsers of json and YAML: no depth, alias or number of digits in anyone's file takes the program down.

`osm.files` reads files with them. Nothing else in the project parses YAML.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import yaml

MAX_NESTING = 100
"""Lists and mappings within each other; annotations have about six, configs four."""
MAX_YAML_BYTES = 16 << 20
"""PyYAML is slow: a larger file would take minutes."""
_MAX_YAML_DIGITS = 400
_CHUNK = 1 << 24


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader without what makes a small file large or deep."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{self.peek_event().anchor}) are refused: write the value out", self._mark()
            )
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_NESTING} deep", self._mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if len(value) > _MAX_YAML_DIGITS and not node.tag.endswith((":str", ":binary")):
            raise yaml.constructor.ConstructorError(
                None, None, f"a number or date of {len(value)} characters, over {_MAX_YAML_DIGITS}", node.start_mark
            )
        return value

    def _mark(self) -> Any:
        return self.peek_event().start_mark


def parse_yaml(text: str) -> Any:
    """The document of a YAML text, of plain values alone.

    Raises:
        ValueError: not YAML, or it has aliases, is nested too deep, or holds a number, date or key that is none.
    """
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        # Of values with an explicit tag (!!timestamp x) PyYAML raises whatever their parser happens to.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_json(data: bytes | str, nesting: int | None = MAX_NESTING) -> Any:
    """The document of a json text.

    Args:
        nesting: how deep it may be; None for what is never copied or written again: as deep as Python reads.

    Raises:
        ValueError: not json, nested too deep, or a number of more digits than Python reads.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # Recursion over the document (copies, json.dumps) must not fail later on.
    if nesting is not None and _brackets_deep(raw) > nesting and _depth(document) > nesting:
        raise ValueError(f"nested more than {nesting} deep")
    return document


def _brackets_deep(data: bytes) -> int:
    """The largest number of brackets that are open at once, those within strings counted as well: an estimate."""
    deepest = now = 0
    for start in range(0, len(data), _CHUNK):
        # In ASCII [ and { differ in one bit, and so do ] and }.
        folded = np.frombuffer(data, np.uint8, min(_CHUNK, len(data) - start), start) | 0x20
        steps = (folded == ord("{")).astype(np.int8)
        steps -= folded == ord("}")
        steps = steps[steps != 0]
        if len(steps):
            total = np.cumsum(steps, dtype=np.int32)
            deepest = max(deepest, now + int(total.max()))
            now += int(total[-1])
    return deepest


def _depth(document: Any) -> int:
    """How deep lists and objects are within each other."""
    depth, level = 0, [document]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth
