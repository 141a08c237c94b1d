"""Text for people: what comes from files and models loses its control characters before it is shown."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# C0 (but tab and line feed), DEL and C1; what turns the direction of writing; other line breaks; lone surrogates, which
# stand for the bytes of a file name that is not UTF-8; and a line feed, unless the next line is indented: lines of our
# own are, so that nothing that a file says can look like a message of its own.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|\n(?!  )"
)
_NAMES = {"\n": "\\n", "\r": "\\r"}


def printable(text: object) -> str:
    """The text with control characters written out (`\\x1b`, `\\n`, `\\u202e`), for a terminal or a page.

    A line break stays where the next line is indented by two spaces.
    """
    return _CONTROL.sub(lambda found: _written(found[0]), str(text))


def _written(letter: str) -> str:
    code = ord(letter)
    return _NAMES.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def echo(*lines: object, file: TextIO | None = None, before: str = "", end: str = "\n", flush: bool = False) -> None:
    """Prints lines, each `printable`; the one way in which text leaves for the terminal.

    Args:
        file: standard output if not given.
        before, end: written as they are, such as what moves the cursor.
    """
    print(before + "\n".join(map(printable, lines)), file=file or sys.stdout, end=end, flush=flush)
