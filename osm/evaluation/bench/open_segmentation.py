"""Open-vocabulary segmentation with ground-truth masks: PQ, AP and mean IoU of free names, and open scores.

A free name counts as the class with the most similar sentence embedding. The open scores also credit a name that is
similar to the true class.

Shapes: M = masks, C = classes, V = names of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from osm.datasets.labels import LabelSet
from osm.errors import OsmError
from osm.evaluation.bench.benchmark import BenchCard, set_rates
from osm.evaluation.bench.class_precision import ImageDetections, precision_rates
from osm.evaluation.bench.true_masks import NamedTruth, TrueMaskBench
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.published import normalize
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.terminal import message_logger

logger = message_logger(__name__)
_AT_ONCE = 1024  # number of names whose cosines to all class names are in memory together


@dataclass(frozen=True)
class NearestClasses:
    """The class of each name by sentence embeddings.

    Attributes:
        said_M: int, the index of the nearest class, or -1 for an empty name.
        similarity_M: float, the cosine with the true class, 0 to 1; 1 for a name of the true class.
    """

    said_M: np.ndarray
    similarity_M: np.ndarray


def nearest_classes(names: Sequence[str], true_M: np.ndarray, class_names: Sequence[tuple[str, ...]]) -> NearestClasses:
    """Find the nearest class of each name. Of the names of a class, the one with the largest cosine counts.

    Args:
        names: the predicted names. They are lower-cased.
        true_M: int, the index of the true class of each name.
        class_names: the names of each class.

    Raises:
        OsmError: the sentence encoder is not installed.
    """
    from osm.recognition.similarity import SentenceEncoder

    said = [normalize(name) for name in names]
    distinct = sorted({name for name in said if name})
    spellings = [name for of_class in class_names for name in of_class]
    starts_C = np.cumsum([0, *(len(of_class) for of_class in class_names)])[:-1]
    said_M, similarity_M = np.full(len(said), -1), np.zeros(len(said))
    encoder = SentenceEncoder()
    vectors_V = encoder.encode(spellings).numpy()
    for first in range(0, len(distinct), _AT_ONCE):
        some = distinct[first : first + _AT_ONCE]
        cosines_C = np.maximum.reduceat(encoder.encode(some).numpy() @ vectors_V.T, starts_C, axis=1)
        rows = {name: row for row, name in enumerate(some)}
        for mask, name in enumerate(said):
            if name in rows:
                of_name_C = cosines_C[rows[name]]
                said_M[mask], similarity_M[mask] = of_name_C.argmax(), of_name_C[true_M[mask]]
    return NearestClasses(said_M, np.clip(similarity_M, 0.0, 1.0))


@dataclass(frozen=True)
class SoftCounts:
    """True positives, false positives and false negatives of each class in each image, each float (images, C).

    The credit of a mask is 1 if its name is right, 0 if it is wrong, and between them for a similar name. Its true
    class has the credit as a true positive and the rest as a false negative. The class of its name has the rest as a
    false positive.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def of(
        cls,
        images_M: np.ndarray,
        true_M: np.ndarray,
        said_M: np.ndarray,
        credit_M: np.ndarray,
        weight_M: np.ndarray,
        count: int,
    ) -> SoftCounts:
        """Count the masks.

        Args:
            images_M: int, the image of each mask.
            true_M: int, the index of its true class.
            said_M: int, the index of the class of its name, or -1.
            credit_M: float, 0 to 1.
            weight_M: float, how much the mask counts.
            count: the number of classes.
        """
        cells = int(images_M.max(initial=-1)) + 1, count
        tp, fp, fn = (np.zeros(cells) for _ in range(3))
        np.add.at(tp, (images_M, true_M), credit_M * weight_M)
        np.add.at(fn, (images_M, true_M), (1 - credit_M) * weight_M)
        named = said_M >= 0
        np.add.at(fp, (images_M[named], said_M[named]), ((1 - credit_M) * weight_M)[named])
        return cls(tp, fp, fn)

    def quality(self, weights: np.ndarray) -> float | None:
        """Return the mean over classes of TP / (TP + FP / 2 + FN / 2), which is PQ if every matched mask has IoU 1.

        Args:
            weights: float (images,), how often each image counts.
        """
        tp, total = weights @ self.tp, weights @ (self.tp + (self.fp + self.fn) / 2)
        return float((tp[total > 0] / total[total > 0]).mean()) if (total > 0).any() else None

    def overlap(self, weights: np.ndarray) -> float | None:
        """Return the mean of TP / (TP + FP + FN) over the classes of the ground truth, which is mean IoU for pixels."""
        tp, total = weights @ self.tp, weights @ (self.tp + self.fp + self.fn)
        true = weights @ (self.tp + self.fn) > 0
        return float((tp[true] / total[true]).mean()) if true.any() else None


