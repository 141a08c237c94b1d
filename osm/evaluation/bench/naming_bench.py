"""The interface of a benchmark that names given masks, and the run that names and scores them."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from osm.errors import OsmError
from osm.evaluation.bench.benchmark import Bench, BenchResult, set_rates
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, Rate
from osm.labeling.label_journal import image_of
from osm.labeling.label_options import PARTS, LabelOptions
from osm.labeling.parts.part_journal import PartJournal
from osm.labeling.parts.part_run import label_parts


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


class NamingBench(Bench):
    """A benchmark whose masks are in a file of a label format, and whose scores depend on the names only.

    Attributes:
        form: the format of its masks, one of `osm.labeling.formats.FORMATS`; empty = recognized by the content.
        file: the usual name of the file with the masks in the data folder.
    """

    form: ClassVar[str]
    file: ClassVar[str]

    def run(self, data: Path, image_dir: str | None, options: LabelOptions) -> BenchResult:
        truths = self.truths(data)
        whole = name_masks(self, data, image_dir, options)
        masks, unnamed = read_named(whole.out, truths)
        if not masks:
            raise OsmError(f"--data {data}: has no masks")
        images = len({mask.image for mask in masks})
        return BenchResult(self.name, options.checkpoint, score(self, masks), len(masks), images, unnamed)

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

    def set_scores(self, masks: Sequence[NamedMask], weights: np.ndarray) -> dict[str, float | None]:
        """Return the scores that are not means over masks, by their keys.

        Args:
            masks: all masks.
            weights: float (masks,), how often each mask counts.
        """
        return {}


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
    """Return the scores of all masks with their 95 % intervals over images, in the order of the titles."""
    bootstrap = bootstrap or Bootstrap()
    columns = bench.scores(masks)
    numbers, images = np.unique([mask.image for mask in masks], return_inverse=True)
    rates = ImageSums(images, len(numbers), columns).rates(bootstrap)
    if columns.keys() != bench.titles.keys():
        rates |= set_rates(lambda weights: bench.set_scores(masks, weights[images]), len(numbers), len(masks))
    assert rates.keys() == bench.titles.keys()
    return {key: rates[key] for key in bench.titles}
