"""Renders HTML pages from the jinja2 templates in this package, with automatic escaping.

Each HTML page is one self-contained file: the style sheet and the script are embedded, images are data URIs, and charts
are inline SVG.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader

from osm.html_pages import page_environment

NOTHING = "–"
"""Shown in a table cell that has no value."""


def render_page(template: str, **context: Any) -> Iterator[str]:
    """Render a template from this package and yield the page in chunks.

    Strings in the template's context are escaped as in all pages; see `osm.html_pages`.
    """
    return _environment().get_template(template).generate(**context)


def percent(share: float) -> str:
    """Format a fraction (0 to 1) as a percentage with one decimal place and a non-breaking space."""
    return f"{100 * share:.1f}\u00a0%"


@cache
def _environment() -> Environment:
    environment = page_environment(PackageLoader("osm.evaluation.report", "templates"))
    environment.filters["percent"] = percent
    return environment
