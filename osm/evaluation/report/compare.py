"""Compares two prediction folders mask by mask: metrics, differences with confidence intervals, and changed names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, shown
from osm.evaluation.metrics.base import Metric, Tools
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.metrics.scores import CLASS, MaskScores, score_rows
from osm.evaluation.metrics.statistics import Bootstrap, Difference, Rate, differences
from osm.evaluation.predict.prediction_files import made_with
from osm.evaluation.predict.records import MaskRecord, SetRecords
from osm.evaluation.report.page_templates import NOTHING, render_page
from osm.forms.base import countable

TITLE = "Two runs compared"
OUTCOMES = ("both_right", "a_alone", "b_alone", "both_wrong")


@dataclass(frozen=True)
class Change:
    """A mask whose predicted name is correct in one of the two compared folders and wrong in the other.

    Attributes:
        image: key of the image in the prediction files.
        mask: id of the annotation.
        given: name of the mask's class.
        a, b: the names predicted in folders A and B.
        prob: probability of the name in B.
    """

    image: Any
    mask: Any
    given: str
    a: str
    b: str
    prob: float | None

    def as_json(self) -> dict[str, Any]:
        return {"image": self.image, "mask": self.mask, "given": self.given, "a": self.a, "b": self.b}


@dataclass(frozen=True)
class ModeComparison:
    """The comparison of one dataset in one mode, over the masks that have a prediction in both folders.

    Attributes:
        a, b: rates of A and B by column, with intervals.
        difference: B - A by column, from a paired bootstrap over images.
        ece: expected calibration errors of A and B.
        outcomes: number of masks for each of `OUTCOMES`.
        fixed: examples of masks whose name is right only in B, in descending order of the probability in B.
        broken: examples of masks whose name is right only in A, in descending order of the probability in B.
        a_only, b_only: numbers of masks with a prediction only in A, and only in B; these masks are not compared.
        titles: titles of the columns.
    """

    a: Mapping[str, Rate]
    b: Mapping[str, Rate]
    difference: Mapping[str, Difference]
    ece: tuple[float | None, float | None]
    outcomes: Counter[str]
    fixed: list[Change]
    broken: list[Change]
    a_only: int
    b_only: int
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> int:
        return self.outcomes.total()

    def main(self) -> list[str]:
        """Return the keys of all compared columns except the per-class accuracies."""
        return [key for key in self.difference if not key.startswith(CLASS)]

    def as_json(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "rates": {
                key: {"a": self.a[key].as_json(), "b": self.b[key].as_json(), "difference": difference.as_json()}
                for key, difference in self.difference.items()
            },
            "ece": {"a": self.ece[0], "b": self.ece[1]},
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "wrong_to_right": [change.as_json() for change in self.fixed],
            "right_to_wrong": [change.as_json() for change in self.broken],
            "predicted_in_a_alone": self.a_only,
            "predicted_in_b_alone": self.b_only,
        }


@dataclass(frozen=True)
class SetComparison:
    """The comparison of one dataset in its own vocabulary mode (`specific`) and in mode `any` (`agnostic`).

    A mode is omitted if one of the folders contains no predictions in that mode.
    """

    row: Dataset
    images: int
    modes: Mapping[str, ModeComparison]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        modes = {name: mode.as_json() for name, mode in self.modes.items()}
        return {"title": self.row.title, "images": self.images, **modes, "notes": self.notes}


def compare_folders(
    folders: tuple[Path, Path],
    parts: tuple[int, int],
    table: Mapping[str, Dataset],
    tools: Tools | None = None,
    bootstrap: Bootstrap | None = None,
    examples: int = 10,
    metrics: Sequence[Metric] | None = None,
) -> tuple[list[SetComparison], list[str]]:
    """Compare every dataset that has predictions in both folders.

    Args:
        folders: folders A and B.
        parts: number of parts of A and of B.
        table: the table of datasets.
        tools: models and databases. If None, metrics that need a tool are skipped.
        bootstrap: the parameters of the intervals, or None for the default parameters.
        examples: maximum number of examples of each kind of change.
        metrics: the metrics to compare, or None for all registered metrics.

    Returns:
        The comparisons, and a note for each dataset that is skipped.

    Raises:
        OsmError: A folder is invalid, no dataset is in both folders, or A and B have different masks of a dataset.
    """
    found = []
    for side, folder, count in zip("AB", folders, parts, strict=True):
        try:
            found.append({result.row.name: result.records for result in evaluate_folder(folder, count, table)[0]})
        except OsmError as error:
            raise OsmError(f"{side}: {error}") from None
    a, b = found
    notes = [f"{name}: left out, in A alone" for name in a if name not in b]
    notes += [f"{name}: left out, in B alone" for name in b if name not in a]
    both = [name for name in a if name in b]
    if not both:
        raise OsmError(
            f"A has predictions for {', '.join(a)}, but B has predictions for {', '.join(b)}; expected at least one "
            "dataset in common"
        )
    return [
        compare_sets(a[name], b[name], tools or Tools(), bootstrap or Bootstrap(), examples, metrics) for name in both
    ], notes


def compare_sets(
    a: SetRecords,
    b: SetRecords,
    tools: Tools,
    bootstrap: Bootstrap,
    examples: int = 10,
    metrics: Sequence[Metric] | None = None,
) -> SetComparison:
    """Compare the predictions for one dataset in folders A and B (see `compare_folders`)."""
    pairs = _paired(a, b)
    notes = [*tools.notes]
    notes += [f"{side} was {note}" for side, one in (("A", a), ("B", b)) for note in made_with(one.meta)]
    if a.meta.get("annotations") != b.meta.get("annotations") and a.meta and b.meta:
        notes.append("made from different annotation files: ids and classes agree, but masks may differ")
    modes = {}
    for name, mode in (("specific", a.row.name), ("agnostic", ANY_MODE)):
        compared = _compare_mode(a, pairs, mode, tools, bootstrap, examples, metrics)
        if compared.masks:
            modes[name] = compared
        else:
            notes.append(f"mode {mode}: not compared, because no mask has a prediction in this mode in both folders")
    return SetComparison(a.row, a.image_count, modes, [f"{a.row.name}: {note}" for note in notes])


Pair = tuple[int, Any, MaskRecord, MaskRecord]


def _paired(a: SetRecords, b: SetRecords) -> list[Pair]:
    """Return (image index, image key, mask in A, mask in B) for every mask, in the order of folder A.

    Raises:
        OsmError: The folders have different masks, or a mask has different classes in A and B.
    """
    of_a, of_b = _by_key(a), _by_key(b)
    for one, other, side in ((of_a, of_b, "A"), (of_b, of_a, "B")):
        lost = next((key for key in one if key not in other), None)
        if lost is not None:
            raise OsmError(
                f"dataset {a.row.name!r}: A has {len(of_a)} masks in {a.image_count} images, and B has {len(of_b)} "
                f"masks in {b.image_count} images; only {side} has mask {shown(lost[1])} of image {shown(lost[0][1])}; "
                "expected predictions for the same masks"
            )
    pairs = []
    for key, (number, mask) in of_a.items():
        other_mask = of_b[key][1]
        if mask.category_id != other_mask.category_id:
            raise OsmError(
                f"dataset {a.row.name!r}: mask {shown(key[1])} of image {shown(key[0][1])} has class "
                f"{shown(mask.category_id)} in A, but class {shown(other_mask.category_id)} in B; expected predictions "
                "for the same masks"
            )
        pairs.append((number, key[0][1], mask, other_mask))
    return pairs


def _by_key(records: SetRecords) -> dict[tuple[tuple[bool, Hashable], Any, int], tuple[int, MaskRecord]]:
    """Return all masks except crowds, keyed by (image, mask id, index among the image's masks with the same id).

    An image without a key is identified by its position in the prediction files.
    """
    found: dict[tuple[tuple[bool, Hashable], Any, int], tuple[int, MaskRecord]] = {}
    times: Counter[Any] = Counter()
    for place, (number, entry) in enumerate(zip(records.numbers, records.images, strict=True)):
        image = (entry.key is not None, place if entry.key is None else entry.key)
        for mask in entry.masks:
            if mask.crowd:
                continue
            mask_id = countable(mask.id)
            found[image, mask_id, times[image, mask_id]] = number, mask
            times[image, mask_id] += 1
    return found


def _compare_mode(
    a: SetRecords,
    pairs: list[Pair],
    mode: str,
    tools: Tools,
    bootstrap: Bootstrap,
    examples: int,
    metrics: Sequence[Metric] | None,
) -> ModeComparison:
    there = [(_has(one, mode), _has(other, mode)) for _, _, one, other in pairs]
    rows = [pair for pair, has in zip(pairs, there, strict=True) if all(has)]
    of_a = score_rows(a.row, [(number, mask) for number, _, mask, _ in rows], a.image_count, mode, tools, None, metrics)
    of_b = score_rows(a.row, [(number, mask) for number, _, _, mask in rows], a.image_count, mode, tools, None, metrics)
    _keep_common(of_a, of_b)
    right = list(zip(of_a.columns["acc"] > 0, of_b.columns["acc"] > 0, strict=True))
    kinds = {(True, True): OUTCOMES[0], (True, False): OUTCOMES[1], (False, True): OUTCOMES[2]}
    outcomes = Counter(kinds.get((bool(one), bool(other)), OUTCOMES[3]) for one, other in right)
    changed = {
        kind: _changes(
            a.row, [row for row, (one, other) in zip(rows, right, strict=True) if (one, other) == kind], mode
        )
        for kind in ((False, True), (True, False))
    }
    difference = differences(of_a.sums(), of_b.sums(), bootstrap)
    for key, value in of_a.figures.items():
        change = of_b.figures[key] - value
        difference[key] = Difference(None if np.isnan(change) else change, None, None)
    return ModeComparison(
        of_a.rates(bootstrap),
        of_b.rates(bootstrap),
        difference,
        (of_a.calibration().ece, of_b.calibration().ece),
        outcomes,
        changed[False, True][:examples],
        changed[True, False][:examples],
        sum(has == (True, False) for has in there),
        sum(has == (False, True) for has in there),
        {**of_a.titles},
    )


def _has(mask: MaskRecord, mode: str) -> bool:
    return mask.counted and mode in mask.predictions


def _keep_common(a: MaskScores, b: MaskScores) -> None:
    """Remove columns that are missing from A or B, such as Acc by mask size if one folder contains no mask areas."""
    common = [key for key in a.columns if key in b.columns]
    a.columns = {key: a.columns[key] for key in common}
    b.columns = {key: b.columns[key] for key in common}
    figures = [key for key in a.figures if key in b.figures]
    a.figures = {key: a.figures[key] for key in figures}
    b.figures = {key: b.figures[key] for key in figures}


def _changes(row: Dataset, rows: list[Pair], mode: str) -> list[Change]:
    changes = []
    for _, image, one, other in rows:
        a, b = one.predictions[mode], other.predictions[mode]
        changes.append(Change(image, one.id, row.label_set[one.category_id].target, a.name, b.name, b.prob))
    return sorted(
        changes, key=lambda change: -(change.prob or 0.0)
    )  # stable, so equal probabilities stay in the order of the files


def comparison_lines(comparison: SetComparison, titles: tuple[str, str]) -> list[str]:
    """Return the comparison of one dataset as a plain-text table."""
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
    """Render the comparison as one HTML page and yield the page in chunks.

    Args:
        comparisons: the comparisons of all datasets.
        titles: titles of A and B.
        notes: for each dataset that was skipped, the reason.
        bootstrap: the parameters that the intervals were computed with.
    """
    return render_page(
        "comparison.html",
        title=f"{TITLE}: {titles[0]} and {titles[1]}",
        titles=titles,
        bootstrap=bootstrap,
        comparisons=[
            {"row": one.row, "notes": one.notes, "modes": [_mode_table(one, name, titles) for name in one.modes]}
            for one in comparisons
        ],
        left_out=notes,
    )


def _mode_table(comparison: SetComparison, name: str, titles: tuple[str, str]) -> dict[str, Any]:
    """Return the comparison of one dataset in one mode, as data for the HTML template."""
    mode = comparison.modes[name]
    rows = [_page_row(mode.titles.get(key, key), mode.a[key], mode.b[key], mode.difference[key]) for key in mode.main()]
    errors = dict(zip("ab", (_page_figure(error) for error in mode.ece), strict=True))
    empty = {"difference": NOTHING, "interval": NOTHING, "p": NOTHING, "significant": False}
    rows.append({"title": "ECE, 15 bins", **errors, **empty})
    changes = [("wrong \u2192 right", mode.fixed), ("right \u2192 wrong", mode.broken)]
    return {
        "name": name,
        "caption": f"{comparison.row.title}, {name}: {mode.masks} masks in {comparison.images} images, in %",
        "rows": rows,
        "outcomes": _outcome_line(mode, titles),
        "left_out": _left_out(mode, titles),
        "changes": [(what, examples) for what, examples in changes if examples],
    }


def _page_row(title: str, a: Rate, b: Rate, difference: Difference) -> dict[str, Any]:
    """Return one row of the comparison table. A difference is significant if its 95% confidence interval excludes 0."""
    interval = difference.interval
    return {
        "title": title,
        "a": _page_figure(a.value),
        "b": _page_figure(b.value),
        "difference": NOTHING if difference.value is None else f"{100 * difference.value:+.1f}",
        "interval": NOTHING if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}",
        "p": NOTHING if difference.p is None else _p(difference.p),
        "significant": interval is not None and (interval[0] > 0 or interval[1] < 0),
    }


def _page_figure(value: float | None) -> str:
    return NOTHING if value is None else _figure(value)
