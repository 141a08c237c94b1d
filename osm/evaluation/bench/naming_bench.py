"""The interface of a benchmark that names given masks, and the run that names and scores them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.errors import OsmError
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, Rate
from osm.labeling.label_journal import image_of
from osm.labeling.label_options import PARTS, LabelOptions
from osm.labeling.parts.part_journal import PartJournal
from osm.labeling.parts.part_run import label_parts


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


@dataclass(frozen=True)
class NamedMask:
    """A mask of a benchmark with the name that the model gave it.

    Attributes:
        image: the position of its image, from 0.
        truth: the name of its class in the files of the benchmark.
        name: the predicted name; empty if the mask has none.
    """

    image: int
    truth: str
    name: str


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


class NamingBench(ABC):
    """A benchmark whose masks are named.

    Attributes:
        name: its name on the command line.
        card: what it consists of.
        form: the format of its masks, one of `osm.labeling.formats.FORMATS`.
        file: the usual name of the file with the masks in the data folder.
        titles: the title of each score by its key.
        published: for each model, its published scores in percent by their keys, and their source.
    """

    name: ClassVar[str]
    card: ClassVar[BenchCard]
    form: ClassVar[str]
    file: ClassVar[str]
    titles: ClassVar[Mapping[str, str]]
    published: ClassVar[Mapping[str, tuple[Mapping[str, float], str]]] = {}

    def masks_file(self, data: Path) -> Path:
        """Return the file with the masks in a data folder.

        Raises:
            OsmError: the folder has no such file.
        """
        if data.is_file():
            return data
        if not (data / self.file).is_file():
            raise OsmError(f"--data {data}: has no file {self.file}; pass the folder of {self.card.title}, or the file")
        return data / self.file

    def truths(self, data: Path) -> Mapping[str, str] | None:
        """Return the class of each mask by the mask's id, or None if the masks have the classes as labels."""
        return None

    @abstractmethod
    def scores(self, masks: Sequence[NamedMask]) -> dict[str, np.ndarray]:
        """Return the scores of the masks by their keys, each float (masks,), from 0 to 1 (cosines from -1)."""


def name_masks(bench: NamingBench, data: Path, image_dir: str | None, options: LabelOptions) -> LabelOptions:
    """Name all masks of a benchmark into the output folder. A killed run continues.

    Args:
        bench: the benchmark.
        data: the folder of the benchmark's files, or the file with the masks.
        image_dir: the folder of the images; None = the folder of the file with the masks.
        options: the model and the output folder.

    Returns:
        the options of the labeling run.
    """
    masks = bench.masks_file(data)
    where = image_dir or str(masks.parent)
    whole = replace(options, images=where, masks=str(masks), image_dir=image_dir, form=bench.form, to=(PARTS,))
    label_parts(whole)
    return whole


def read_named(out: Path, truths: Mapping[str, str] | None) -> tuple[list[NamedMask], Counter[str]]:
    """Return the masks of a finished run with their names, and the number of masks without a name by reason.

    Raises:
        OsmError: an image could not be read, or a mask has no class.
    """
    found: list[NamedMask] = []
    unnamed: Counter[str] = Counter()
    for number, record in enumerate(PartJournal(out).records()):
        if record["failed"]:
            raise OsmError(f"{record['path']}: not named ({record['failed']}); every image of a benchmark must be read")
        for _, reason in record["unread"]:
            raise OsmError(f"{record['path']}: a mask cannot be read ({reason}); every mask of a benchmark is scored")
        for shape in image_of(record).shapes:
            truth = shape.label if truths is None else truths.get(str(shape.id), "")
            if not truth:
                raise OsmError(f"{record['path']}: the mask with the id {shape.id!r} has no class")
            unnamed.update([shape.skipped] if shape.skipped else ())
            found.append(NamedMask(number, truth, shape.name))
    return found, unnamed


def score(bench: NamingBench, masks: list[NamedMask], bootstrap: Bootstrap | None = None) -> dict[str, Rate]:
    """Return the mean of each score over all masks, with its 95 % interval over images."""
    columns = bench.scores(masks)
    assert columns.keys() == bench.titles.keys()
    images = np.array([mask.image for mask in masks], int)
    return ImageSums(images, int(images.max(initial=-1)) + 1, columns).rates(bootstrap or Bootstrap())


def run_bench(bench: NamingBench, data: Path, image_dir: str | None, options: LabelOptions) -> BenchResult:
    """Name the masks of a benchmark, and score the names.

    Raises:
        OsmError: files are missing or invalid, or a mask cannot be scored.
    """
    truths = bench.truths(data)
    whole = name_masks(bench, data, image_dir, options)
    masks, unnamed = read_named(whole.out, truths)
    if not masks:
        raise OsmError(f"--data {data}: has no masks")
    images = len({mask.image for mask in masks})
    return BenchResult(bench.name, options.checkpoint, score(bench, masks), len(masks), images, unnamed)


def table(bench: NamingBench, result: BenchResult) -> list[str]:
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
