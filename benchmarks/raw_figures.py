"""Reads figures from the JSON documents that benchmarks print."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from osm.errors import OsmError


def last_document(text: str) -> Any:
    """Return the last JSON object of a benchmark's output. Its first line begins with a brace.

    Raises:
        OsmError: the output has none.
    """
    lines = text.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("{"):
            try:
                return json.loads("\n".join(lines[number:]))
            except ValueError as error:
                raise OsmError(f"the JSON document in line {number + 1} of the output is broken: {error}") from None
    raise OsmError("the output has no JSON document: expected one at its end")


def find_values(document: Any, path: str) -> Iterator[tuple[str, list[float]]]:
    """Find the numbers at a path.

    Args:
        document: a parsed JSON document.
        path: names with dots between them. `*` stands for all keys of an object. `cases[set,size]` stands for all
            elements of the list `cases`, each called by its values of `set` and `size`.

    Yields:
        The key of each number, made of the names on its way, and the number as a list. A list of numbers, as of several
        rounds, is one figure. Values of null are left out, because a benchmark writes it for what a device cannot tell.
    """
    yield from _find(document, path.split("."), [])


def _find(value: Any, segments: list[str], key: list[str]) -> Iterator[tuple[str, list[float]]]:
    if not segments:
        numbers = value if isinstance(value, list) else [value]
        if numbers and all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            yield "/".join(key), [float(number) for number in numbers]
        return
    if not isinstance(value, dict):
        return
    segment, rest = segments[0], segments[1:]
    if segment == "*":
        for name, inner in value.items():
            yield from _find(inner, rest, [*key, name])
    elif segment.endswith("]"):
        name, fields = segment[:-1].split("[")
        for element in value.get(name, ()):
            called = " ".join(f"{field} {element[field]}" for field in fields.split(",") if field in element)
            yield from _find(element, rest, [*key, called])
    elif segment in value:
        yield from _find(value[segment], rest, [*key, segment])


def summaries(runs: Sequence[Any], paths: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Summarize each figure over all runs of a benchmark.

    Args:
        runs: the JSON documents of the runs.
        paths: the paths of the figures, and their units.

    Raises:
        OsmError: a path leads to no number.
    """
    found: dict[str, tuple[str, list[float]]] = {}
    for path, unit in paths:
        for document in runs:
            values = list(find_values(document, path))
            if not values:
                raise OsmError(f"the JSON document has no number at {path}")
            for key, numbers in values:
                found.setdefault(key, (unit, []))[1].extend(numbers)
    return [
        {
            "key": key,
            "unit": unit,
            "median": statistics.median(numbers),
            "lowest": min(numbers),
            "highest": max(numbers),
            "repeats": len(numbers),
        }
        for key, (unit, numbers) in found.items()
    ]
