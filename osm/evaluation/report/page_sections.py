"""The sections of the report page with its details: what each shows, and which are left out because they are empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from osm.evaluation.metrics import wilson_interval
from osm.evaluation.metrics.measure import ModeMeasures, SetMeasures
from osm.evaluation.metrics.scores import CLASS, FREQUENCY, LEXICAL, PART, PARTS, SIZE
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.report.charts import loss_curve, reliability_plot
from osm.evaluation.report.page_templates import NOTHING, percent
from osm.evaluation.report.report import Report, SetReport

CONFUSIONS = 25
MODES = {"specific": "own mode", "agnostic": "any"}
_MANY_CLASSES = 60  # In the report, tables that list more than 60 classes are collapsed.
_FEW = 5  # The report lists the 5 worst classes among the classes with at least 5 masks.


@dataclass(frozen=True)
class ShareOfMasks:
    """A share of masks and its 95 % interval.

    Attributes:
        count: number of masks that are counted, for example correctly named masks.
        total: number of all masks.
        interval: the 95 % interval; None if `total` is 0.
        over_images: whether the interval is a bootstrap interval over images; otherwise it is a Wilson interval.
    """

    count: int
    total: int
    interval: tuple[float, float] | None
    over_images: bool


@dataclass(frozen=True)
class PageSections:
    """The sections that follow the report's images and scores.

    Attributes:
        parts: key -> (heading, content). The key is also the name of the section's macro in `sections.html`. A section
            with empty content has nothing to show.
        left_out: for each part that is left out although it was asked for, the reason.
    """

    parts: dict[str, tuple[str, Any]]
    left_out: list[str]


def page_sections(report: Report) -> PageSections:
    """Return the sections of the report page, each for all prediction folders and datasets."""
    metrics, no_metrics = _rate_tables(report, "further metrics", _is_further)
    sizes, no_sizes = _rate_tables(report, "Acc by size and frequency", _is_of_group)
    calibration, no_calibration = _calibration(report)
    parts = {
        "training": ("Training", _training(report)),
        "parts": ("Parts of names", list(_parts_of_names(report))),
        "metrics": ("Further metrics", metrics),
        "sizes": ("Accuracy by mask size and class frequency", sizes),
        "calibration": ("Calibration", calibration),
        "classes": ("Accuracy by class", list(_classes(report))),
        "confusions": ("Commonest confusions", list(_confusions(report))),
    }
    no_training = ["training: the run's log has no step yet."] if report.records == [] else []
    return PageSections(parts, [*no_training, *no_metrics, *no_sizes, *no_calibration])


def set_names(report: Report) -> list[str]:
    """Return the names of all datasets in the prediction folders, without duplicates."""
    return list(dict.fromkeys(name for sets in report.predictions.values() for name in sets))


def share_of(count: int, total: int, rate: Rate | None = None) -> ShareOfMasks:
    """Return a share of masks with the bootstrap interval of `rate`, or with a Wilson interval if `rate` has none."""
    over_images = rate.interval if rate else None
    return ShareOfMasks(count, total, over_images or wilson_interval(count, total), bool(over_images))


def rate_of(entry: SetReport, mode: str, key: str) -> Rate | None:
    """Return one metric of a dataset with its interval; None if it was not measured."""
    measures = entry.measures.modes.get(mode) if entry.measures else None
    return measures.rates.get(key) if measures else None


def _entries(report: Report, name: str) -> dict[str, SetReport]:
    """Return the data of one dataset for each prediction folder that has predictions for the dataset."""
    return {title: sets[name] for title, sets in report.predictions.items() if name in sets}


def _label(report: Report, name: str, title: str) -> str:
    """Return the name of a dataset, followed by the title of the predictions if the report has several."""
    return f"{name}, {title}" if len(report.predictions) > 1 else name


def _training(report: Report) -> dict[str, Any] | None:
    """Return the last logged values and the loss curve of the training run; None if no step was logged."""
    if not report.records:
        return None
    last = report.records[-1]
    skipped = last.get("skipped_samples") or {}
    reasons = (
        ", ".join(f"{reason} {count}" for reason, count in skipped.items()) if isinstance(skipped, dict) else skipped
    )
    facts = {
        "steps": last["step"],
        "names trained on": last.get("names", NOTHING),
        "last loss": f"{last['loss']:.4g}",
        "skipped samples": reasons or "none",
        "skipped steps": last.get("skipped_steps", NOTHING),
    }
    return {"facts": list(facts.items()), "curve": loss_curve(report.records)}


def _parts_of_names(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of whole names, last words and modifiers, for datasets with multi-word class names."""
    for name in set_names(report):
        rows = []
        for title, sets in report.predictions.items():
            if name in sets and (counts := sets[name].breakdown.parts)["total"]:
                shares = [
                    share_of(counts[key], counts["total"], rate_of(sets[name], "specific", PART + key)) for key in PARTS
                ]
                rows.append({"title": title, "masks": counts["total"], "shares": shares})
        if rows:
            yield {"name": name, "rows": rows}


def _is_of_group(key: str) -> bool:
    return key.startswith((SIZE, FREQUENCY))


def _is_further(key: str) -> bool:
    return not key.startswith((SIZE, FREQUENCY, PART))


