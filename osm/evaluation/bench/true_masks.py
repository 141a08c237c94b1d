"""Benchmarks whose masks are the ground truth of a dataset of the dataset table.

The masks are written to `true_masks.json` in the output folder as proposals, which `generate_predictions` names.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from osm.datasets.labels import LabelClass
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.bench.benchmark import Bench, BenchResult
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.prediction_files import prediction_path
from osm.evaluation.scoring.mask_precision import Federated
from osm.evaluation.scoring.named_proposals import KIND
from osm.evaluation.scoring.truth import Truth, TruthSplit, truth_split
from osm.files import read_json, write_output
from osm.forms import form_class
from osm.forms.split import FIELD, images_of
from osm.io.segmentation import encode_rle
from osm.labeling.label_options import LabelOptions
from osm.labeling.label_processes import for_process, run_processes
from osm.quiet import quiet_command
from osm.terminal import ProgressBar

MASKS = "true_masks.json"
_IMAGE, _CLASS, _AREA = "image_id", "category_id", "area"


@dataclass(frozen=True)
class TrueMask:
    """A mask of the ground truth with its predicted name.

    Attributes:
        image: the position of its image, from 0.
        category_id: its true class.
        rle: its pixels as a COCO RLE.
        area: the number of its pixels.
        name: the predicted name; empty if the mask has none.
        prob: the probability of the name, 0 to 1.
        top: with a list of classes, the most likely ones as (class id, probability), most likely first.
    """

    image: int
    category_id: int
    rle: Mapping[str, Any]
    area: int
    name: str = ""
    prob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TrueImage:
    """An image of the ground truth: its size (height, width), its crowds as (class id, RLE), and LVIS's lists."""

    size: tuple[int, int]
    crowds: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    federated: Federated | None = None


@dataclass(frozen=True)
class NamedTruth:
    """A dataset with the names of its masks: its row, its ground truth, its images and its masks."""

    row: Dataset
    split: TruthSplit
    images: Sequence[TrueImage]
    masks: Sequence[TrueMask]


@dataclass(frozen=True)
class ClassList:
    """The classes among which `scored` compares, and the number of candidates that each mask keeps."""

    classes: Sequence[LabelClass]
    top_k: int


class TrueMaskBench(Bench):
    """A benchmark that names the ground-truth masks of a dataset.

    Attributes:
        dataset: the name of a row of the dataset table.
        changes: the fields of the row that the benchmark changes. Without labels, the classes are those of the json.
        places: the path of each path field of the row in the data folder.
    """

    dataset: ClassVar[str]
    changes: ClassVar[Mapping[str, Any]] = {}
    places: ClassVar[Mapping[str, str]]

    def run(self, data: Path, image_dir: str | None, options: LabelOptions) -> BenchResult:
        row = self.row(data, image_dir)
        named = named_truth(row, options, self.class_list(row))
        unnamed = Counter({"the mask has no pixels": sum(not mask.area for mask in named.masks)})
        unnamed["the mask has no pixels at the size of the model"] = sum(
            bool(mask.area) and not mask.name and not mask.prob for mask in named.masks
        )
        images = len({mask.image for mask in named.masks})
        rates = self.rates(named)
        assert rates.keys() == self.titles.keys()
        return BenchResult(self.name, options.checkpoint, rates, len(named.masks), images, +unnamed)

    def row(self, data: Path, image_dir: str | None) -> Dataset:
        """Return the row of the dataset with its paths.

        Raises:
            OsmError: a file or folder is missing.
        """
        places: dict[str, Any] = {field: str(data / place) for field, place in self.places.items()}
        if image_dir is not None:
            places["image_dir"] = image_dir
        for field, place in places.items():
            if not Path(place).exists():
                flag = "--image_dir" if field == "image_dir" else "--data"
                raise OsmError(
                    f"--data {data}: {place} does not exist; {self.card.title} needs {', '.join(self.places.values())} "
                    f"in this folder ({flag})"
                )
        row = replace(DatasetTable()[self.dataset], **self.changes, **places)
        return row if row.labels else replace(row, labels=places["json_file"])

    def class_list(self, row: Dataset) -> ClassList | None:
        """Return the classes among which the model chooses, or None if it may answer with any name."""
        return None

    @abstractmethod
    def rates(self, named: NamedTruth) -> dict[str, Rate]:
        """Return the scores of the names by their keys."""


