"""Writes the evaluation report as one HTML page and its values as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import write_failed
from osm.evaluation.metrics import majority_class, wilson_interval
from osm.evaluation.metrics.measure import ModeMeasures, SetMeasures
from osm.evaluation.metrics.scores import CLASS, FREQUENCY, LEXICAL, PART, PARTS, SIZE
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.predict.prediction_files import made_with
from osm.evaluation.report.charts import loss_curve, reliability_plot
from osm.evaluation.report.page_templates import NOTHING, percent, render_page
from osm.evaluation.report.report import Report, ReportOptions, SetReport, collect_report
from osm.evaluation.report.result_images import DrawnImage
from osm.files import write_atomically

PAGE, RESULTS = "report.html", "results.json"
CONFUSIONS = 25
MODES = {"specific": "own mode", "agnostic": "any"}
_MANY_CLASSES = 60  # In the report, tables that list more than 60 classes are collapsed.
_MANY_MASKS = 15  # In the report, tables that list more than 15 masks are collapsed.
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
class ClassAccuracy:
    """The share of correctly named masks of one class."""

    name: str
    share: ShareOfMasks


def write_report(
    out_dir: Path,
    predictions: Mapping[str, Path],
    parts: int,
    table: Mapping[str, Dataset],
    options: ReportOptions | None = None,
) -> dict[str, Any]:
    """Write `report.html` and `results.json` into `out_dir`, overwriting existing files.

    The same input always produces identical report files.

    Args:
        out_dir: the output folder, created if it does not exist.
        predictions: title -> folder of prediction files. All folders are scored. The first folder is the main folder:
            the page shows its accuracy by class, its confusions and its images.
        parts: the n that generate_pred.py was run with, which must be the same for all folders.
        table: the table of datasets. Its paths are used where the paths recorded by generate_pred.py no longer exist.
        options: what the report contains; None uses the defaults of `ReportOptions`.

    Returns:
        The content of `results.json`.

    Raises:
        OsmError: Prediction files are missing or invalid, the run has no log, the baselines have a different structure,
            or `out_dir` cannot be written. Missing images do not raise an error: the page reports them.
    """
    report = collect_report(predictions, parts, table, options or ReportOptions())
    document = report.as_json()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(out_dir / RESULTS, [json.dumps(document, indent=1, allow_nan=False) + "\n"])
        write_atomically(out_dir / PAGE, page(report))
    except OSError as error:
        raise write_failed(error, f"out_dir {out_dir}", "a folder that can be written") from None
    return document


def page(report: Report) -> Iterator[str]:
    """Render the report and yield the HTML page in chunks."""
    main_title, main = next(iter(report.predictions.items()))
    measured = any(entry.measures for sets in report.predictions.values() for entry in sets.values())
    sections = {"scores": "Scores", "training": "Training"}
    if measured:
        sections["metrics"] = "Further metrics"
        sections["sizes"] = "Accuracy by mask size and class frequency"
        sections["calibration"] = "Calibration"
    sections |= {"classes": "Accuracy by class", "confusions": "Commonest confusions", "pictures": "Pictures"}
    return render_page(
        "report.html",
        title=report.title,
        main_title=main_title,
        sections=list(sections.items()),
        scores=list(_scores(report)),
        parts_of_names=list(_parts_of_names(report)),
        made_with=_made_with(report),
        left_out=report.notes,
        training=_training(report),
        further_metrics=[_rates(report, name, "further metrics", _is_further) for name in _set_names(report)],
        size_metrics=[_rates(report, name, "Acc by size and frequency", _is_of_group) for name in _set_names(report)],
        calibration=[_calibration(name, entry) for name, entry in main.items()],
        classes=[_classes(name, entry) for name, entry in main.items()],
        confusions=[_confusions(name, entry) for name, entry in main.items()],
        pictures=[_pictures(name, entry) for name, entry in main.items()],
        versions=[f"{name} {version}" for name, version in report.versions.items()],
        checkpoints=[(title, ", ".join(_fingerprints(sets))) for title, sets in report.predictions.items()],
    )


def _set_names(report: Report) -> list[str]:
    """Return the names of all datasets in the prediction folders, without duplicates."""
    return list(dict.fromkeys(name for sets in report.predictions.values() for name in sets))


def _share(count: int, total: int, rate: Rate | None = None) -> ShareOfMasks:
    """Return a share of masks with the bootstrap interval of `rate`, or with a Wilson interval if `rate` has none."""
    over_images = rate.interval if rate else None
    return ShareOfMasks(count, total, over_images or wilson_interval(count, total), bool(over_images))


def _rate(entry: SetReport, mode: str, key: str) -> Rate | None:
    measures = entry.measures.modes.get(mode) if entry.measures else None
    return measures.rates.get(key) if measures else None


def _scores(report: Report) -> Iterator[dict[str, Any]]:
    """Yield one section of the report's score table for each dataset."""
    for name in dict.fromkeys([*_set_names(report), *report.baselines]):
        entries = {title: sets[name] for title, sets in report.predictions.items() if name in sets}
        baselines = [
            (baseline, f"{value:.1f}\u00a0%" if isinstance(value, (int, float)) else value)
            for baseline, value in report.baselines.get(name, {}).items()
        ]
        yield {
            "heading": next((f"{entry.result.row.title} ({name})" for entry in entries.values()), name),
            "rows": [_score_row(title, entry) for title, entry in entries.items()],
            "baselines": baselines,
        }


