"""The metrics of one dataset in its own vocabulary and in the open-vocabulary mode `any`, as text tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from osm.datasets.labels import FREQUENCIES
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, shown
from osm.evaluation.metrics.base import Metric, Tools
from osm.evaluation.metrics.calibration import Calibration
from osm.evaluation.metrics.evaluate import SetResult
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.scores import CLASS, MaskScores, all_metrics, score_masks
from osm.evaluation.metrics.statistics import Bootstrap, Rate
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.files import read_json
from osm.storage.cache import localize


def title_of(key: str) -> str:
    """Return the table title of a column, or its key if no registered metric has this column."""
    return next((titles[key] for metric in all_metrics() if key in (titles := metric.titles())), key)


@dataclass(frozen=True)
class ModeMeasures:
    """The metrics of one dataset in one mode.

    Attributes:
        scores: the scores of the masks.
        rates: the rate of each column, including the accuracy of each class.
        calibration: the reliability table of the predicted probabilities.
    """

    scores: MaskScores
    rates: Mapping[str, Rate]
    calibration: Calibration

    def main(self) -> dict[str, Rate]:
        """Return all rates except the per-class accuracies."""
        return {key: rate for key, rate in self.rates.items() if not key.startswith(CLASS)}


@dataclass(frozen=True)
class SetMeasures:
    """The metrics of one dataset in its own vocabulary mode and in the open-vocabulary mode `any`.

    Attributes:
        specific: the metrics of the dataset's own mode; None if no mask has a prediction in its own mode.
        agnostic: the metrics of mode `any`; None if no mask has a prediction in mode `any`.
        bootstrap: the parameters of the bootstrap intervals.
        wordnet: the release of WordNet that was used; None without WordNet.
        notes: messages about skipped masks and metrics, with the reason.
    """

    specific: ModeMeasures | None
    agnostic: ModeMeasures | None
    bootstrap: Bootstrap
    wordnet: str | None
    notes: tuple[str, ...]

    @property
    def modes(self) -> dict[str, ModeMeasures]:
        """The metrics keyed by mode (`specific` or `agnostic`); modes without predictions are absent."""
        both = {"specific": self.specific, "agnostic": self.agnostic}
        return {name: mode for name, mode in both.items() if mode is not None}

    def as_json(self) -> dict[str, Any]:
        """Return all metrics of the dataset as JSON-compatible values."""
        return {
            "bootstrap": {"over": "images", "samples": self.bootstrap.samples, "seed": self.bootstrap.seed},
            **{name: _mode_json(mode) for name, mode in self.modes.items()},
            "wordnet": self.wordnet,
            "notes": list(self.notes),
        }

    def lines(self, row: Dataset) -> list[str]:
        """Return a table of the dataset's metrics as lines of text."""
        modes = self.modes
        if not modes:
            return [f"{row.title}: no prediction in any mode"]
        masks = {name: f"{len(mode.scores.masks)} masks" for name, mode in modes.items()}
        about = ", ".join(f"{name} {count}" for name, count in masks.items())
        lines = [
            f"{row.title}, all metrics in % ({about}; in brackets 95 % intervals over images, {self.bootstrap.samples} "
            f"samples, seed {self.bootstrap.seed})",
            f"{'':<48}" + "".join(f"{name:>26}" for name in modes),
        ]
        titles = {key: title for mode in modes.values() for key, title in mode.scores.titles.items()}
        for key in dict.fromkeys(key for mode in modes.values() for key in mode.main()):
            cells = [_cell(mode.rates.get(key)) for mode in modes.values()]
            lines.append(f"{titles[key]:<48}" + "".join(f"{cell:>26}" for cell in cells))
        errors = [
            "-" if mode.calibration.ece is None else f"{100 * mode.calibration.ece:.1f}" for mode in modes.values()
        ]
        lines.append(f"{'ECE, 15 bins':<48}" + "".join(f"{error:>26}" for error in errors))
        return [*lines, *self.notes]


def _cell(rate: Rate | None) -> str:
    if rate is None or rate.value is None:
        return "-"
    interval = "" if rate.interval is None else f" [{100 * rate.interval[0]:.1f}, {100 * rate.interval[1]:.1f}]"
    return f"{100 * rate.value:.1f}{interval}"


def _mode_json(mode: ModeMeasures) -> dict[str, Any]:
    classes = {key.removeprefix(CLASS): rate.as_json() for key, rate in mode.rates.items() if key.startswith(CLASS)}
    return {
        "rates": {key: rate.as_json() for key, rate in mode.main().items()},
        "calibration": mode.calibration.as_json(),
        "classes": classes,
        "wordnet_by_head": mode.scores.by_head,
    }


