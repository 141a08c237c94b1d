"""Rendering of the HTML pages: the jinja2 templates of this package, with automatic escaping.

A page is one file that needs no network: its style sheet and its script are included, images are data URIs, and charts
are inline SVG.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from osm.terminal import printable

NOTHING = "–"
"""Written in a cell that has no value."""


def render_page(template: str, **context: Any) -> Iterator[str]:
    """Render a template of this package and yield the page in pieces.

    Names come from files and may contain anything. Every string of the context is made `printable` and is escaped
    where the template inserts it, unless it is `Markup`.
    """
    return _environment().get_template(template).generate(**context)


def percent(share: float) -> str:
    """Format a share (0 to 1) as a percentage with one decimal place and a no-break space."""
    return f"{100 * share:.1f}\u00a0%"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("osm.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["percent"] = percent
    return environment


def _finalize(value: Any) -> Any:
    """Write out the control characters of an inserted value. Escaping follows, so markup is left alone."""
    return value if isinstance(value, Markup) else printable(value)
