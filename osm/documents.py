"""Parses JSON, YAML and XML safely: limits the nesting depth and the length of numbers, and rejects YAML aliases.

Without limits on nesting depth and number length, a small untrusted file could exhaust the memory or the stack, or take
a very long time to parse. `osm.files` reads JSON and YAML files with the parsers in this module. No other module in the
project parses YAML.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

MAX_NESTING = 100
"""The maximum nesting depth of lists and mappings. Annotations have about six levels; configs have four."""
MAX_YAML_BYTES = 16 << 20
"""The maximum size of a YAML document in bytes. PyYAML would take minutes to parse a larger document."""
_MAX_YAML_DIGITS = 400
_CHUNK = 1 << 24


class _BoundedLoader(yaml.SafeLoader):
    """A PyYAML safe loader that rejects aliases, deep nesting and very long numbers."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                f"YAML aliases (*{self.peek_event().anchor}) are not supported; write out the value",
                self._mark(),
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
                None,
                None,
                f"a number or date of {len(value)} characters exceeds the maximum of {_MAX_YAML_DIGITS}",
                node.start_mark,
            )
        return value

    def _mark(self) -> Any:
        return self.peek_event().start_mark


def parse_yaml(text: str) -> Any:
    """Parse a YAML document into plain Python values.

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
        # A value with an explicit tag (such as !!timestamp) can raise any exception when parsed, not only YAMLError.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_json(data: bytes | str, nesting: int | None = MAX_NESTING) -> Any:
    """Parse a JSON document into Python objects.

    Args:
        nesting: the maximum nesting depth, or None for any depth that Python can parse. None is only for documents that
            are never copied or serialized again.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has a number with more digits than Python parses.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # The depth limit keeps recursive functions such as copy.deepcopy and json.dumps below Python's recursion limit.
    if nesting is not None and _brackets_deep(raw) > nesting and _depth(document) > nesting:
        raise ValueError(f"nested more than {nesting} deep")
    return document


def _brackets_deep(data: bytes) -> int:
    """Return an upper bound on the nesting depth of a JSON text: the maximum number of simultaneously open brackets.

    The bound may be larger than the actual nesting depth, because brackets inside strings are counted too.
    """
    deepest = now = 0
    for start in range(0, len(data), _CHUNK):
        # Setting bit 0x20 in each byte turns `[` into `{` and `]` into `}`, so it is enough to count `{` and `}`.
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
    """Return the nesting depth of the lists and objects in a document."""
    depth, level = 0, [document]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def parse_xml(text: str) -> ElementTree.Element:
    """Parse XML without a document type declaration, whose entities could expand to any size.

    Raises:
        ValueError: the text is not XML, or has a document type declaration.
    """
    if re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise ValueError("has a document type declaration")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML ({error})") from None
