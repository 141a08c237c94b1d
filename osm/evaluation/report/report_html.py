"""The report's HTML by the piece: escaped text, tables, figures, and what the page carries of style and script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from osm.evaluation.metrics import wilson_interval
from osm.evaluation.metrics.statistics import Rate
from osm.terminal import printable

NOTHING = "–"


class Markup(str):
    """Text that is HTML already; every other text is escaped."""


def text(value: Any) -> Markup:
    """The value as HTML: printable and escaped, unless it is markup. Names come from files and may hold anything."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(printable(value)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element; `class_` stands for class, and an attribute of None is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inner = "".join(f' {key}="{text(value)}"' for key, value in given.items())
    return Markup(f"<{name}{inner}>{''.join(text(part) for part in content)}</{name}>")


def joined(parts: Iterable[Any]) -> Markup:
    """Pieces below each other."""
    return Markup("\n".join(text(part) for part in parts))


def table(caption: str, head: Sequence[Any], body: Iterable[Any], class_: str | None = None) -> Markup:
    """A table with a header row; it scrolls by itself where the screen is narrow."""
    cells = [cell if isinstance(cell, Markup) and cell.startswith("<th") else column(cell) for cell in head]
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *cells)), joined(body), class_=class_)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def column(*content: Any, **attributes: Any) -> Markup:
    """A column's header."""
    return tag("th", *content, scope="col", **attributes)


def row_of(header: Any, *cells: Any) -> Markup:
    """A table's row; cells that are no `td` yet become one."""
    made = [cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell) for cell in cells]
    return tag("tr", tag("th", header, scope="row"), *made)


def number(value: Any) -> Markup:
    """A cell with a number, at the right."""
    return tag("td", value, class_="n")


def percent(share: float) -> str:
    """A share as the page writes it."""
    return f"{100 * share:.1f}\u00a0%"


def share(count: int, total: int, strong: bool = False, rate: Rate | None = None) -> Markup:
    """A cell with a share, its counts, and its 95 % interval where the pointer rests: the rate's, else Wilson's."""
    over_images = rate.interval if rate else None
    interval = over_images or wilson_interval(count, total)
    if interval is None:
        return tag("td", NOTHING, class_="n")
    low, high = interval
    figure = tag("strong" if strong else "span", percent(count / total))
    title = (
        f"{count} of {total}; 95 % interval {percent(low)} to {percent(high)}{' over images' if over_images else ''}"
    )
    return tag("td", figure, " ", tag("small", f"{count}/{total}"), class_="n", title=title)


STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2329;--dim:#59636e;--line:#d5dae0;--soft:#f3f5f7;--bar:#0072b2;
--good:#0a6b4b;--bad:#a8430b}
@media (prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e4e8ec;--dim:#9aa5b1;--line:#39424c;--soft:#1f252b;
--bar:#56b4e9;--good:#5ed3a8;--bad:#ff9d66}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;background:var(--bg);
color:var(--fg);overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
nav a{margin-right:1rem}a{color:var(--bar)}p{max-width:48rem}small,.dim,footer{color:var(--dim)}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
thead th{background:var(--soft)}tbody th{font-weight:400}tbody th[scope=rowgroup]{font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody+tbody{border-top:2px solid var(--dim)}tr.base{font-style:italic}
.bar{display:block;width:10rem;height:.9rem;background:var(--soft);border:1px solid var(--line)}
.bar span{display:block;height:100%;background:var(--bar)}
button{font:inherit;font-weight:600;background:none;border:0;padding:0;color:inherit;cursor:pointer;
text-decoration:underline dotted}
th[aria-sort=ascending] button:after{content:" \\2191"}th[aria-sort=descending] button:after{content:" \\2193"}
.curve{width:100%;max-width:760px;height:auto;font-size:12px}.curve text{fill:currentColor}
.plot{max-width:486px}
.grid{stroke:var(--line)}.frame{stroke:var(--dim)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.5rem}
figure{margin:0}figure img{max-width:100%;height:auto;display:block}
.ok{color:var(--good)}.no{color:var(--bad)}.ok,.no{font-weight:700;white-space:nowrap}
summary{cursor:pointer;font-weight:600}
"""

# Sorts the rows of a table by the column whose header is pressed; data-v is what the cell stands for.
SCRIPT = """
for (const button of document.querySelectorAll("table.sort th button")) button.onclick = () => {
  const th = button.parentNode, table = th.closest("table"), column = th.cellIndex, body = table.tBodies[0];
  const down = th.getAttribute("aria-sort") === "ascending";
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b), n = Number(x) - Number(y);
    return Number.isNaN(n) ? x.localeCompare(y) : n;
  });
  body.append(...(down ? rows.reverse() : rows));
};
"""
