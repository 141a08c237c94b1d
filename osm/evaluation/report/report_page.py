"""Writes the evaluation report as one HTML page and its values as a JSON file.

The page opens with images and one table of all scores. The details follow in sections (see `page_sections`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import write_failed
from osm.evaluation.metrics import majority_class
from osm.evaluation.predict.prediction_files import made_with
from osm.evaluation.report.page_sections import ShareOfMasks, page_sections, rate_of, set_names, share_of
from osm.evaluation.report.page_templates import render_page
from osm.evaluation.report.report import Report, ReportOptions, SetReport, collect_report
from osm.evaluation.report.result_images import DrawnImage
from osm.files import write_atomically

PAGE, RESULTS = "report.html", "results.json"
_MANY_MASKS = 15  # In the report, tables that list more than 15 masks are collapsed.
_OPENING = 4  # The page opens with 4 images, which is one row in a wide window.
_MOST_OPENING = 12  # With more than 4 datasets, the page opens with one image of each, but with at most 12.
_NAMES = 5  # The number of masks whose names are shown below an opening image. The other names are folded.
_COLUMNS = {
    "masks": "masks",
    "own": "own mode Acc",
    "any": "any Acc",
    "either": "any, any right name",
    "own_niv": "own mode NIV",
    "any_niv": "any NIV",
    "majority": "majority class",
    "without": "masks without prediction",
}


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
        predictions: title -> folder of prediction files. Every folder is scored, with its calibration, classes and
            confusions. Images are drawn of one folder, `options.pictures_of`.
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
    scores = list(_scores(report))
    opening, more_pictures = _pictures(report.predictions[report.pictures_of])
    details = page_sections(report)
    sections = {"pictures": ("More pictures", more_pictures), **details.parts}
    return render_page(
        "report.html",
        title=report.title,
        opening=opening,
        pictures_of=report.pictures_of,
        columns=_filled_columns(scores),
        scores=scores,
        notes=[*_made_with(report), *_picture_notes(report)],
        sections=[(key, heading, content) for key, (heading, content) in sections.items() if content],
        left_out=[*report.notes, *details.left_out],
        versions=[f"{name} {version}" for name, version in report.versions.items()],
        checkpoints=[(title, ", ".join(_fingerprints(sets))) for title, sets in report.predictions.items()],
    )


def _scores(report: Report) -> Iterator[dict[str, Any]]:
    """Yield one section of the report's score table for each dataset."""
    for name in dict.fromkeys([*set_names(report), *report.baselines]):
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
        "own": share_of(own.correct, own.total, rate_of(entry, "specific", "acc")),
        "any": share_of(anyone.correct, anyone.total, rate_of(entry, "agnostic", "acc")),
        "either": share_of(either["correct"], either["total"], rate_of(entry, "agnostic", "either_vocabulary")),
        "own_niv": share_of(own.not_in_vocabulary, own.total, rate_of(entry, "specific", "niv")),
        "any_niv": share_of(anyone.not_in_vocabulary, anyone.total, rate_of(entry, "agnostic", "niv")),
        "majority": majority and (majority[1], result.row.label_set[majority[0]].target),
        "without": result.without_prediction,
    }


def _filled_columns(scores: list[dict[str, Any]]) -> dict[str, str]:
    """Return the headings of the score table's columns, by key, without the columns that have no value in any row."""
    rows = [row for part in scores for row in part["rows"]]
    filled = {key: heading for key, heading in _COLUMNS.items() if any(_is_filled(row[key]) for row in rows)}
    # The figures of baselines are in the column of the dataset's own mode.
    if any(part["baselines"] for part in scores):
        filled["own"] = _COLUMNS["own"]
    return {key: heading for key, heading in _COLUMNS.items() if key in filled}


def _is_filled(cell: Any) -> bool:
    return cell.total > 0 if isinstance(cell, ShareOfMasks) else cell is not None


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


def _picture_notes(report: Report) -> list[str]:
    """Return, for each dataset with images that could not be drawn, their number and the first reason."""
    found = [entry.picture_notes for entry in report.predictions[report.pictures_of].values()]
    return [f"Pictures that could not be drawn: {len(notes)}. {notes[0]}" for notes in found if notes]


def _pictures(sets: Mapping[str, SetReport]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide the drawn images into those that the page opens with and those of the section with more pictures.

    The datasets take turns, and randomly chosen images come first, because they show how good the names are in general.
    No image is shown in both places.
    """
    by_set = {name: list(_drawn(name, entry)) for name, entry in sets.items()}
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_set.values()))
    count = min(max(_OPENING, len(sets)), _MOST_OPENING)
    opening = [picture for picture in turns if picture is not None][:count]
    places = {(picture["set"], picture["place"]) for picture in opening}
    more = []
    for name, pictures in by_set.items():
        left = [picture for picture in pictures if (name, picture["place"]) not in places]
        groups = [(group, list(found)) for group, found in itertools.groupby(left, lambda picture: picture["group"])]
        if groups:
            more.append({"name": name, "groups": groups})
    return opening, more


def _drawn(name: str, entry: SetReport) -> Iterator[dict[str, Any]]:
    groups = {"Chosen by chance": entry.pictures, "Surest and wrong": entry.worst, "Surest and right": entry.best}
    found = ((group, image) for group, images in groups.items() for image in images)
    for place, (group, image) in enumerate(found):
        yield {"set": name, "place": place, "group": group, **_picture(image)}


def _picture(image: DrawnImage) -> dict[str, Any]:
    """Return a drawn image, its number of correct names, and its first names with their numbers in the image.

    For a mask without a name in the dataset's own mode, the name in mode `any` is used.
    """
    marked = [(given, own or anyone) for given, own, anyone in image.masks]
    named = [(number, given, guess) for number, (given, guess) in enumerate(marked, 1) if guess is not None]
    return {
        "drawn": image,
        "right": sum(guess.right for _, _, guess in named),
        "folded": len(marked) > _MANY_MASKS,
        "names": named[:_NAMES],
        "more_names": len(named[_NAMES:]),
    }


def _fingerprints(sets: Mapping[str, SetReport]) -> list[str]:
    """Return the fingerprints of the checkpoints that generated the predictions in a folder."""
    found = (entry.result.meta.get("checkpoint") for entry in sets.values())
    return sorted({str(fingerprint) for fingerprint in found if fingerprint is not None})
