"""Classification of ground-truth boxes and masks: every class of the list gets a score, from which AP is computed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from osm.datasets.table import Dataset
from osm.evaluation.bench.benchmark import BenchCard
from osm.evaluation.bench.class_precision import ImageDetections, precision_rates
from osm.evaluation.bench.true_masks import ClassList, NamedTruth, TrueMaskBench
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, Rate

_MOST = 300
"""The number of classes that a mask keeps. LVIS counts the 300 best detections of an image, and COCO has 80 classes, so
no detection that counts is lost."""


class ClassScoresBench(TrueMaskBench):
    """A score of every class for every ground-truth mask or box of a dataset."""

    titles: ClassVar = {"ap": "AP", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}

    def class_list(self, row: Dataset) -> ClassList:
        labels = row.label_set.classes
        asked = [labels[category_id] for category_id in sorted(labels) if category_id not in row.rules.ignored_ids]
        return ClassList(asked, max(2, min(len(asked), _MOST)))

    def rates(self, named: NamedTruth) -> dict[str, Rate]:
        detections: list[ImageDetections] = [[] for _ in named.images]
        for mask in named.masks:
            detections[mask.image] += [(mask.rle, category_id, prob) for category_id, prob in mask.top]
        numbers, images = np.unique([mask.image for mask in named.masks], return_inverse=True)
        columns = {
            f"top{count}": np.array(
                [mask.category_id in [category_id for category_id, _ in mask.top[:count]] for mask in named.masks],
                float,
            )
            for count in (1, 5)
        }
        sums = ImageSums(images, len(numbers), columns)
        return {**precision_rates(named, detections), **sums.rates(Bootstrap())}


_SOURCE = "Pan et al., Tokenize Anything via Prompting, ECCV 2024 (arXiv 2312.09128), for the task"
_CAVEATS = (
    "The boxes and masks are given, so a value shows classification only. Our class scores are likelihoods of names, "
    "while TAP compares embeddings. Masks of 0 pixels count as missed"
)


def _rules(what: str, several: str, protocol: str) -> str:
    return (
        "The score of a class is its share of the likelihoods of all class names (`scored`, see "
        f"[recognition](recognition.md)). Every class of every {what} is a detection with this score. AP is that of "
        f"{protocol}; the top-1 and top-5 accuracies are means over the {several}"
    )


class ClassScoresCoco(ClassScoresBench):
    """The masks of COCO's instances."""

    name = "class_scores_coco"
    dataset = "coco"
    changes: ClassVar = {"form": "coco_instances", "labels": "", "mask_dir": None}
    places: ClassVar = {"image_dir": "val2017", "json_file": "annotations/instances_val2017.json"}
    card: ClassVar = BenchCard(
        title="COCO, class scores of ground-truth masks",
        question="What is the score of each of the 80 classes for each ground-truth mask?",
        source=_SOURCE,
        data="The folder `coco` with `val2017` and `annotations/instances_val2017.json`",
        size="5,000 images",
        rules=_rules("mask", "masks", "COCO"),
        caveats=_CAVEATS,
    )


class ClassScoresCocoBoxes(ClassScoresCoco):
    """The boxes of COCO's instances."""

    name = "class_scores_coco_boxes"
    changes: ClassVar = {"form": "boxes", "labels": "", "mask_dir": None}
    card: ClassVar = BenchCard(
        title="COCO, class scores of ground-truth boxes",
        question="What is the score of each of the 80 classes for each ground-truth box?",
        source=_SOURCE,
        data="The folder `coco` with `val2017` and `annotations/instances_val2017.json`",
        size="5,000 images",
        rules=_rules("box", "boxes", "COCO"),
        caveats=_CAVEATS,
    )


class ClassScoresLvis(ClassScoresBench):
    """The masks of LVIS's instances."""

    name = "class_scores_lvis"
    dataset = "lvis"
    places: ClassVar = {"image_dir": ".", "json_file": "lvis_v1_val.json"}
    card: ClassVar = BenchCard(
        title="LVIS, class scores of ground-truth masks",
        question="What is the score of each of the 1,203 classes for each ground-truth mask?",
        source=_SOURCE,
        data="The folder `lvis` with `lvis_v1_val.json`, `val2017` and `train2017`",
        size="19,809 images",
        rules=_rules("mask", "masks", "LVIS"),
        caveats=_CAVEATS,
    )


class ClassScoresLvisBoxes(ClassScoresLvis):
    """The boxes of LVIS's instances."""

    name = "class_scores_lvis_boxes"
    changes: ClassVar = {"form": "boxes"}
    card: ClassVar = BenchCard(
        title="LVIS, class scores of ground-truth boxes",
        question="What is the score of each of the 1,203 classes for each ground-truth box?",
        source=_SOURCE,
        data="The folder `lvis` with `lvis_v1_val.json`, `val2017` and `train2017`",
        size="19,809 images",
        rules=_rules("box", "boxes", "LVIS"),
        caveats=_CAVEATS,
    )
