"""Replaces the tables of a documentation page by tables that are made from measured figures."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

WIDTH = 120  # columns of a page's text


def read(path: Path) -> Any:
    """Return the figures of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * (lines[0].count(" | ") + 1) + "|", *lines[1:]]) + "\n"


def percent(share: float, sign: str = "") -> str:
    """Return a share in percent. With `sign="+"`, a positive value begins with a plus sign."""
    return f"{100 * share:{sign}.1f}"


def with_interval(rate: Mapping[str, Any], sign: str = "") -> str:
    """Return the `value` of a rate and its `interval` in percent. `sign` is that of `percent`.

    A rate of a single image has no interval.
    """
    if rate["interval"] is None:
        return percent(rate["value"], sign)
    low, high = rate["interval"]
    return f"{percent(rate['value'], sign)} ({percent(low, sign)} to {percent(high, sign)})"


def paragraph(*sentences: str) -> str:
    """Return sentences as a wrapped paragraph. Links are not broken."""
    return textwrap.fill(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with its tables replaced, each between `<!-- mark -->` and `<!-- end of mark -->`."""
    for mark, table in tables.items():
        pattern = f"<!-- {mark} -->.*?<!-- end of {mark} -->"
        new = f"<!-- {mark} -->\n{table}<!-- end of {mark} -->"
        text, count = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        assert count == 1, f"the page has {count} tables {mark}"
    return text


def write_pages(what: str, pages: Mapping[str, Callable[[Path], Mapping[str, str]]]) -> int:
    """Parse the command line (a folder of figures, and a folder of pages), and replace the tables of the pages.

    Args:
        what: what the script does, for its help.
        pages: the path of each page inside the folder of pages, and the function that returns its tables.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("figures", type=Path, help="folder of the raw values, docs/benchmarks")
    parser.add_argument("pages", type=Path, help=f"folder of the pages {', '.join(pages)}")
    args = parser.parse_args()
    for name, tables in pages.items():
        page = args.pages / name
        old = page.read_text(encoding="utf-8")
        new = with_tables(old, tables(args.figures))
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"{page}: written anew")
    return 0


def write_tables(what: str, tables: Callable[[Path], Mapping[str, str]]) -> int:
    """Parse the command line (a folder of figures, and a page), and replace the tables of the page."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("figures", type=Path)
    parser.add_argument("page", type=Path)
    args = parser.parse_args()
    args.page.write_text(with_tables(args.page.read_text(encoding="utf-8"), tables(args.figures)), encoding="utf-8")
    return 0