def path_credit(names: Sequence[str], true_M: np.ndarray, class_names: Sequence[tuple[str, ...]]) -> np.ndarray | None:
    """Return the WordNet path similarity of each name with its true class, or None if there is no WordNet."""
    try:
        lexicon = Lexicon(find_wordnet())
    except OsmError as error:
        logger.info(f"the open scores by WordNet's paths are left out: {error}")
        return None
    found: dict[tuple[str, int], float] = {}
    for name, index in zip(names, true_M.tolist(), strict=True):
        if (name, index) not in found:
            found[name, index] = lexicon.path_similarity(name, class_names[index])
    return np.array([found[pair] for pair in zip(names, true_M.tolist(), strict=True)])


def segmentation_scores(
    named: NamedTruth, images_M: np.ndarray, true_M: np.ndarray, classes: Sequence[int], nearest: NearestClasses
) -> dict[str, Callable]:
    """Return each score that depends on counts, as a function of how often each image counts.

    Args:
        named: the masks with their names.
        images_M: int, the index of each mask's image among the images with masks.
        true_M: int, the index of each mask's class in `classes`.
        classes: the ids of the classes.
        nearest: the class of each name.
    """
    area_M = np.array([mask.area for mask in named.masks], float)
    said_M, names = nearest.said_M, [mask.name for mask in named.masks]
    credits = {
        "": (said_M == true_M).astype(float),
        "open_": nearest.similarity_M,
        "path_": path_credit(names, true_M, class_names(named.row.label_set, classes)),
    }
    scores: dict[str, Callable] = {}
    for key, credit_M in credits.items():
        if credit_M is None:
            scores[f"{key}pq"] = scores[f"{key}miou"] = lambda weights: None
            continue
        given = images_M, true_M, said_M, credit_M
        scores[f"{key}pq"] = SoftCounts.of(*given, (area_M > 0).astype(float), len(classes)).quality
        scores[f"{key}miou"] = SoftCounts.of(*given, area_M, len(classes)).overlap
    return scores


