"""Osprey's recognition benchmark on LVIS and PACO, by its own text rules and by those of this project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from osm.evaluation.bench.benchmark import BenchCard
from osm.evaluation.bench.naming_bench import NamedMask, NamingBench
from osm.evaluation.metrics.published import normalize
from osm.evaluation.metrics.semantic import semantic_iou, semantic_similarities

_SOURCE = "Yuan et al., Osprey: Pixel Understanding with Visual Instruction Tuning, CVPR 2024 (arXiv 2312.10032)"
_RULES = (
    "In class names, `_` and `:` become blanks. If a prediction contains `:`, only the part after the first `:` "
    "counts. Then `.`, `:` and `,` become blanks. Semantic similarity is the cosine of the sentence embeddings "
    "(all-MiniLM-L6-v2). S-IoU is the share of common words; words are lower-cased and separated by white space. The "
    "columns `ours` take the names as they are: words are runs of letters and digits"
)
_CAVEATS = (
    "Both scores reward names that are close to the class name in words. They do not show whether a different name is "
    "right, and a longer, more exact name scores lower"
)


def osprey_class(name: str) -> str:
    """Return a class name as Osprey compares it."""
    return name.replace("_", " ").replace(":", " ")


def osprey_prediction(text: str) -> str:
    """Return a prediction as Osprey compares it."""
    text = text.strip()
    if ":" in text:
        text = text.split(":")[1]
    for mark in ".:,":
        text = text.replace(mark, " ")
    return text


def osprey_iou(prediction: str, name: str) -> float:
    """Return |a ∩ b| / |a ∪ b| of the lower-cased words of two names, split at white space; 0 without a word."""
    said, meant = set(prediction.lower().split()), set(name.lower().split())
    return len(said & meant) / len(said | meant) if said | meant else 0.0


def similarities(pairs: Sequence[tuple[str, str]], rule: Callable[[str], str] = normalize) -> np.ndarray:
    """Return the cosine of the sentence embeddings of each (prediction, class name), 0 for an empty prediction.

    Raises:
        OsmError: the sentence encoder is not installed.
    """
    from osm.recognition.similarity import SentenceEncoder

    ruled = [(rule(prediction), (name,)) for prediction, name in pairs]
    return semantic_similarities(SentenceEncoder(), ruled)[:, 0]


class OspreyLvis(NamingBench):
    """The classes of 1,000 images of LVIS."""

    name = "osprey_lvis"
    form = "osprey"
    file = "lvis_val_1k_category.json"
    titles: ClassVar = {
        "similarity": "semantic similarity",
        "iou": "S-IoU",
        "own_similarity": "semantic similarity, ours",
        "own_iou": "S-IoU, ours",
    }
    card: ClassVar = BenchCard(
        title="Osprey LVIS",
        question="What is the class of the object in the mask?",
        source=_SOURCE,
        data="A json list of images with class names and masks (`sunshine-lwt/Osprey-ValData` on the Hugging Face "
        "Hub), and the images of LVIS",
        size="1,000 images, 4,004 masks",
        rules=_RULES,
        caveats=_CAVEATS,
    )

    def scores(self, masks: Sequence[NamedMask]) -> dict[str, np.ndarray]:
        pairs = [(mask.name, mask.truth) for mask in masks]
        ruled = [(osprey_prediction(name), osprey_class(truth)) for name, truth in pairs]
        return {
            "similarity": similarities(ruled),
            "iou": np.array([osprey_iou(*pair) for pair in ruled], float),
            "own_similarity": similarities(pairs),
            "own_iou": np.array([semantic_iou(*pair) for pair in pairs], float),
        }


class OspreyPaco(OspreyLvis):
    """The classes of objects and parts of 1,000 images of PACO."""

    name = "osprey_paco"
    file = "paco_val_1k_category.json"
    card: ClassVar = BenchCard(
        title="Osprey PACO",
        question="What is the class of the object or part in the mask?",
        source=_SOURCE,
        data="As Osprey LVIS, with the images of PACO. The class of a part has the form `object:part`",
        size="1,000 images, 4,263 masks",
        rules=_RULES,
        caveats=_CAVEATS,
    )
