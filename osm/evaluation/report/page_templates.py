"""Renders HTML pages from the jinja2 templates in this package, with automatic escaping.

Each HTML page is one self-contained file: the style sheet and the script are embedded, images are data URIs, and charts
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
"""Shown in a table cell that has no value."""


def render_page(template: str, **context: Any) -> Iterator[str]:
    """Render a template from this package and yield the page in chunks.

    Names come from files and may contain any characters, so every string in the template's context is escaped, and its
    control characters are made visible (see `printable`). Only strings of type `Markup` are inserted unchanged.
    """
    return _environment().get_template(template).generate(**context)


def percent(share: float) -> str:
    """Format a fraction (0 to 1) as a percentage with one decimal place and a non-breaking space."""
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
    """Make control characters in a template value visible. `Markup` is trusted and therefore returned unchanged."""
    return value if isinstance(value, Markup) else printable(value)
