"""The jinja2 environment of all HTML pages: automatic escaping, and visible control characters.

Names come from files and may contain any characters. Every string in a template's context is escaped, and its control
characters are made visible (see `osm.terminal.printable`). Only strings of type `Markup` are inserted unchanged.
"""

from __future__ import annotations

from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from osm.terminal import printable


def page_environment(loader: BaseLoader) -> Environment:
    """Return an environment for the templates of a loader. An undefined variable is an error."""
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)
