"""HTML of the notebook. All object names are untrusted input, so they are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from osm.serving.engine import NamedRegion
from osm.terminal import printable

if TYPE_CHECKING:
    from osm.recognition.answers import Alternative, Recognition

_COLUMNS = ("Chosen by", "Name", "Probability", "Pixels")
_NUMBERS = ("Probability", "Pixels")


def history(found: Sequence[NamedRegion]) -> str:
    """Return an HTML table of all regions named in an image, starting with the most recent one."""
    if not found:
        return '<p class="osm-hint">Nothing has been named in this picture yet.</p>'
    caption = "Named in this picture, the latest first"
    heads = "".join(
        f'<th scope="col"{" class=osm-number" if name in _NUMBERS else ""}>{name}</th>' for name in _COLUMNS
    )
    rows = "".join(map(_row, found[::-1]))
    table = f'<table class="osm-table"><caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
    table += f"<tbody>{rows}</tbody></table>"
    # A scrollable table needs a tabindex, so that keyboard users can reach it.
    return f'<div class="osm-scroll" tabindex="0" role="region" aria-label="{caption}">{table}</div>'


def _row(one: NamedRegion) -> str:
    return (
        f"<tr><td>{_escaped(one.selected_by)}</td>"
        f"<td>{'maybe ' if one.answer.unsure else ''}{_name(one.answer.text, one.answer.skipped)}</td>"
        f'<td class="osm-number">{"" if one.answer.skipped else likely_share(one.answer)}</td>'
        f'<td class="osm-number">{one.area}</td></tr>'
    )


def _name(text: str, skipped: str = "") -> str:
    return f"<em>no name: {_escaped(skipped)}</em>" if skipped else _escaped(text) or "<em>nothing</em>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def likely_share(found: Recognition) -> str:
    """Return the calibrated probability of a name if there is one, else the model's own probability."""
    return f"{found.prob:.1%}" if found.calibrated_prob is None else f"{found.calibrated_prob:.0%}"


def candidate_value(candidate: Alternative) -> str:
    """Return a candidate's probability in percent, or its cosine."""
    return f"{candidate.cosine:.2f}" if candidate.cosine is not None else f"{candidate.prob:.1%}"