def named_truth(row: Dataset, options: LabelOptions, classes: ClassList | None) -> NamedTruth:
    """Name the ground-truth masks of a dataset into the output folder. A killed run continues.

    Args:
        row: the dataset with its paths.
        options: the model, the mode, the number of processes and the output folder.
        classes: the classes among which the model chooses; None = any name.

    Raises:
        OsmError: the dataset is invalid or has no masks, or the folder has the names of another run.
        RunStopped: a process was killed.
    """
    split = truth_split(row, form_class(row.form))
    options.out.mkdir(parents=True, exist_ok=True)
    images, masks = _read_truth(split)
    if not masks:
        raise OsmError(f"{split.source}: has no masks")
    write_output(options.out / MASKS, "out", _lines(masks))
    calls = [(options, row, classes, k, options.processes) for k in range(options.processes)]
    if len(calls) == 1:
        _name(*calls[0])
    else:
        run_processes(_name, calls)
    return NamedTruth(row, split, images, _with_names(row, options, masks))


def _read_truth(split: TruthSplit) -> tuple[list[TrueImage], list[dict[str, Any]]]:
    """Return the images of a dataset, and their masks as proposals with the class and the number of the image."""
    ids = {image.path: image.id for image in images_of(split.row, split.form)[0]}
    images: list[TrueImage] = []
    masks: list[dict[str, Any]] = []
    with ProgressBar(f"{split.row.name}: masks", len(split), "images") as progress:
        for index in range(len(split)):
            truth = split.truth(index)
            crowds = [(one.category_id, encode_rle(one.mask())) for one in truth.instances if one.crowd]
            images.append(TrueImage(truth.size, tuple(crowds), truth.federated))
            for category_id, rle, area in _masks_of(truth):
                entry = {_IMAGE: ids[split.image_path(index)], _CLASS: category_id, "segmentation": rle, _AREA: area}
                masks.append({**entry, "number": index})
            progress.step()
    return images, masks


def _masks_of(truth: Truth) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield the class, the RLE and the area of each mask of an image that is not a crowd."""
    if truth.segments_HW is None:
        for instance in truth.instances:
            if not instance.crowd:
                mask_HW = instance.mask()
                yield instance.category_id, encode_rle(mask_HW), int(mask_HW.sum())
        return
    for value, segment in enumerate(truth.segments, 1):
        if not segment.crowd and segment.category_id is not None:
            mask_HW = truth.segments_HW == value
            yield segment.category_id, encode_rle(mask_HW), int(mask_HW.sum())


def _lines(masks: Sequence[dict[str, Any]]) -> Iterator[str]:
    for number, mask in enumerate(masks):
        yield ("[" if not number else ",\n") + json.dumps(mask)
    yield "]\n"


@quiet_command
def _name(options: LabelOptions, row: Dataset, classes: ClassList | None, process: int, count: int) -> int:
    """Name one part of the masks."""
    from osm.recognition.namer import load_namer

    options = for_process(options, process, count)
    namer = load_namer(
        options.checkpoint, device=options.device, max_new_tokens=options.max_new_tokens, **options.model_options
    )
    chosen: dict[str, Any] = {}
    if classes is not None:
        chosen = {"vocabulary": classes.classes, "method": "scored", "top_k": classes.top_k}
    proposals = options.out / MASKS
    generate_predictions(namer, row, process, count, options.out, modes=[options.mode], proposals=proposals, **chosen)
    return 0


def _with_names(row: Dataset, options: LabelOptions, masks: Sequence[dict[str, Any]]) -> list[TrueMask]:
    """Read the names, which are in the order of the masks."""
    entries: list[dict[str, Any]] = []
    for process in range(options.processes):
        path = prediction_path(options.out, row.name, process, options.processes, KIND)
        entries += read_json(path, "predictions")[0]
    found: list[TrueMask] = []
    for entry, mask in zip(entries, masks, strict=True):
        if any(entry[key] != mask[key] for key in (_IMAGE, _CLASS, "segmentation")):
            raise OsmError(f"--out {options.out}: the names belong to other masks; choose another folder")
        named = entry.get(FIELD, {}).get(options.mode, {})
        top = tuple((int(class_id), float(prob)) for class_id, prob in named.get("top", ()))
        where = mask["number"], mask[_CLASS], mask["segmentation"], mask[_AREA]
        found.append(TrueMask(*where, named.get("class", ""), named.get("prob", 0.0), top))
    return found
