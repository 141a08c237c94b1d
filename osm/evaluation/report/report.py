"""The report of a folder of predictions: one HTML file without anything beside it, and its figures as json."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import osm
from osm.datasets.table import Dataset
from osm.errors import OsmError, shown, write_failed
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.metrics.measure import ALL, METRICS, SetMeasures, find_tools, measure
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.report.report_counts import Breakdown, break_down, intervals
from osm.evaluation.report.report_page import page
from osm.evaluation.report.result_images import DrawnImage, choose, choose_surest, draw_pictures
from osm.files import write_atomically
from osm.training.tracking import read_log

TITLE = "Open-ended recognition: results"
PAGE, RESULTS = "report.html", "results.json"


@dataclass
class SetReport:
    """What the report says of one set in one folder.

    Attributes:
        measures: None where only the published metrics are asked for.
        pictures, worst, best: of the main folder alone: chosen by chance, and the surest wrong and right images.
        picture_notes: why some are missing.
    """

    result: SetResult
    breakdown: Breakdown
    measures: SetMeasures | None = None
    pictures: list[DrawnImage] = field(default_factory=list)
    worst: list[DrawnImage] = field(default_factory=list)
    best: list[DrawnImage] = field(default_factory=list)
    picture_notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All figures of `evaluate_pred.py --json`, and the report's own."""
        measured = {"metrics": self.measures.as_json()} if self.measures else {}
        return {**self.result.as_json(), "intervals": intervals(self.result), **self.breakdown.as_json(), **measured}


@dataclass
class Report:
    """All that the page shows.

    Attributes:
        predictions: title -> set -> figures; the first is the main one.
        notes: what was left out.
        records: of the training log; None without a run.
        baselines: set -> name -> figure.
        versions: package -> version.
    """

    title: str
    predictions: dict[str, dict[str, SetReport]]
    notes: list[str]
    records: list[dict[str, Any]] | None
    baselines: dict[str, dict[str, Any]]
    versions: dict[str, str]


def write_report(
    out_dir: Path,
    predictions: Mapping[str, Path],
    parts: int,
    table: Mapping[str, Dataset],
    run: Path | None = None,
    baselines: Mapping[str, Any] | None = None,
    pictures: int = 12,
    seed: int = 0,
    title: str = TITLE,
    surest: int = 3,
    metrics: str = ALL,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Writes `report.html` and `results.json` into `out_dir`, over older ones; the same input gives the same bytes.

    Args:
        out_dir: made where it is missing.
        predictions: title -> folder of prediction files. The first is the main one: it gets accuracy by class,
            confusions and pictures; all get their scores.
        parts: the n that generate_pred.py was run with, the same for all folders.
        table: the sets; their paths are used where those that generation noted are not there.
        run: folder of a training run, for its loss curve.
        baselines: {set: {name: percent}}, shown beside the scores.
        pictures: how many images of each set, at most.
        seed: of the choice of images, and of the bootstrap.
        surest: how many images of each set with the surest wrong names, and with the surest right ones.
        metrics: `all`, or `published`: Acc and NIV alone.
        bootstrap: samples of images for intervals; 0 = none.

    Returns:
        What is in `results.json`.

    Raises:
        OsmError: no or wrong prediction files, a run without a log, baselines in another form, or an `out_dir` that
            cannot be written. Missing images are no error: the page says so.
    """
    if not predictions:
        raise OsmError("predictions: none given; expected a title and a folder, one or more")
    for name, count in (("pictures", pictures), ("surest", surest), ("bootstrap", bootstrap), ("seed", seed)):
        if count < 0:
            raise OsmError(f"{name} {count}: expected 0 or more")
    if metrics not in METRICS:
        raise OsmError(f"metrics {metrics!r}: expected one of {', '.join(METRICS)}")
    report = Report(title, {}, [], None if run is None else _log(run), _checked_baselines(baselines or {}), _versions())
    for number, (name, folder) in enumerate(predictions.items()):
        try:
            sets, notes = _sets(folder, parts, table)
        except OsmError as error:
            raise OsmError(f"predictions {name!r}: {error}") from None
        for entry in sets.values():
            if metrics == ALL:
                entry.measures = measure(entry.result, find_tools(), Bootstrap(bootstrap, seed))
            if number == 0:
                _draw(entry, pictures, surest, seed)
        report.predictions[name] = sets
        report.notes += [f"{name}: {note}" for note in notes]
    document = _document(report)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(out_dir / RESULTS, [json.dumps(document, indent=1, allow_nan=False) + "\n"])
        write_atomically(out_dir / PAGE, page(report))
    except OSError as error:
        raise write_failed(error, f"out_dir {out_dir}", "a folder that can be written") from None
    return document


def _sets(folder: Path, parts: int, table: Mapping[str, Dataset]) -> tuple[dict[str, SetReport], list[str]]:
    """What the report says of the sets of one folder, and what was left out."""
    results, notes = evaluate_folder(folder, parts, table)
    return {result.row.name: SetReport(result, break_down(result.records)) for result in results}, notes


def _draw(entry: SetReport, pictures: int, surest: int, seed: int) -> None:
    records = entry.result.records
    worst, best = choose_surest(records, surest)
    chosen = choose(records, pictures, seed)
    drawn, entry.picture_notes = draw_pictures(entry.result, [*worst, *best, *chosen])
    entry.worst, entry.best, entry.pictures = (
        [drawn[index] for index in indexes if index in drawn] for indexes in (worst, best, chosen)
    )


def _document(report: Report) -> dict[str, Any]:
    """What is in `results.json`."""
    last = report.records[-1] if report.records else None
    document = {
        "predictions": {
            title: {name: entry.as_json() for name, entry in sets.items()} for title, sets in report.predictions.items()
        },
        "training": last and {"last": last, "steps": last["step"], "names": last.get("names")},
        "baselines": report.baselines,
    }
    return _finite(document)


def _finite(value: Any) -> Any:
    """The same with null for nan and infinite numbers (a loss that ran away), which json has not."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _log(run: Path) -> list[dict[str, Any]]:
    wanted = "expected a folder that train.py wrote"
    try:
        return read_log(run)
    except OSError as error:
        raise OsmError(f"run {run}: log.jsonl: {error.strerror}; {wanted}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise OsmError(f"run {run}: log.jsonl is no training log ({error!r}); {wanted}") from None


def _checked_baselines(baselines: Any) -> dict[str, dict[str, Any]]:
    """set -> name -> figure; what is nested deeper gets names with slashes."""
    if not isinstance(baselines, Mapping):
        raise OsmError(f"baselines: expected {{set: {{name: percent}}}}, found {shown(baselines)}")
    for name, figures in baselines.items():
        if not isinstance(figures, Mapping):
            raise OsmError(f"baselines: {name!r}: expected {{name: percent}}, found {shown(figures)}")
    return {str(name): dict(_flat(figures)) for name, figures in baselines.items()}


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value


def _versions() -> dict[str, str]:
    versions = {"osm": osm.__version__}
    try:
        versions["torch"] = importlib.metadata.version("torch")  # without importing it
    except importlib.metadata.PackageNotFoundError:
        versions["torch"] = "not installed"
    return versions
