"""The report's charts, drawn as inline SVG by matplotlib: the loss curve and the calibration plot.

The same data always produces the same SVG. Text and axes use colors from the page's style sheet, so the charts follow
the page's light or dark theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from osm.evaluation.metrics.calibration import Calibration
from osm.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The color-blind-safe Okabe-Ito palette, without yellow, which is hard to see on white.
# Lines also differ in their dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MODE_STYLES: dict[str, dict[str, Any]] = {
    "own mode": {"color": "#0072b2"},
    "any": {"color": "#d55e00", "dashes": (4, 2)},
}
# Placeholder colors that no other element uses; they are replaced with CSS variables in the finished SVG.
_INK, _GRID, _FRAME = "#010101", "#020202", "#030303"
_CSS_COLOURS = {_INK: "currentColor", _GRID: "var(--line)", _FRAME: "var(--dim)"}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "osm",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 12,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FRAME,
    "axes.axisbelow": True,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_WIDTH, _HEIGHT = 760, 300  # size of the loss curve in points; the SVG has one unit per point
_LEGEND_COLUMNS, _LEGEND_ROW = 3, 20
_LONGEST_LABEL = 36
_MOST_POINTS = 400


def loss_curve(records: Sequence[Mapping[str, Any]]) -> Markup:
    """Plot the loss of a training run over optimizer steps, with a logarithmic loss axis.

    Args:
        records: the records of the training log (see `read_log`). The total `loss` is a thick line. Every
            `loss/<set>/<mode>` is a thin line: both modes of a dataset share a color, and mode `any` is dashed.

    Returns:
        The SVG, or "" if no loss is positive and finite in at least two records, because one point is no curve.
    """
    keys = ["loss", *sorted({key for record in records for key in record if key.startswith("loss/")})]
    lines = {key: points for key in keys if (points := _points(records, key))}
    if max(map(len, lines.values()), default=0) < 2:
        return Markup("")
    rows = math.ceil(len(lines) / _LEGEND_COLUMNS)
    height = _HEIGHT + 70 + rows * _LEGEND_ROW

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((56 / _WIDTH, 1 - (_HEIGHT + 12) / height, (_WIDTH - 76) / _WIDTH, _HEIGHT / height))
        drawn = []
        for number, (key, points) in enumerate(lines.items()):
            # A line with a single point is drawn as a marker. The total loss is drawn on top of all other losses.
            style = _loss_style(key, number)
            marker = "o" if len(points) == 1 else ""
            order = 3 if key == "loss" else 2
            (line,) = axes.plot(*zip(*points, strict=True), marker=marker, zorder=order, clip_on=False, **style)
            line.set_gid(f"series-{number}")
            drawn.append(line)
        _scale_loss_axes(axes, [point for points in lines.values() for point in points])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("cross-entropy per token")
        box = (50 / _WIDTH, 0, (_WIDTH - 60) / _WIDTH, 0.1)
        labels = [_placeholder(number) for number in range(len(drawn))]
        legend: Any = {"loc": "lower left", "bbox_to_anchor": box, "mode": "expand", "ncols": _LEGEND_COLUMNS}
        figure.legend(drawn, labels, frameon=False, **legend)

    total = lines.get("loss") or next(iter(lines.values()))
    spoken = f"Loss curve: {total[0][1]:.3g} at step {total[0][0]:g}, {total[-1][1]:.3g} at step {total[-1][0]:g}"
    labels = ["all sets, summed" if key == "loss" else key.removeprefix("loss/") for key in lines]
    return _svg((_WIDTH, height), draw, "curve", spoken, labels)


def reliability_plot(name: str, modes: Mapping[str, Calibration]) -> Markup:
    """Draw the calibration plot of one dataset.

    The upper plot shows each bin's accuracy against its mean probability; larger dots represent bins with more masks.
    The lower plot is a bar chart of the number of masks in each bin.

    Args:
        name: name of the dataset.
        modes: the reliability tables of the dataset's `own mode` and of mode `any`.

    Returns:
        The SVG, or "" if no mask has a probability.
    """
    modes = {mode: table for mode, table in modes.items() if table.masks}
    if not modes:
        return Markup("")
    width, height, side, bars = 486, 424, 300, 60

    def draw(figure: Figure) -> None:
        upper = figure.add_axes((56 / width, 1 - (side + 12) / height, side / width, side / height))
        lower = figure.add_axes((56 / width, 42 / height, side / width, bars / height))
        upper.plot([0, 1], [0, 1], color=_FRAME, linewidth=1, linestyle=":", clip_on=False)
        drawn = []
        for place, (mode, table) in enumerate(modes.items()):
            bins = [(one.prob, one.acc, one.masks) for one in table.bins if one.prob is not None]
            probs, accs, masks = zip(*bins, strict=True)
            style = _MODE_STYLES[mode]
            (line,) = upper.plot(probs, accs, linewidth=1.5, clip_on=False, **style)
            line.set_gid(f"series-{place}")
            sizes = [(4 + 10 * math.sqrt(count / table.masks)) ** 2 for count in masks]
            dots = upper.scatter(probs, accs, sizes, style["color"], alpha=0.6, linewidths=0, clip_on=False, zorder=3)
            dots.set_gid(f"dots-{place}")
            part = [(one.high - one.low) / len(modes) for one in table.bins]
            lefts = [one.low + place * step for one, step in zip(table.bins, part, strict=True)]
            counts = [one.masks for one in table.bins]
            lower.bar(lefts, counts, [0.9 * step for step in part], align="edge", color=style["color"], clip_on=False)
            drawn.append(line)
        _scale_reliability_axes(upper, lower, max(one.masks for table in modes.values() for one in table.bins))
        placeholders = [_placeholder(number) for number in range(len(drawn))]
        figure.legend(drawn, placeholders, loc="upper left", bbox_to_anchor=(362 / width, 1), frameon=False)

    errors = ", ".join(f"{mode} ECE {100 * (table.ece or 0):.1f} %" for mode, table in modes.items())
    return _svg((width, height), draw, "curve plot", f"Calibration of {name}: {errors}", list(modes))


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return evenly subsampled (step, loss) points with positive, finite loss, always including the last point."""
    values = [(record["step"], record.get(key)) for record in records]
    points = [
        (float(step), float(loss))
        for step, loss in values
        if isinstance(loss, (int, float)) and math.isfinite(loss) and loss > 0
    ]
    every = math.ceil(len(points) / _MOST_POINTS) or 1
    return points[::-1][::every][::-1]