def _rate_tables(report: Report, what: str, wanted: Callable[[str], bool]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a table of selected metrics for each dataset, and the notes on datasets whose table would be empty."""
    found = [_rates(report, name, what, wanted) for name in set_names(report)]
    notes = [note for one in found if not one["rows"] for note in one["notes"]]
    return [one for one in found if one["rows"]], notes


def _rates(report: Report, name: str, what: str, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return a table of selected metrics for one dataset, with one column per pair of prediction folder and mode."""
    entries = _entries(report, name)
    columns: dict[str, ModeMeasures] = {
        f"{title}, {MODES[mode]}" if len(entries) > 1 else MODES[mode]: measures
        for title, entry in entries.items()
        if entry.measures
        for mode, measures in entry.measures.modes.items()
    }
    keys = [key for key in dict.fromkeys(k for one in columns.values() for k in one.main()) if wanted(key)]
    titles = {key: title for one in columns.values() for key, title in one.scores.titles.items()}
    rows = [(titles[key], [one.rates.get(key) for one in columns.values()]) for key in keys]
    measured = any(rate and rate.value is not None for _, rates in rows for rate in rates)
    notes = {title: _notes(entry.measures, wanted) for title, entry in entries.items() if entry.measures}
    return {
        "caption": f"{name}: {what}",
        "columns": list(columns),
        "rows": rows if measured else [],
        "notes": _merged(notes),
    }


def _notes(measures: SetMeasures, wanted: Callable[[str], bool]) -> list[str]:
    """Return the notes for one table of metrics in the report.

    Notes on Acc by mask size and Acc by class frequency go in the table of these two metrics. Notes on calibration go
    in neither table, and the remaining notes go in the report's table of further metrics.
    """
    return [note for note in measures.notes if ("Acc by " in note) != wanted(LEXICAL) and "calibration" not in note]


def _merged(notes: dict[str, list[str]]) -> list[str]:
    """Return the notes on several prediction folders without duplicates.

    A note that is not about all folders begins with the titles of its folders.
    """
    folders: dict[str, list[str]] = {}
    for title, found in notes.items():
        for note in found:
            folders.setdefault(note, []).append(title)
    return [note if len(titles) == len(notes) else f"{', '.join(titles)}: {note}" for note, titles in folders.items()]


def _calibration(report: Report) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """Return the calibration of each dataset in every prediction folder, and a note on each that has no probability."""
    found, left_out = [], []
    for name in set_names(report):
        measured = {title: entry.measures for title, entry in _entries(report, name).items() if entry.measures}
        plots = [_reliability(_label(report, name, title), measures) for title, measures in measured.items()]
        left_out += [
            f"calibration of {one['label']}: no prediction has a probability." for one in plots if not one["plot"]
        ]
        if shown := [one for one in plots if one["plot"]]:
            found.append(shown)
    return found, left_out


def _reliability(label: str, measures: SetMeasures) -> dict[str, Any]:
    """Return the calibration plot of one dataset in one prediction folder, and the bins of its reliability table."""
    modes = {MODES[key]: mode.calibration for key, mode in measures.modes.items()}
    return {
        "label": label,
        "plot": reliability_plot(label, modes),
        "errors": ", ".join(f"{mode} {percent(one.ece)}" for mode, one in modes.items() if one.ece is not None),
        "bins": [(mode, one) for mode, table in modes.items() for one in table.bins if one.masks],
        "notes": [note for note in measures.notes if "calibration" in note],
    }


def _classes(report: Report) -> Iterator[dict[str, Any]]:
    """Yield a table of the accuracies of each dataset's classes, with one column per prediction folder.

    The most frequent classes come first.
    """
    for name in set_names(report):
        shares = {title: found for title, entry in _entries(report, name).items() if (found := _class_shares(entry))}
        if not shares:
            continue
        classes = dict.fromkeys(one for found in shares.values() for one in found)
        rows = [(label, [found.get((key, label)) for found in shares.values()]) for key, label in classes]
        masks = [max(share.total for share in row if share) for _, row in rows]
        ordered = sorted(zip(rows, masks, strict=True), key=lambda pair: (-pair[1], pair[0][0]))
        yield {
            "name": name,
            "titles": list(shares) if len(report.predictions) > 1 else [],
            "rows": [(label, count, row) for (label, row), count in ordered],
            "folded": len(rows) > _MANY_CLASSES,
            "worst": list(_worst_classes(report, name, shares)),
            "enough": _FEW,
        }


def _class_shares(entry: SetReport) -> dict[tuple[int, str], ShareOfMasks]:
    """Return the share of correctly named masks of each class, by the id and the name of the class."""
    labels = entry.result.row.label_set
    return {
        (key, labels[key].target): share_of(right, total, rate_of(entry, "specific", f"{CLASS}{key}"))
        for key, (right, total) in entry.breakdown.classes.items()
    }


def _worst_classes(
    report: Report, name: str, shares: dict[str, dict[tuple[int, str], ShareOfMasks]]
) -> Iterator[tuple[str, list[tuple[str, ShareOfMasks]]]]:
    """Yield the frequent classes with the lowest accuracy for each prediction folder that has frequent classes."""
    for title, found in shares.items():
        frequent = [(label, share) for (_, label), share in found.items() if share.total >= _FEW]
        wrong = [(label, share) for label, share in frequent if share.count < share.total]
        wrong.sort(key=lambda row: (row[1].count / row[1].total, -row[1].total, row[0]))
        if frequent:
            yield _label(report, name, title), wrong[:_FEW]


def _confusions(report: Report) -> Iterator[list[dict[str, Any]]]:
    """Yield tables of each dataset's most frequent confusions, one table for each prediction folder with wrong names.

    A confusion is a pair of a class name and a wrong prediction.
    """
    for name in set_names(report):
        tables = []
        for title, entry in _entries(report, name).items():
            every = entry.breakdown.confusions
            pairs = entry.breakdown.commonest(CONFUSIONS)
            counts = f"{len(pairs)} of {len(every)} confusions; {every.total()} wrong masks in all"
            if pairs:
                tables.append({"caption": f"{_label(report, name, title)}: {counts}", "pairs": pairs})
        if tables:
            yield tables