def _score_row(title: str, entry: SetReport) -> dict[str, Any]:
    result, either = entry.result, entry.breakdown.either
    own, anyone = result.specific, result.agnostic
    majority = majority_class(result.categories)
    return {
        "title": title,
        "masks": sum(result.categories.values()),
        "own": _share(own.correct, own.total, _rate(entry, "specific", "acc")),
        "any": _share(anyone.correct, anyone.total, _rate(entry, "agnostic", "acc")),
        "either": _share(either["correct"], either["total"], _rate(entry, "agnostic", "either_vocabulary")),
        "own_niv": _share(own.not_in_vocabulary, own.total, _rate(entry, "specific", "niv")),
        "any_niv": _share(anyone.not_in_vocabulary, anyone.total, _rate(entry, "agnostic", "niv")),
        "majority": majority and (majority[1], result.row.label_set[majority[0]].target),
        "without": result.without_prediction,
    }


def _parts_of_names(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of whole names, last words and modifiers, for datasets with multi-word class names."""
    for name in _set_names(report):
        rows = []
        for title, sets in report.predictions.items():
            if name in sets and (counts := sets[name].breakdown.parts)["total"]:
                shares = [
                    _share(counts[key], counts["total"], _rate(sets[name], "specific", PART + key)) for key in PARTS
                ]
                rows.append({"title": title, "masks": counts["total"], "shares": shares})
        if rows:
            yield {"name": name, "rows": rows}


def _made_with(report: Report) -> list[str]:
    """Return notes on predictions that were made with non-default settings, such as a limited number of images."""
    return sorted(
        {
            f"{title}: {note}"
            for title, sets in report.predictions.items()
            for entry in sets.values()
            for note in made_with(entry.result.meta)
        }
    )


def _training(report: Report) -> dict[str, Any] | None:
    """Return the last logged values and the loss curve of the training run.

    The result is None if there is no training run, and {} if the training log contains no steps.
    """
    if not report.records:
        return None if report.records is None else {}
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


def _is_of_group(key: str) -> bool:
    return key.startswith((SIZE, FREQUENCY))


def _is_further(key: str) -> bool:
    return not key.startswith((SIZE, FREQUENCY, PART))


def _rates(report: Report, name: str, what: str, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return a table of selected metrics for one dataset, with one column per pair of prediction folder and mode."""
    entries = {title: sets[name] for title, sets in report.predictions.items() if name in sets}
    columns: dict[str, ModeMeasures] = {
        f"{title}, {MODES[mode]}" if len(entries) > 1 else MODES[mode]: measures
        for title, entry in entries.items()
        if entry.measures
        for mode, measures in entry.measures.modes.items()
    }
    keys = [key for key in dict.fromkeys(k for one in columns.values() for k in one.main()) if wanted(key)]
    titles = {key: title for one in columns.values() for key, title in one.scores.titles.items()}
    notes = [note for entry in entries.values() if entry.measures for note in _notes(entry.measures, wanted)]
    return {
        "name": name,
        "caption": f"{name}: {what}",
        "columns": list(columns),
        "rows": [(titles[key], [one.rates.get(key) for one in columns.values()]) for key in keys],
        "notes": list(dict.fromkeys(notes)),
    }


def _notes(measures: SetMeasures, wanted: Callable[[str], bool]) -> list[str]:
    """Return the notes for one table of metrics in the report.

    Notes on Acc by mask size and Acc by class frequency go in the table of these two metrics. Notes on calibration go
    in neither table, and the remaining notes go in the report's table of further metrics.
    """
    return [note for note in measures.notes if ("Acc by " in note) != wanted(LEXICAL) and "calibration" not in note]


def _calibration(name: str, entry: SetReport) -> dict[str, Any]:
    """Return the calibration plot of one dataset and the bins of its reliability table."""
    if entry.measures is None:
        return {"name": name, "plot": "", "missing": "not measured.", "notes": []}
    modes = {MODES[key]: mode.calibration for key, mode in entry.measures.modes.items()}
    return {
        "name": name,
        "plot": reliability_plot(name, modes),
        "missing": "no prediction has a probability.",
        "errors": ", ".join(f"{mode} {percent(one.ece)}" for mode, one in modes.items() if one.ece is not None),
        "bins": [(mode, one) for mode, table in modes.items() for one in table.bins if one.masks],
        "notes": [note for note in entry.measures.notes if "calibration" in note],
    }


def _classes(name: str, entry: SetReport) -> dict[str, Any]:
    """Return the accuracies of all classes, most frequent first, and the frequent classes with the lowest accuracy."""
    labels = entry.result.row.label_set
    rows = [
        ClassAccuracy(labels[key].target, _share(right, total, _rate(entry, "specific", f"{CLASS}{key}")))
        for key, (right, total) in entry.breakdown.classes.items()
    ]
    rows.sort(key=lambda row: (-row.share.total, row.name))
    frequent = [row for row in rows if row.share.total >= _FEW and row.share.count < row.share.total]
    frequent.sort(key=lambda row: (row.share.count / row.share.total, -row.share.total, row.name))
    return {
        "name": name,
        "rows": rows,
        "folded": len(rows) > _MANY_CLASSES,
        "worst": frequent[:_FEW],
        "enough": _FEW,
    }


def _confusions(name: str, entry: SetReport) -> dict[str, Any]:
    """Return the most frequent confusions, which are pairs of a class name and a wrong prediction."""
    pairs = entry.breakdown.commonest(CONFUSIONS)
    every, wrong = len(entry.breakdown.confusions), entry.breakdown.confusions.total()
    return {
        "name": name,
        "predicted": bool(entry.breakdown.classes),
        "pairs": pairs,
        "caption": f"{name}: {len(pairs)} of {every} confusions; {wrong} wrong masks in all",
    }


def _pictures(name: str, entry: SetReport) -> dict[str, Any]:
    groups = {"Surest and wrong": entry.worst, "Surest and right": entry.best, "Chosen by chance": entry.pictures}
    return {
        "name": name,
        "groups": [(heading, [_picture(one) for one in images]) for heading, images in groups.items() if images],
        "notes": entry.picture_notes,
    }


def _picture(image: DrawnImage) -> dict[str, Any]:
    """Return a drawn image and its number of correct names.

    For a mask without a name in the dataset's own mode, the name in mode `any` is used.
    """
    marked = [own or anyone for _, own, anyone in image.masks]
    return {
        "drawn": image,
        "right": sum(guess is not None and guess.right for guess in marked),
        "folded": len(marked) > _MANY_MASKS,
    }


def _fingerprints(sets: Mapping[str, SetReport]) -> list[str]:
    """Return the fingerprints of the checkpoints that generated the predictions in a folder."""
    found = (entry.result.meta.get("checkpoint") for entry in sets.values())
    return sorted({str(fingerprint) for fingerprint in found if fingerprint is not None})
