"""The data of an evaluation report: the metrics and images of every dataset, and the training log."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import osm
from osm.datasets.table import Dataset
from osm.errors import OsmError, shown
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.metrics.measure import SetMeasures, find_tools, measure
from osm.evaluation.metrics.scores import ALL, PUBLISHED, select_metrics
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.report.report_counts import Breakdown, break_down, intervals
from osm.evaluation.report.result_images import DrawnImage, choose, choose_surest, draw_pictures
from osm.training.tracking import read_log

TITLE = "Open-ended recognition: results"


@dataclass(frozen=True)
class ReportOptions:
    """The optional contents of a report, which always contains the published metrics.

    Attributes:
        run: the folder of a training run, for the loss curve.
        baselines: {dataset: {name: percent}}, shown next to the scores.
        pictures: the maximum number of randomly chosen images per dataset.
        seed: the seed of the random choice of images and of the bootstrap.
        title: the heading of the page.
        surest: the number of images per dataset with the most confident wrong names, and with the most confident
            correct names.
        metrics: `all`, `published` (only Acc and NIV), or names of metrics (see `select_metrics`).
        bootstrap: the number of bootstrap samples over images for the intervals. 0 disables intervals.
        pictures_of: the title of the prediction folder whose images are drawn; None draws those of the first folder.

    Raises:
        OsmError: A number is negative.
    """

    run: Path | None = None
    baselines: Mapping[str, Any] | None = None
    pictures: int = 12
    seed: int = 0
    title: str = TITLE
    surest: int = 3
    metrics: str = ALL
    bootstrap: int = 1000
    pictures_of: str | None = None

    def __post_init__(self) -> None:
        for name in ("pictures", "surest", "bootstrap", "seed"):
            if getattr(self, name) < 0:
                raise OsmError(f"{name} {getattr(self, name)}: expected 0 or more")


@dataclass
class SetReport:
    """The report's data for one dataset in one prediction folder.

    Attributes:
        result: the published metrics of the dataset.
        breakdown: the counts by class, by confusion and by part of a name.
        measures: all metrics; None if only the published metrics were requested.
        pictures: a random sample of images. Only the folder that the report draws images of has any.
        worst, best: the images with the most confident wrong names, and with the most confident right names.
        picture_notes: for each image that could not be drawn, the reason.
    """

    result: SetResult
    breakdown: Breakdown
    measures: SetMeasures | None = None
    pictures: list[DrawnImage] = field(default_factory=list)
    worst: list[DrawnImage] = field(default_factory=list)
    best: list[DrawnImage] = field(default_factory=list)
    picture_notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return all values that `evaluate_pred.py --json` writes, plus those that only the report computes."""
        measured = {"metrics": self.measures.as_json()} if self.measures else {}
        return {**self.result.as_json(), "intervals": intervals(self.result), **self.breakdown.as_json(), **measured}


@dataclass
class Report:
    """All data shown on the report page.

    Attributes:
        title: the heading of the page.
        predictions: title -> dataset -> report data.
        pictures_of: the title of the prediction folder that images are drawn of.
        notes: for each dataset that was skipped, the reason.
        records: the records of the training log; None without a training run.
        baselines: dataset -> name of the baseline -> value.
        versions: package -> version.
    """

    title: str
    predictions: dict[str, dict[str, SetReport]]
    pictures_of: str
    notes: list[str]
    records: list[dict[str, Any]] | None
    baselines: dict[str, dict[str, Any]]
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the contents of `results.json`, with null for NaN and infinite values, which JSON does not allow."""
        last = self.records[-1] if self.records else None
        document = {
            "predictions": {
                title: {name: entry.as_json() for name, entry in sets.items()}
                for title, sets in self.predictions.items()
            },
            "training": last and {"last": last, "steps": last["step"], "names": last.get("names")},
            "baselines": self.baselines,
        }
        return _finite(document)


def collect_report(
    predictions: Mapping[str, Path], parts: int, table: Mapping[str, Dataset], options: ReportOptions
) -> Report:
    """Evaluate prediction folders, draw images and read the training log for a report.

    The arguments and exceptions are the same as those of `osm.evaluation.report.report_page.write_report`.
    """
    if not predictions:
        raise OsmError("predictions is empty; expected at least one entry that maps a title to a folder")
    pictures_of = next(iter(predictions)) if options.pictures_of is None else options.pictures_of
    if pictures_of not in predictions:
        titles = ", ".join(map(repr, predictions))
        raise OsmError(f"pictures_of {pictures_of!r}: expected the title of one of the predictions ({titles})")
    chosen = select_metrics(options.metrics)
    records = None if options.run is None else _log(options.run)
    baselines = _checked_baselines(options.baselines or {})
    report = Report(options.title, {}, pictures_of, [], records, baselines, _versions())
    for name, folder in predictions.items():
        try:
            sets, notes = _sets(folder, parts, table)
        except OsmError as error:
            raise OsmError(f"predictions {name!r}: {error}") from None
        for entry in sets.values():
            if options.metrics != PUBLISHED:
                bootstrap = Bootstrap(options.bootstrap, options.seed)
                entry.measures = measure(entry.result, find_tools(), bootstrap, metrics=chosen)
            if name == pictures_of:
                _draw(entry, options)
        report.predictions[name] = sets
        report.notes += [f"{name}: {note}" for note in notes]
    return report


def _sets(folder: Path, parts: int, table: Mapping[str, Dataset]) -> tuple[dict[str, SetReport], list[str]]:
    """Evaluate the datasets in one folder. Return one report per dataset, and a note for each skipped dataset."""
    results, notes = evaluate_folder(folder, parts, table)
    return {result.row.name: SetReport(result, break_down(result.records)) for result in results}, notes


def _draw(entry: SetReport, options: ReportOptions) -> None:
    records = entry.result.records
    worst, best = choose_surest(records, options.surest)
    chosen = choose(records, options.pictures, options.seed)
    drawn, entry.picture_notes = draw_pictures(entry.result, [*worst, *best, *chosen])
    entry.worst, entry.best, entry.pictures = (
        [drawn[index] for index in indexes if index in drawn] for indexes in (worst, best, chosen)
    )


def _finite(value: Any) -> Any:
    """Replace NaN and infinite values (for example, in the losses of a diverged run) with None."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _log(run: Path) -> list[dict[str, Any]]:
    wanted = "expected a folder written by train.py"
    try:
        return read_log(run)
    except OSError as error:
        raise OsmError(f"run {run}: log.jsonl: {error.strerror}; {wanted}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise OsmError(f"run {run}: log.jsonl is not a training log ({error!r}); {wanted}") from None


def _checked_baselines(baselines: Any) -> dict[str, dict[str, Any]]:
    """Return the baselines as {dataset: {baseline name: value}}. Nested baseline names are joined with slashes."""
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
        versions["torch"] = importlib.metadata.version("torch")  # does not import torch
    except importlib.metadata.PackageNotFoundError:
        versions["torch"] = "not installed"
    return versions
