"""The report's calibration plot: how often names of a probability are right, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from osm.evaluation.metrics.calibration import Calibration
from osm.evaluation.report.report_html import text

_SIDE, _LEFT, _TOP, _BARS, _FOOT = 300, 56, 12, 60, 28
_STYLES = {"own mode": ("#0072b2", ""), "any": ("#d55e00", ' stroke-dasharray="6 3"')}


def reliability_plot(name: str, modes: Mapping[str, Calibration]) -> str:
    """The SVG of a set's modes (`own mode`, `any`): Acc over the mean probability of each bin, and below it how many
    masks each bin has.

    Returns:
        "" where no mask has a probability.
    """
    modes = {mode: table for mode, table in modes.items() if table.masks}
    if not modes:
        return ""
    width, height = _LEFT + _SIDE + 130, _TOP + _SIDE + 24 + _BARS + _FOOT
    spoken = ", ".join(f"{mode} ECE {100 * (table.ece or 0):.1f} %" for mode, table in modes.items())
    label = text(f"Calibration of {name}: {spoken}")
    return "\n".join(
        [
            f'<svg class="curve plot" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">',
            *_axes(),
            *(part for mode, table in modes.items() for part in _line(mode, table)),
            *_counts(modes),
            *_legend(modes),
            "</svg>",
        ]
    )


def _x(prob: float) -> float:
    return _LEFT + prob * _SIDE


def _y(acc: float) -> float:
    return _TOP + (1 - acc) * _SIDE


def _axes() -> Iterator[str]:
    bottom, right = _TOP + _SIDE, _LEFT + _SIDE
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _x(tick), _y(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
    yield f'<line class="frame" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{_TOP}" stroke-dasharray="2 4"/>'
    yield f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" class="frame"/>'
    middle = _TOP + _SIDE / 2
    yield (
        f'<text x="12" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 12 {middle:.0f})">'
        "share that is right (Acc)</text>"
    )
    yield (
        f'<text x="{_x(0.5):.0f}" y="{bottom + 24 + _BARS + 18}" text-anchor="middle">'
        "probability; bars: masks of each bin</text>"
    )


def _line(mode: str, table: Calibration) -> Iterator[str]:
    colour, dashes = _STYLES[mode]
    bins = [(one.prob, one.acc, one.masks) for one in table.bins if one.prob is not None and one.acc is not None]
    points = " ".join(f"{_x(prob):.1f},{_y(acc):.1f}" for prob, acc, _ in bins)
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
    for prob, acc, masks in bins:
        size = 2 + 5 * (masks / table.masks) ** 0.5  # its area tells how many
        yield f'<circle cx="{_x(prob):.1f}" cy="{_y(acc):.1f}" r="{size:.1f}" fill="{colour}" fill-opacity="0.6"/>'


def _counts(modes: Mapping[str, Calibration]) -> Iterator[str]:
    """Bars of the bins' masks, one mode beside the other."""
    base = _TOP + _SIDE + 24 + _BARS
    largest = max(one.masks for table in modes.values() for one in table.bins)
    for place, (mode, table) in enumerate(modes.items()):
        for one in table.bins:
            width = (one.high - one.low) * _SIDE / len(modes) - 1
            height = _BARS * one.masks / largest
            x = _x(one.low) + place * (width + 1) + 0.5
            yield (
                f'<rect x="{x:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{_STYLES[mode][0]}"/>'
            )
    yield f'<line class="frame" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{base}" y2="{base}"/>'
    yield f'<text x="{_LEFT - 6}" y="{base - _BARS + 8}" text-anchor="end">{largest}</text>'
    yield f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>'


def _legend(modes: Mapping[str, Calibration]) -> Iterator[str]:
    x = _LEFT + _SIDE + 14
    for place, mode in enumerate(modes):
        colour, dashes = _STYLES[mode]
        y = _TOP + 14 + 20 * place
        yield f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"{dashes}/>'
        yield f'<text x="{x + 32}" y="{y}">{text(mode)}</text>'