@lru_cache(maxsize=1)
def find_tools() -> Tools:
    """Load the sentence encoder and WordNet if they are installed. The result is cached."""
    encoder, lexicon, notes = None, None, []
    try:
        from osm.recognition.similarity import SentenceEncoder  # imports torch

        encoder = SentenceEncoder()
    except OsmError as error:
        notes.append(f"Semantic Similarity: left out, {error}")
    try:
        lexicon = Lexicon(find_wordnet())
    except OsmError as error:
        notes.append(f"WordNet relations and WUPS: left out, {error}")
    return Tools(encoder, lexicon, tuple(notes))


def measure(
    result: SetResult,
    tools: Tools,
    bootstrap: Bootstrap | None = None,
    frequencies: Mapping[int, str] | None = None,
    metrics: Sequence[Metric] | None = None,
) -> SetMeasures:
    """Compute the metrics of one dataset in its own vocabulary mode and in the open-vocabulary mode `any`.

    Args:
        result: the dataset's prediction files, read and counted.
        tools: models and databases that some metrics need.
        bootstrap: the parameters of the intervals, or None for the default parameters.
        frequencies: LVIS's frequency letter (r, c or f) by category id; None uses the frequencies in the dataset's
            labels.
        metrics: the metrics to compute, or None for all registered metrics.
    """
    bootstrap = bootstrap or Bootstrap()
    found: dict[str, ModeMeasures | None] = {}
    notes = list(tools.notes)
    for mode in (result.row.name, ANY_MODE):
        scores = score_masks(result.records, mode, tools, frequencies, metrics)
        calibration = scores.calibration()
        if scores.by_head:
            notes.append(f"mode {mode}: {scores.by_head} masks have a name that WordNet knows by its last words alone")
        notes += scores.notes if scores.masks else []
        if calibration.without_prob:
            notes.append(f"calibration of mode {mode}: without {calibration.without_prob} masks that have no `prob`")
        found[mode] = ModeMeasures(scores, scores.rates(bootstrap), calibration) if scores.masks else None
    left_out = tuple(f"{result.row.name}: {note}" for note in dict.fromkeys(notes))
    release = tools.lexicon.wordnet.version if tools.lexicon else None
    return SetMeasures(found[result.row.name], found[ANY_MODE], bootstrap, release, left_out)


def read_frequencies(given: Iterable[str], table: Mapping[str, Dataset]) -> dict[str, dict[int, str]]:
    """Read the files passed to `--frequencies` and return which classes are rare, common or frequent.

    Args:
        given: values of `--frequencies`, each `SET=FILE`. The file is a JSON file whose `categories` have `frequency`
            or `image_count`, as in LVIS.
        table: the rows of the datasets, by dataset name.

    Returns:
        dataset -> category id -> r, c or f.

    Raises:
        OsmError: A value is not `SET=FILE`, a dataset is unknown, or a file has no frequency for any of the dataset's
            classes.
    """
    found = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or not file or name not in table:
            raise OsmError(f"--frequencies {text!r}: expected SET=FILE, where SET is one of {', '.join(table)}")
        document, _ = read_json(localize(file, f"--frequencies {name}"), f"--frequencies {name}")
        categories = document.get("categories") if isinstance(document, dict) else None
        if not isinstance(categories, list) or not all(isinstance(one, dict) for one in categories):
            raise OsmError(f"--frequencies {text!r}: {file} has no list 'categories'")
        groups = {one.get("id"): _group(one, file) for one in categories if type(one.get("id")) is int}
        found[name] = {key: group for key, group in groups.items() if group and key in table[name].label_set}
        if not found[name]:
            raise OsmError(
                f"--frequencies {text!r}: {file} has no category of dataset {name!r} with a `frequency` or "
                "`image_count`"
            )
    return found


def _group(category: Mapping[str, Any], file: str) -> str:
    group, count = category.get("frequency"), category.get("image_count")
    if group is not None:
        if group not in tuple(FREQUENCIES):
            expected = ", ".join(FREQUENCIES)
            raise OsmError(
                f"{file}: category {category['id']} has the frequency {shown(group)}; expected one of {expected}, as "
                "in LVIS"
            )
        return group
    if type(count) is not int or count < 1:
        return ""
    return "r" if count <= 10 else "c" if count <= 100 else "f"