def class_names(labels: LabelSet, classes: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the names of the classes."""
    return [labels.classes[category_id].names for category_id in classes]


class TrueMasksBench(TrueMaskBench):
    """Free names for the ground-truth masks of a panoptic dataset, scored as segmentation."""

    titles: ClassVar = {
        "pq": "PQ",
        "ap": "AP",
        "miou": "mIoU",
        "open_pq": "open PQ",
        "open_miou": "open mIoU",
        "path_pq": "open PQ, WordNet",
        "path_miou": "open mIoU, WordNet",
    }

    def rates(self, named: NamedTruth) -> dict[str, Rate]:
        labels, ignored = named.row.label_set, named.row.rules.ignored_ids
        classes = [category_id for category_id in sorted(labels.classes) if category_id not in ignored]
        place = {category_id: index for index, category_id in enumerate(classes)}
        true_M = np.array([place[mask.category_id] for mask in named.masks])
        nearest = nearest_classes([mask.name for mask in named.masks], true_M, class_names(labels, classes))
        numbers, images_M = np.unique([mask.image for mask in named.masks], return_inverse=True)
        scores = segmentation_scores(named, images_M, true_M, classes, nearest)
        rates = set_rates(
            lambda weights: {key: score(weights) for key, score in scores.items()}, len(numbers), len(named.masks)
        )
        rates |= precision_rates(
            named, self._detections(named, [classes[i] if i >= 0 else None for i in nearest.said_M])
        )
        return {key: rates[key] for key in self.titles}

    def _detections(self, named: NamedTruth, said: Sequence[int | None]) -> list[ImageDetections]:
        """Return the masks whose name is a thing, as detections of this class with the probability of the name."""
        found: list[ImageDetections] = [[] for _ in named.images]
        for mask, category_id in zip(named.masks, said, strict=True):
            if category_id is not None and category_id in named.split.things:
                found[mask.image].append((mask.rle, category_id, mask.prob))
        return found


_SOURCE = (
    "Yuan et al., Osprey, CVPR 2024 (arXiv 2312.10032), for the task; Kirillov et al., CVPR 2019, for PQ; Zhou et al., "
    "Rethinking Evaluation Metrics of Open-Vocabulary Segmentation (arXiv 2311.03352), for the open scores"
)
_RULES = (
    "A name counts as the class with the largest cosine of the sentence embeddings (all-MiniLM-L6-v2) with any of "
    "its names. Each ground-truth mask stays a segment of its own. In AP, a mask named as a thing is a detection of "
    "this class, with the probability of the name as its score. For the open scores, a mask with the credit s counts s "
    "as a true positive and 1 - s as a false negative of its true class, and 1 - s as a false positive of the class "
    "of its name. The credit is the cosine of the name with its true class, or WordNet's path similarity"
)
_CAVEATS = (
    "The masks are given, so a value shows how well they are named, and cannot be compared with that of a "
    "segmenter. The nearest class can be wrong for a right name, and right for a wrong one. The paper of the open "
    "scores compares class names; here, free names are compared with class names. We have not compared our "
    "open scores with the code of its authors"
)


class TrueMasksAde20k(TrueMasksBench):
    """ADE20K with 150 classes."""

    name = "true_masks_ade20k"
    dataset = "ade20k"
    places: ClassVar = {
        "image_dir": "images/validation",
        "mask_dir": "ade20k_panoptic_val",
        "json_file": "ade20k_panoptic_val.json",
    }
    card: ClassVar = BenchCard(
        title="ADE20K, ground-truth masks",
        question="Which of the 150 classes is nearest to the free name of each ground-truth mask?",
        source=_SOURCE,
        data="The folder `ADEChallengeData2016` with its panoptic annotations (see [datasets](datasets.md))",
        size="2,000 images",
        rules=_RULES,
        caveats=_CAVEATS,
    )


class TrueMasksCityscapes(TrueMasksBench):
    """Cityscapes with 19 classes."""

    name = "true_masks_cityscapes"
    dataset = "cityscapes"
    places: ClassVar = {
        "image_dir": "leftImg8bit/val",
        "mask_dir": "gtFine/cityscapes_panoptic_val",
        "json_file": "gtFine/cityscapes_panoptic_val.json",
    }
    card: ClassVar = BenchCard(
        title="Cityscapes, ground-truth masks",
        question="Which of the 19 classes is nearest to the free name of each ground-truth mask?",
        source=_SOURCE,
        data="The folder `cityscapes` with its panoptic annotations (see [datasets](datasets.md))",
        size="500 images",
        rules=_RULES,
        caveats=_CAVEATS,
    )


class TrueMasksCoco(TrueMasksBench):
    """COCO panoptic with 133 classes."""

    name = "true_masks_coco"
    dataset = "coco"
    places: ClassVar = {
        "image_dir": "val2017",
        "mask_dir": "panoptic_val2017",
        "json_file": "annotations/panoptic_val2017.json",
    }
    card: ClassVar = BenchCard(
        title="COCO panoptic, ground-truth masks",
        question="Which of the 133 classes is nearest to the free name of each ground-truth mask?",
        source=_SOURCE,
        data="The folder `coco` with its panoptic annotations (see [datasets](datasets.md))",
        size="5,000 images",
        rules=_RULES,
        caveats=_CAVEATS,
    )
