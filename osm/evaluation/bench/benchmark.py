"""What all benchmarks have in common: a card, scores with intervals, and a table with the published rows."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.evaluation.metrics.statistics import Rate
from osm.labeling.label_options import LabelOptions

GROUPS = 100


@dataclass(frozen=True)
class BenchCard:
    """What a benchmark consists of, and where it comes from.

    Attributes:
        title: the name of the benchmark in tables.
        question: what a model is asked.
        source: the paper or repository that defines the benchmark.
        data: what the files contain, and where they are from.
        size: the numbers of images and masks that the source states.
        rules: how a name is scored.
        caveats: what its values do not show.
    """

    title: str
    question: str
    source: str
    data: str
    size: str
    rules: str
    caveats: str


@dataclass
class BenchResult:
    """The scores of a model on a benchmark.

    Attributes:
        bench: the name of the benchmark.
        checkpoint: the model.
        rates: the scores by their keys, with 95 % intervals over images.
        masks, images: the numbers of scored masks and their images.
        unnamed: the number of masks without a name, by reason. They are scored as an empty name.
    """

    bench: str
    checkpoint: str
    rates: dict[str, Rate]
    masks: int
    images: int
    unnamed: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        rates = {key: rate.as_json() for key, rate in self.rates.items()}
        return {**asdict(replace(self, rates={})), "rates": rates, "unnamed": dict(self.unnamed)}


class Bench(ABC):
    """A benchmark of given masks, which `run` names and scores.

    Attributes:
        name: its name on the command line.
        card: what it consists of.
        titles: the title of each score by its key.
        published: for each model, its published scores in percent by their keys, and their source.
    """

    name: ClassVar[str]
    card: ClassVar[BenchCard]
    titles: ClassVar[Mapping[str, str]]
    published: ClassVar[Mapping[str, tuple[Mapping[str, float], str]]] = {}

    @abstractmethod
    def run(self, data: Path, image_dir: str | None, options: LabelOptions) -> BenchResult:
        """Name the masks of the benchmark into the output folder, and score them. A killed run continues.

        Args:
            data: the folder of the benchmark's files, or the file with the masks.
            image_dir: the folder of the images; None = the usual place.
            options: the model and the output folder.

        Raises:
            OsmError: files are missing or invalid, or a mask cannot be scored.
        """


def set_rates(
    score: Callable[[np.ndarray], Mapping[str, float | None]], images: int, masks: int, groups: int = GROUPS
) -> dict[str, Rate]:
    """Return scores of a whole dataset, which are not means over masks, with their 95 % intervals over images.

    The intervals are those of the delete-a-group jackknife (Kott, Journal of Official Statistics, 2001): the scores are
    computed again without each group of images. The bootstrap would be biased, because a class with few images is in a
    bootstrap sample only together with copies of its images, and the mean is over the classes of the sample.

    Args:
        score: returns the scores (0 to 1, or None) if image i counts weights[i] times; weights: float (images,).
        images: the number of images.
        masks: the number of masks.
        groups: the largest number of groups. 0: no intervals.
    """
    whole = score(np.ones(images))
    count = min(images, groups)
    group_of = np.arange(images) % max(count, 1)
    without = [score((group_of != group).astype(float)) for group in range(count)] if count > 1 else []
    return {
        key: Rate(value, masks, images, _jackknife(value, [one[key] for one in without]))
        for key, value in whole.items()
    }


def _jackknife(value: float | None, without: Sequence[float | None]) -> tuple[float, float] | None:
    """Return value +- 1.96 standard errors, within 0 to 1."""
    if value is None or not without or None in without:
        return None
    values = np.array(without, float)
    half = 1.959963984540054 * float(np.sqrt((len(values) - 1) * values.var()))
    return max(0.0, value - half), min(1.0, value + half)


def table(bench: Bench, result: BenchResult) -> list[str]:
    """Return the lines of a Markdown table with the published rows, and the row of the result."""
    keys = list(bench.titles)
    lines = [f"| model | {' | '.join(bench.titles.values())} | source |", "|---" * (len(keys) + 2) + "|"]
    for model, (values, source) in bench.published.items():
        cells = [f"{values[key]:.2f}" if key in values else "" for key in keys]
        lines.append(f"| {model} | {' | '.join(cells)} | {source} |")
    cells = []
    for key in keys:
        rate = result.rates[key]
        around = f" ({100 * rate.interval[0]:.2f} to {100 * rate.interval[1]:.2f})" if rate.interval else ""
        cells.append("" if rate.value is None else f"{100 * rate.value:.2f}{around}")
    lines.append(
        f"| {result.checkpoint} | {' | '.join(cells)} | this run: {result.masks} masks, {result.images} images |"
    )
    return lines


def as_text(result: BenchResult) -> str:
    """Return the JSON document of a result."""
    return json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n"
