"""A comparison as text, and as one HTML page that needs no network and nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from osm.evaluation.metrics.statistics import Bootstrap, Difference, Rate
from osm.evaluation.report.compare import OUTCOMES, Change, ModeComparison, SetComparison
from osm.evaluation.report.report_html import NOTHING, STYLE, Markup, joined, number, row_of, table, tag

TITLE = "Two runs compared"


def comparison_lines(comparison: SetComparison, titles: tuple[str, str]) -> list[str]:
    """A readable table of one set."""
    lines = []
    for name, mode in comparison.modes.items():
        lines.append(f"{comparison.row.title}, {name}: {mode.masks} masks, in %")
        lines.append(f"{'':<48}{titles[0]:>12.12}{titles[1]:>12.12}{'B - A':>24}{'p':>8}")
        for key in mode.main():
            difference = mode.difference[key]
            cells = f"{_figure(mode.a[key].value):>12}{_figure(mode.b[key].value):>12}{_spread(difference):>24}"
            lines.append(f"{mode.titles.get(key, key):<48}{cells}{_p(difference.p):>8}")
        lines.append(f"{'ECE, 15 bins':<48}{_figure(mode.ece[0]):>12}{_figure(mode.ece[1]):>12}")
        lines += [_outcome_line(mode, titles), *_left_out(mode, titles)]
        for what, changes in (("wrong -> right", mode.fixed), ("right -> wrong", mode.broken)):
            lines += [f"  {what}: {_example(change)}" for change in changes]
        lines.append("")
    return [*lines, *comparison.notes]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(difference: Difference) -> str:
    if difference.value is None:
        return "-"
    low_high = difference.interval
    interval = "" if low_high is None else f" [{100 * low_high[0]:+.1f}, {100 * low_high[1]:+.1f}]"
    return f"{100 * difference.value:+.1f}{interval}"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}"


def _outcome_line(mode: ModeComparison, titles: tuple[str, str]) -> str:
    both, a_alone, b_alone, neither = (mode.outcomes[name] for name in OUTCOMES)
    return (
        f"masks right in both: {both}; in {titles[0]} alone: {a_alone}; in {titles[1]} alone: {b_alone}; "
        f"in neither: {neither}"
    )


def _left_out(mode: ModeComparison, titles: tuple[str, str]) -> list[str]:
    counts = zip(titles, (mode.a_only, mode.b_only), strict=True)
    return [f"left out: {count} masks with a prediction in {title} alone" for title, count in counts if count]


def _example(change: Change) -> str:
    names = f"{change.given}: {change.a or '(nothing)'} -> {change.b or '(nothing)'}"
    return f"image {change.image}, mask {change.mask}, {names}"


def comparison_page(
    comparisons: Sequence[SetComparison], titles: tuple[str, str], notes: Sequence[str], bootstrap: Bootstrap
) -> Iterator[str]:
    """The page in pieces."""
    heading = f"{TITLE}: {titles[0]} and {titles[1]}"
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', heading)}\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{tag('h1', heading)}</header>\n<main>\n"
    )
    yield tag(
        "p",
        f"A is \u201c{titles[0]}\u201d, B is \u201c{titles[1]}\u201d. Differences are B less A over the same masks, in "
        f"percentage points, with 95 % intervals of a paired bootstrap over images ({bootstrap.samples} samples, seed "
        f"{bootstrap.seed}); p is two-sided, of no difference, and not corrected for the number of rows.",
    )
    for comparison in comparisons:
        yield tag("section", tag("h2", comparison.row.title), "\n", _set(comparison, titles)) + "\n"
    if notes:
        yield tag("section", tag("h2", "Left out"), tag("ul", *(tag("li", note) for note in notes)))
    yield "\n</main>\n</body>\n</html>\n"


def _set(comparison: SetComparison, titles: tuple[str, str]) -> Markup:
    pieces: list[Any] = []
    for name, mode in comparison.modes.items():
        rows = [_row(mode.titles.get(key, key), mode.a[key], mode.b[key], mode.difference[key]) for key in mode.main()]
        errors = [number(_figure(error)) for error in mode.ece]
        rows.append(row_of("ECE, 15 bins", *errors, *[number(NOTHING)] * 3))
        caption = f"{comparison.row.title}, {name}: {mode.masks} masks in {comparison.images} images, in %"
        head = ["", *titles, "B \u2212 A", "95 % interval", "p"]
        pieces += [table(caption, head, [tag("tbody", joined(rows))]), tag("p", _outcome_line(mode, titles))]
        pieces += [tag("p", line, class_="dim") for line in _left_out(mode, titles)]
        pieces += [_changes(name, what, changes, titles) for what, changes in _kinds(mode) if changes]
    return joined([*pieces, *(tag("p", note, class_="dim") for note in comparison.notes)])


def _kinds(mode: ModeComparison) -> list[tuple[str, list[Change]]]:
    return [("wrong \u2192 right", mode.fixed), ("right \u2192 wrong", mode.broken)]


def _row(title: str, a: Rate, b: Rate, difference: Difference) -> Markup:
    interval = difference.interval
    sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
    value = NOTHING if difference.value is None else f"{100 * difference.value:+.1f}"
    spread = NOTHING if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
    cells = [number(_figure(a.value)), number(_figure(b.value)), number(tag("strong", value) if sure else value)]
    return row_of(title, *cells, number(spread), number(_p(difference.p)))


def _changes(name: str, what: str, changes: list[Change], titles: tuple[str, str]) -> Markup:
    rows = [
        row_of(change.image, change.mask, change.given, change.a or "(nothing)", change.b or "(nothing)")
        for change in changes
    ]
    made = table(f"{name}: {what}", ["image", "mask", "given", *titles], [tag("tbody", joined(rows))])
    return tag("details", tag("summary", f"{name}: {what}, {len(changes)} examples"), made)
