"""HTML fragments and the style sheet for the demo page. All object names are untrusted input, so they are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from osm.serving.engine import NamedRegion
from osm.terminal import printable

if TYPE_CHECKING:
    from osm.recognition.answers import Alternative, Recognition

INTRODUCTION = """<header class="osm-head"><h1>What is that?</h1>
<p>Choose a picture, then point at something in it. The model generates its name. It may use any name, unless you give a
list of names.</p></header>"""

# The selector `:not(#osm)` gives a rule precedence over gradio's rules, which would hide the keyboard focus.
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.osm-head h1 { font-size: 1.6rem; font-weight: 700; margin: 0 0 .2rem; }
.osm-head p, .osm-hint { margin: 0; line-height: 1.45; max-width: 70ch; }
.osm-error, .osm-note { margin: 0; padding: .6rem .8rem; border-radius: 6px; border: 1px solid;
  overflow-wrap: anywhere; }
.osm-error { color: #7f1d1d; background: #fef2f2; border-color: #dc2626; }
.osm-note { color: var(--body-text-color); background: var(--background-fill-secondary);
  border-color: var(--border-color-primary); }
.dark .osm-error { color: #fecaca; background: #450a0a; border-color: #f87171; }
.osm-name { margin: 0; font-size: 1.7rem; line-height: 1.25; font-weight: 700; overflow-wrap: anywhere; }
.osm-name small { font-size: 1rem; font-weight: 400; white-space: nowrap; }
.osm-table { width: 100%; border-collapse: collapse; margin-top: .6rem; }
.osm-table caption { text-align: left; font-weight: 600; padding: .2rem 0; }
table.osm-table, .osm-table th, .osm-table td, .osm-table tr { border: 0 !important; background: none !important; }
.osm-table th, .osm-table td { text-align: left; padding: .35rem .5rem .35rem 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; vertical-align: top; }
.osm-table td { overflow-wrap: anywhere; }
.osm-table .osm-number { text-align: right !important; white-space: nowrap; font-variant-numeric: tabular-nums; }
.osm-bar { display: block; height: 5px; margin-top: 3px; border-radius: 3px; background: var(--color-accent); }
.osm-scroll { max-height: 24rem; overflow-y: auto; }
#osm-view img { cursor: crosshair; }
.gradio-container button:not(#osm):focus-visible, .gradio-container input:not(#osm):focus-visible,
.gradio-container textarea:not(#osm):focus-visible, .osm-scroll:focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
#osm-message:not(:has(p)) { display: none; }
#osm-answer:not(:has(.osm-full)) { display: none; }
"""


def error(sentence: str) -> str:
    """Return the HTML for an error message, which screen readers announce immediately."""
    return f'<p class="osm-error" role="alert">{_escaped(_as_sentence(sentence))}</p>'


def note(sentence: str) -> str:
    """Return the HTML for a status message."""
    return f'<p class="osm-note" role="status">{_escaped(_as_sentence(sentence))}</p>'


def answer(one: NamedRegion, method: str = "") -> str:
    """Return HTML that shows a region's name in large letters, above a bar chart of the most likely names."""
    found = one.answer
    if found.skipped:
        return (
            f'<p class="osm-name osm-full">No name</p><p class="osm-hint">{_escaped(_as_sentence(found.skipped))}</p>'
        )
    likely = f"{likely_share(found)} likely correct" if found.calibrated_prob is not None else likely_share(found)
    maybe = "unsure: maybe " if found.unsure else ""
    head = f'<p class="osm-name osm-full" role="status">{maybe}{_name(found.text)} <small>{likely}</small></p>'
    if found.said:
        head += f'<p class="osm-hint">Free answer: {_name(found.said)}.</p>'
    cosines = method == "mapped"
    rows = "".join(
        f"<tr><td>{rank}</td><td>{_name(other.text)}"
        f'<span class="osm-bar" style="width:{_share(other):.0f}%"></span></td>'
        f'<td class="osm-number">{candidate_value(other)}</td></tr>'
        for rank, other in enumerate(found.top, 1)
    )
    unit = "Cosine" if cosines else "Probability"
    return head + _table(f"The {len(found.top)} likeliest names", ("", "Name", unit), rows)


def everything(found: Sequence[NamedRegion]) -> str:
    """Return an HTML table of all segments, with the numbers that label them in the image."""
    return _table(
        "Everything that was found", ("No.", "Name", "Probability", "Pixels"), _rows(found, numbered=True), True
    )


def history(found: Sequence[NamedRegion]) -> str:
    """Return an HTML table of all regions named in an image, starting with the most recent one."""
    if not found:
        return '<p class="osm-hint">Nothing has been named in this picture yet.</p>'
    columns = ("Chosen by", "Name", "Probability", "Pixels")
    return _table("Named in this picture, the latest first", columns, _rows(found[::-1]), True)


def _rows(found: Sequence[NamedRegion], numbered: bool = False) -> str:
    return "".join(
        f"<tr><td>{number if numbered else _escaped(one.selected_by)}</td>"
        f"<td>{'maybe ' if one.answer.unsure else ''}{_name(one.answer.text, one.answer.skipped)}</td>"
        f'<td class="osm-number">{"" if one.answer.skipped else likely_share(one.answer)}</td>'
        f'<td class="osm-number">{one.area}</td></tr>'
        for number, one in enumerate(found, 1)
    )


def _table(caption: str, columns: Sequence[str], rows: str, scrolls: bool = False) -> str:
    # Numeric columns and their headers are right-aligned.
    heads = "".join(
        f'<th scope="col"{" class=osm-number" if name in ("Probability", "Cosine", "Pixels") else ""}>{name}</th>'
        for name in columns
    )
    table = f'<table class="osm-table"><caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
    table += f"<tbody>{rows}</tbody></table>"
    # A scrollable table needs a tabindex, so that keyboard users can reach it.
    return (
        f'<div class="osm-scroll osm-full" tabindex="0" role="region" aria-label="{caption}">{table}</div>'
        if scrolls
        else table
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


def _share(candidate: Alternative) -> float:
    value = candidate.cosine if candidate.cosine is not None else candidate.prob
    return 100 * min(max(value or 0.0, 0.0), 1.0)


def _as_sentence(text: str) -> str:
    text = text.strip()
    if text.split(" ")[0].isalpha():  # a file name keeps its case
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")