def _loss_style(key: str, number: int) -> dict[str, Any]:
    if key == "loss":
        return {"color": _INK, "linewidth": 2.5}
    # The losses are sorted, so a dataset's two modes follow each other; each such pair of lines shares a color.
    dashes = {"dashes": (5, 2.5)} if key.endswith("/any") else {}
    return {"color": _COLOURS[(number - 1) // 2 % len(_COLOURS)], "linewidth": 1.2, **dashes}


def _scale_loss_axes(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Set axis limits and ticks. Loss ticks are at 10^n, and for small ranges also at 2 * 10^n and 5 * 10^n."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

    steps, losses = zip(*points, strict=True)
    first, last = min(0.0, *steps), max(*steps, 1.0)
    low, high = math.log10(min(losses)) - 0.05, math.log10(max(losses)) + 0.05
    axes.set_yscale("log")
    axes.set_xlim(first, last)
    axes.set_ylim(10**low, 10**high)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=last - first > 6))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 3 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    _format_axes(axes)


def _scale_reliability_axes(upper: Axes, lower: Axes, most: int) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        axes.set_xticks(ticks)
    upper.set_ylim(0, 1)
    upper.set_yticks(ticks)
    upper.set_xticklabels([])
    upper.set_ylabel("share that is right (Acc)")
    lower.set_ylim(0, most)
    lower.set_yticks([0, most])
    lower.set_xlabel("probability; bars: masks per bin")
    _format_axes(upper, keep_x=False)
    _format_axes(lower)
    for side in ("top", "right", "left"):
        lower.spines[side].set_visible(False)
    lower.grid(False)


def _format_axes(axes: Axes, keep_x: bool = True) -> None:
    """Draw a grid without tick marks and format tick labels without trailing zeros."""
    if keep_x:
        axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    # Clipping is disabled, because an SVG clip path refers to an id, and ids must be unique within the page.
    # No clipping is needed, because nothing is drawn outside the axes.
    axes.grid(True, clip_on=False, linewidth=1)
    axes.tick_params(bottom=False, left=False)


def _placeholder(number: int) -> str:
    """Return a placeholder for a legend label, so that matplotlib can compute the layout without the actual label.

    The actual legend labels come from files; they are escaped and inserted into the finished SVG. Because matplotlib
    never sees the actual labels, it neither interprets them nor warns about characters missing from its font.
    """
    return f"label-{number:018d}"


def _svg(
    size: tuple[int, int], draw: Callable[[Figure], None], class_: str, spoken: str, labels: Sequence[str]
) -> Markup:
    """Draw a figure of the given size in points and return it as an SVG element with an ARIA label.

    `size` is (width, height).
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure((size[0] / 72, size[1] / 72))
        figure.patch.set_visible(False)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    document = stream.getvalue()
    document = document[document.index("<svg ") + len("<svg ") :]
    # Matplotlib uses the same ids in every SVG, so a page with several charts would contain duplicate ids.
    # The ids of lines and dots are converted to data attributes, and all other ids are removed.
    document = re.sub(r'<g id="((?:series|dots)-\d+)">', r'<g data-line="\1">', document)
    document = re.sub(r'<g id="[^"]*">', "<g>", document)
    document = re.sub(r" *\n", "\n", document)
    for colour, variable in _CSS_COLOURS.items():
        document = document.replace(colour, variable)
    for number, label in enumerate(labels):
        short = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
        document = document.replace(f">{_placeholder(number)}<", f">{escape(printable(short))}<")
    attributes = Markup('class="{}" role="img" aria-label="{}"').format(class_, printable(spoken))
    return Markup(f"<svg {attributes} {document.rstrip()}")
