"""The report's parts on further metrics: their table, accuracy by mask size and frequency, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from osm.evaluation.metrics.measure import ModeMeasures, SetMeasures
from osm.evaluation.metrics.scores import FREQUENCY, LEXICAL, PART, SIZE
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.report.report_html import NOTHING, Markup, joined, number, percent, row_of, table, tag
from osm.evaluation.report.report_reliability import reliability_plot

if TYPE_CHECKING:
    from osm.evaluation.report.report import Report, SetReport

MODES = {"specific": "own mode", "agnostic": "any"}
_WORDS = (
    "Semantic IoU: shared words of prediction and name over all their words. Semantic Similarity: cosine of their "
    "sentence embeddings (all-MiniLM-L6-v2). Target: with the class's first name; best: the largest over all its "
    "names. WordNet: how the prediction is related to the class's names, the nearest relation of any of their senses. "
    "WUPS: Wu and Palmer's similarity in WordNet; at 0.9, similarities below that count a tenth. Wrong names score far "
    "above 0 in Semantic Similarity and in WUPS at 0.0: compare runs by them, and do not read them as shares."
)
_SPANS = "In brackets 95 % intervals of a bootstrap over images."


def further_metrics(report: Report) -> Markup:
    """A table for each set, with a column for each folder and mode."""
    return _per_set(report, tag("p", f"{_WORDS} {_SPANS}", class_="dim"), _metrics_table)


def sizes(report: Report) -> Markup:
    """Acc by COCO's mask sizes and LVIS's class frequencies."""
    about = "Sizes as COCO has them: small below 32\u00b2 pixels, medium below 96\u00b2, large the rest."
    return _per_set(report, tag("p", f"{about} {_SPANS}", class_="dim"), _size_table)


def _per_set(report: Report, about: Markup, show: Any) -> Markup:
    names = dict.fromkeys(name for sets in report.predictions.values() for name in sets)
    pieces: list[Any] = [about]
    for name in names:
        entries = {title: sets[name] for title, sets in report.predictions.items() if name in sets}
        pieces.append(show(name, entries))
    return joined(pieces)


def _columns(entries: dict[str, SetReport]) -> dict[str, ModeMeasures]:
    several = len(entries) > 1
    return {
        f"{title}, {MODES[mode]}" if several else MODES[mode]: measures
        for title, entry in entries.items()
        if entry.measures
        for mode, measures in entry.measures.modes.items()
    }


def _metrics_table(name: str, entries: dict[str, SetReport]) -> Markup:
    return _rates_table(name, entries, "further metrics", lambda key: not key.startswith((SIZE, FREQUENCY, PART)))


def _size_table(name: str, entries: dict[str, SetReport]) -> Markup:
    return _rates_table(name, entries, "Acc by size and frequency", lambda key: key.startswith((SIZE, FREQUENCY)))


def _rates_table(name: str, entries: dict[str, SetReport], what: str, wanted: Any) -> Markup:
    columns = _columns(entries)
    keys = [key for key in dict.fromkeys(k for one in columns.values() for k in one.main()) if wanted(key)]
    notes = [note for entry in entries.values() if entry.measures for note in _notes(entry.measures, wanted)]
    lines = [tag("p", note, class_="dim") for note in dict.fromkeys(notes)]
    if not keys:
        return joined([*lines] or [tag("p", f"{name}: nothing to show.", class_="dim")])
    titles = {key: title for one in columns.values() for key, title in one.scores.titles.items()}
    rows = [row_of(titles[key], *(rate_cell(one.rates.get(key)) for one in columns.values())) for key in keys]
    return joined([table(f"{name}: {what}", ["", *columns], [tag("tbody", joined(rows))]), *lines])


def _notes(measures: SetMeasures, wanted: Any) -> list[str]:
    """What was left out of this table: notes on groups of masks belong to theirs, all others to the first table."""
    return [note for note in measures.notes if ("Acc by " in note) != wanted(LEXICAL) and "calibration" not in note]


def rate_cell(rate: Rate | None) -> Markup:
    """A cell with a rate, its interval, and how many masks and images it is of."""
    if rate is None or rate.value is None:
        return number(NOTHING)
    span = "" if rate.interval is None else f"[{100 * rate.interval[0]:.1f}, {100 * rate.interval[1]:.1f}]"
    title = f"{rate.masks} masks in {rate.images} images"
    return tag("td", percent(rate.value), " ", tag("small", span), class_="n", title=title)


def calibration(name: str, entry: SetReport) -> Markup:
    """The plot of one set, and its reliability table."""
    if entry.measures is None:
        return tag("p", f"{name}: not measured.", class_="dim")
    modes = {MODES[key]: mode.calibration for key, mode in entry.measures.modes.items()}
    plot = reliability_plot(name, modes)
    notes = [tag("p", note, class_="dim") for note in entry.measures.notes if "calibration" in note]
    if not plot:
        return joined([tag("p", f"{name}: no prediction has a probability.", class_="dim"), *notes])
    errors = ", ".join(f"{mode} {percent(one.ece)}" for mode, one in modes.items() if one.ece is not None)
    rows = [
        row_of(f"{low.low:.2f} to {low.high:.2f}", mode, *_bin_cells(low.masks, low.prob, low.acc))
        for mode, one in modes.items()
        for low in one.bins
        if low.masks
    ]
    made = table(f"{name}: reliability", ["probability", "mode", "masks", "mean", "Acc"], [tag("tbody", joined(rows))])
    caption = tag("figcaption", f"{name}: expected calibration error {errors}; 15 bins.", class_="dim")
    details = tag("details", tag("summary", f"{name}: the bins"), made)
    return joined([tag("figure", Markup(plot), caption), details, *notes])


def _bin_cells(masks: int, prob: float | None, acc: float | None) -> list[Markup]:
    return [number(masks), *(number(NOTHING if value is None else percent(value)) for value in (prob, acc))]
