"""Read lists of names in the text formats commonly written by people and tools.

The supported formats are one name per line, an id and a name per line, comma-separated names, YAML, and CVAT's label
map. Text in any other format raises an error, so that its lines are not mistaken for names.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

from osm.documents import parse_yaml
from osm.errors import OsmError, shown
from osm.io.values import whole

ALLOWED = (
    "one name per line, an id and a name per line (1: cat), comma-separated names, a YAML `names:` key, or CVAT's "
    "label map"
)
_NUMBERED = re.compile(r"(\d+)\s*(?:\t|:|,|;)\s*(\S.*)")
_HEADER = re.compile(r"(id|index|class_?id|label_?id)\s*[\t:,;]\s*(class_?)?(name|label)", re.IGNORECASE)
_CVAT = re.compile(r"([^:]+):(?:\d{1,3},\d{1,3},\d{1,3})?:[^:]*:[^:]*")
_MARKUP = re.compile(r"<!doctype|<html|<\?xml|[^:]*\{\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class ListedName:
    """One entry of a list of class names.

    Attributes:
        place: the position of the entry in the file, for error messages.
        id: the id of the entry, or None if the list has no ids.
        name: the name, which is not checked and may have any type.
    """

    place: str
    id: int | None
    name: Any


@dataclass(frozen=True)
class NameList:
    """A list of class names read from a file.

    Attributes:
        kind: the detected format. Empty if the list has one name per line.
        names: the entries in order.
        blank: the number of the first blank line between names, or None. If line numbers are used as ids, a blank line
            shifts the ids that follow.
    """

    kind: str
    names: list[ListedName]
    blank: int | None = None


def read_name_list(text: str, where: str) -> NameList:
    """Parse a list of class names in any supported text format. JSON is not supported here.

    Args:
        text: the content of the file.
        where: the beginning of messages.

    Raises:
        OsmError: the text is not in a supported format.
    """
    numbered = list(enumerate(text.splitlines(), 1))
    lines = [(number, line.strip()) for number, line in numbered if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        return NameList("", [])
    if _MARKUP.match(lines[0][1]):
        raise OsmError(f"{where}: line {lines[0][0]}: {shown(lines[0][1])} is not a name; expected {ALLOWED}")
    if any(re.match(r"names\s*:", line) for _, line in lines):
        return _of_yaml(text, where)
    if all(_CVAT.fullmatch(line) for _, line in lines):
        found = [ListedName(f"line {number}", None, line.split(":")[0].strip()) for number, line in lines]
        return NameList("a label map of CVAT", found)
    body = lines[1:] if _HEADER.fullmatch(lines[0][1]) else lines
    pairs = [(number, _NUMBERED.fullmatch(line)) for number, line in body]
    if body and all(pair for _, pair in pairs):
        found = [ListedName(f"line {number}", int(pair[1]), pair[2].strip()) for number, pair in pairs if pair]
        return NameList("a list of ids and names", found)
    if all(line.startswith("- ") for _, line in lines):
        found = [ListedName(f"line {number}", None, line[2:].strip()) for number, line in lines]
        return NameList("a list of YAML", found)
    return _of_lines(lines, numbered, where)


def _of_lines(lines: list[tuple[int, str]], numbered: list[tuple[int, str]], where: str) -> NameList:
    """Parse one name per line. If every line has a comma or any name is quoted, parse the lines as CSV instead."""
    quoted = any(len(line) > 1 and line[0] == line[-1] == '"' for _, line in lines)
    if quoted or all("," in line for _, line in lines):
        return _of_cells(lines, where)
    for number, line in lines:
        if "\t" in line or all(";" in other for _, other in lines):
            raise OsmError(f"{where}: line {number}: {shown(line)} is not a name; expected {ALLOWED}")
    blank = next(
        (number for number, line in numbered if not line.strip() and lines[0][0] < number < lines[-1][0]), None
    )
    return NameList("", [ListedName(f"line {number}", None, line) for number, line in lines], blank)


def _of_cells(lines: list[tuple[int, str]], where: str) -> NameList:
    found = []
    for number, line in lines:
        try:
            cells = next(csv.reader([line], skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise OsmError(f"{where}: line {number}: {shown(line)} is not a valid CSV row ({error})") from None
        found += [ListedName(f"line {number}", None, cell.strip()) for cell in cells if cell.strip()]
    for one in found:
        if one.name.replace(".", "").isdigit():
            raise OsmError(
                f"{where}: {one.place}: {shown(one.name)} is a number; a comma-separated list must contain only names"
            )
    return NameList("a list with commas", found)


def _of_yaml(text: str, where: str) -> NameList:
    """Parse a list of names in YAML, as found in the dataset files of training frameworks.

    The key `names` contains a list, or a mapping from ids to names.
    """
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise OsmError(f"{where}: looks like YAML but is not valid ({error}); expected {ALLOWED}") from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and names and all(whole(key) is not None for key in names):
        found = [ListedName(f"names, id {shown(key)}", whole(key), name) for key, name in names.items()]
    elif isinstance(names, list) and names:
        found = [ListedName(f"names, entry {number}", number, name) for number, name in enumerate(names)]
    else:
        raise OsmError(
            f"{where}: the value of names, {shown(names)}, is neither a list nor a mapping from ids to names; "
            f"expected {ALLOWED}"
        )
    return NameList("the names of a YAML file", found)
