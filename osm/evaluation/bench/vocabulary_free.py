"""Vocabulary-free recognition: free names are compared with the classes of labelled masks or whole images.

Sources: Conti et al., Vocabulary-free Image Classification, NeurIPS 2023, for the cluster accuracy, and Conti et al.,
On Large Multimodal Models as Open-World Image Classifiers, 2025, for the textual inclusion and the concept similarity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.errors import OsmError
from osm.evaluation.bench.benchmark import BenchCard, BenchResult
from osm.evaluation.bench.naming_bench import NamedMask, NamingBench
from osm.evaluation.bench.osprey import similarities
from osm.evaluation.metrics.published import normalize
from osm.evaluation.metrics.semantic import semantic_iou
from osm.files import write_output
from osm.io.images import SUFFIXES, open_image, orientation
from osm.labeling.label_options import LabelOptions

WHOLE_IMAGES = "whole_images.json"
_QUARTER_TURNS = range(5, 9)  # the EXIF orientations that swap width and height
# Articles, prepositions, conjunctions, pronouns and forms of "to be" and "to have" end a phrase.
_BETWEEN = re.compile(
    r"[^\w\s'-]+|\b(?:a|an|the|of|in|on|at|with|by|for|from|to|near|under|over|behind|beside|and|or|but|that|which|"
    r"this|these|those|it|its|there|is|are|was|were|be|being|has|have)\b"
)


def phrases(name: str) -> list[str]:
    """Return the phrases of a lower-cased name: the whole name, and its parts between function words and "
    "punctuation."""
    text = normalize(name)
    parts = (" ".join(part.split()) for part in _BETWEEN.split(text))
    return [part for part in dict.fromkeys((text, *parts)) if part]


def includes(name: str, truth: str) -> bool:
    """Return whether a lower-cased name contains the class name."""
    return bool(normalize(truth)) and normalize(truth) in normalize(name)


def concept_similarities(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the largest cosine of any phrase of each prediction with the class name, 0 for an empty prediction."""
    listed = [(row, phrase, truth) for row, (name, truth) in enumerate(pairs) for phrase in phrases(name)]
    found = np.full(len(pairs), -1.0)
    np.maximum.at(found, [row for row, _, _ in listed], similarities([(phrase, truth) for _, phrase, truth in listed]))
    found[[not phrases(name) for name, _ in pairs]] = 0.0
    return found


def cluster_accuracy(names: Sequence[str], truths: Sequence[str], weights: np.ndarray) -> float | None:
    """Return the share of masks that are right under the best one-to-one assignment of names to classes.

    The assignment is found by the Hungarian method.

    Args:
        names: the predicted names. They are lower-cased.
        truths: the classes.
        weights: float (masks,), how often each mask counts.

    Raises:
        OsmError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError:
        raise OsmError("cluster accuracy needs the package scipy; install it with pip install scipy") from None
    if not weights.any():
        return None
    _, said = np.unique([normalize(name) for name in names], return_inverse=True)
    _, meant = np.unique([normalize(truth) for truth in truths], return_inverse=True)
    table = np.zeros((int(said.max()) + 1, int(meant.max()) + 1))
    np.add.at(table, (said, meant), weights)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / weights.sum())


class VocabularyFree(NamingBench):
    """Free names for the labelled masks of a file, or for whole images in a folder for each class."""

    name = "vocabulary_free"
    form = ""
    file = "annotations.json"
    titles: ClassVar = {
        "cluster": "cluster accuracy",
        "similarity": "semantic similarity",
        "iou": "S-IoU",
        "inclusion": "textual inclusion",
        "concept": "concept similarity",
    }
    card: ClassVar = BenchCard(
        title="Vocabulary-free recognition",
        question="What is in the mask, or in the whole image?",
        source="Conti et al., Vocabulary-free Image Classification, NeurIPS 2023 (arXiv 2306.00917); Conti et al., On "
        "Large Multimodal Models as Open-World Image Classifiers, 2025 (arXiv 2503.21851)",
        data="A file of labelled masks in any format that `osm label` reads, or a folder with one folder of images for "
        "each class, whose whole area is named",
        size="That of the given data",
        rules="Cluster accuracy assigns each distinct name to at most one class, and each class to at most one "
        "name, so that as many masks as possible are right. Textual inclusion is whether the name contains "
        "the class name. Concept similarity is the largest cosine of the sentence embeddings of the class "
        "name and any phrase of the name. Semantic similarity and S-IoU as in [evaluation](evaluation.md). "
        "All names are lower-cased",
        caveats="Cluster accuracy does not ask whether a name is true: a name that is wrong for all masks of a "
        "class counts. It falls with each second name for a class, and is meaningless with one mask per "
        "class. The papers find noun phrases with a parser; here, phrases are the words between function "
        "words and punctuation",
    )

    def run(self, data: Path, image_dir: str | None, options: LabelOptions) -> BenchResult:
        if data.is_dir() and not (data / self.file).is_file():
            file = options.out / WHOLE_IMAGES
            write_output(file, "out", [json.dumps(whole_images(data)) + "\n"])
            return super().run(file, image_dir or str(data), options)
        return super().run(data, image_dir, options)

    def scores(self, masks: Sequence[NamedMask]) -> dict[str, np.ndarray]:
        pairs = [(mask.name, normalize(mask.truth)) for mask in masks]
        return {
            "similarity": similarities(pairs),
            "iou": np.array([semantic_iou(*pair) for pair in pairs], float),
            "inclusion": np.array([includes(*pair) for pair in pairs], float),
            "concept": concept_similarities(pairs),
        }

    def set_scores(self, masks: Sequence[NamedMask], weights: np.ndarray) -> dict[str, float | None]:
        return {"cluster": cluster_accuracy([mask.name for mask in masks], [mask.truth for mask in masks], weights)}


def whole_images(folder: Path) -> dict[str, Any]:
    """Return the images of a folder with one folder for each class as a COCO document with a box around each image.

    The name of a class is the name of its folder, with blanks for underscores.

    Raises:
        OsmError: no folder in it has an image.
    """
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    for category_id, of_class in enumerate(classes, 1):
        for path in _images_in(of_class):
            width, height = _upright_size(path)
            number = len(images) + 1
            place = path.relative_to(folder).as_posix()
            images.append({"id": number, "file_name": place, "width": width, "height": height})
            outline = [[0, 0, width, 0, width, height, 0, height]]
            box = {"bbox": [0, 0, width, height], "segmentation": outline, "area": width * height, "iscrowd": 0}
            boxes.append({"id": number, "image_id": number, "category_id": category_id, **box})
    if not images:
        raise OsmError(f"--data {folder}: has neither {VocabularyFree.file} nor a folder of images for each class")
    names = [{"id": k, "name": path.name.replace("_", " ")} for k, path in enumerate(classes, 1)]
    return {"images": images, "annotations": boxes, "categories": names}


def _upright_size(path: Path) -> tuple[int, int]:
    with open_image(path) as image:
        width, height = image.size
        return (height, width) if orientation(image) in _QUARTER_TURNS else (width, height)


def _images_in(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
