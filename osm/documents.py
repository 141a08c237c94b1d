"""Parse JSON and YAML with bounds on nesting, aliases and the digits of numbers.

Without bounds, a small file could exhaust the memory, the stack or the time of the program. `osm.files` uses these
parsers to read files, and no other module of the project parses YAML.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import yaml

MAX_NESTING = 100
"""The deepest allowed nesting of lists and mappings. Annotations have about six levels, configs have four."""
MAX_YAML_BYTES = 16 << 20
"""The largest YAML text that is parsed. PyYAML would take minutes for a larger one."""
_MAX_YAML_DIGITS = 400
_CHUNK = 1 << 24


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses aliases, deep nesting and very long numbers."""

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
    """Return the document of a YAML text that consists of plain values.

    Raises:
        ValueError: the text is not YAML, has aliases, is nested too deeply, or has an invalid number, date or key.
    """
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        # For values with an explicit tag (!!timestamp x), PyYAML raises any error of the parser of that type.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_json(data: bytes | str, nesting: int | None = MAX_NESTING) -> Any:
    """Return the document of a JSON text.

    Args:
        nesting: the deepest allowed nesting. None allows any depth that Python can parse. It is for documents that are
            never copied or written again.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has a number with more digits than Python parses.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # Functions that recurse over the document later (copy, json.dumps) must not exceed the recursion limit.
    if nesting is not None and _brackets_deep(raw) > nesting and _depth(document) > nesting:
        raise ValueError(f"nested more than {nesting} deep")
    return document


def _brackets_deep(data: bytes) -> int:
    """Return the largest number of brackets that are open at once.

    The number is an estimate from above because brackets within strings are counted too.
    """
    deepest = now = 0
    for start in range(0, len(data), _CHUNK):
        # In ASCII, [ and { differ in one bit, and ] and } differ in the same bit.
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
    """Return the number of levels of nested lists and objects."""
    depth, level = 0, [document]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth
