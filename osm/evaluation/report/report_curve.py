"""The report's loss curve: a log of training as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from osm.evaluation.report.report_html import text

# Okabe and Ito's, without the yellow that white paper swallows; lines differ in their dashes too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _LEFT, _RIGHT, _TOP, _HEIGHT = 760, 56, 12, 12, 300
_LEGEND_COLUMNS, _LEGEND_ROW = 3, 20
_MOST_POINTS = 600

Points = list[tuple[float, float]]


def loss_curve(records: Sequence[Mapping[str, Any]]) -> str:
    """The SVG of a run's records (see `read_log`): the loss of each step, and each set's halves; y is logarithmic.

    Returns:
        "" where no record has a loss that a log axis can show.
    """
    halves = sorted({key for record in records for key in record if key.startswith("loss/")})
    lines = {key: _points(records, key) for key in ["loss", *halves]}
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return ""
    plot = _Plot([point for points in lines.values() for point in points])
    rows = math.ceil(len(lines) / _LEGEND_COLUMNS)
    height = _TOP + _HEIGHT + 50 + rows * _LEGEND_ROW
    total = lines.get("loss", [])
    spoken = f"Loss curve: {total[0][1]:.3g} at step {total[0][0]:g}, {total[-1][1]:.3g} at step {total[-1][0]:g}"
    parts = [
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(spoken)}">',
        *plot.axes(),
    ]
    for number, (key, points) in enumerate(reversed(lines.items())):  # the total last: on top
        style = _style(key, len(lines) - 1 - number)
        path = " ".join(f"{plot.x(step):.1f},{plot.y(loss):.1f}" for step, loss in points)
        parts.append(f'<polyline points="{path}" fill="none" {style}/>')
        if len(points) == 1:  # no line yet
            parts.append(f'<circle cx="{plot.x(points[0][0]):.1f}" cy="{plot.y(points[0][1]):.1f}" r="3" {style}/>')
    for number, key in enumerate(lines):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x = _LEFT + column * (_WIDTH - _LEFT) // _LEGEND_COLUMNS
        y = _TOP + _HEIGHT + 60 + row * _LEGEND_ROW
        label = "all sets, summed" if key == "loss" else key.removeprefix("loss/")
        parts.append(f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" {_style(key, number)}/>')
        parts.append(f'<text x="{x + 32}" y="{y}">{text(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def _points(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """(step, loss) of the records that a log axis can show, thinned out evenly; the last one stays."""
    values = [(record["step"], record.get(key)) for record in records]
    points = [
        (float(step), float(loss))
        for step, loss in values
        if isinstance(loss, (int, float)) and math.isfinite(loss) and loss > 0
    ]
    every = math.ceil(len(points) / _MOST_POINTS) or 1
    return points[::-1][::every][::-1]


def _style(key: str, number: int) -> str:
    if key == "loss":
        return 'stroke="currentColor" stroke-width="2.5"'
    # Both halves of a set follow each other by name: they share a colour, and `any` is dashed.
    dashes = ' stroke-dasharray="6 3"' if key.endswith("/any") else ""
    return f'stroke="{_COLOURS[(number - 1) // 2 % len(_COLOURS)]}" stroke-width="1.2"{dashes}'


class _Plot:
    """The plane of steps and log losses."""

    def __init__(self, points: Points) -> None:
        steps, losses = zip(*points, strict=True)
        self.first, self.last = min(0.0, *steps), max(*steps, 1.0)
        self.low, self.high = math.log10(min(losses)) - 0.05, math.log10(max(losses)) + 0.05

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        return _TOP + (self.high - math.log10(loss)) / (self.high - self.low) * _HEIGHT

    def axes(self) -> Iterator[str]:
        """Grid lines with their labels, and what the axes are."""
        bottom, right = _TOP + _HEIGHT, _WIDTH - _RIGHT
        for loss in self._losses():
            y = self.y(loss)
            yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:g}</text>'
        for step in self._steps():
            x = self.x(step)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{step:g}</text>'
        yield f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{_HEIGHT}" fill="none" class="frame"/>'
        yield f'<text x="{(_LEFT + right) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">optimiser step</text>'
        middle = _TOP + _HEIGHT / 2
        yield (
            f'<text x="12" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 12 {middle:.0f})">'
            "cross entropy of a token</text>"
        )

    def _losses(self) -> list[float]:
        """Ticks at 1, 2 and 5 of each decade; of the decades alone where there are many."""
        digits = (1, 2, 5) if self.high - self.low < 3 else (1,)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]

    def _steps(self) -> list[float]:
        """About six round steps."""
        rough = (self.last - self.first) / 6
        decade = 10.0 ** math.floor(math.log10(rough))
        width = next(digit * decade for digit in (1, 2, 5, 10) if digit * decade >= rough)
        if self.last - self.first > 6:
            width = max(width, 1.0)
        first = math.ceil(self.first / width)
        return [tick * width for tick in range(first, math.floor(self.last / width) + 1)]
