"""The recognition part of DLC-Bench: whether the name of a region is the name of its object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from osm.errors import OsmError
from osm.evaluation.bench.benchmark import BenchCard
from osm.evaluation.bench.naming_bench import NamedMask, NamingBench
from osm.evaluation.bench.osprey import similarities
from osm.evaluation.metrics.published import head_is_correct, is_correct
from osm.evaluation.metrics.semantic import semantic_iou
from osm.files import read_json

CLASS_NAMES = "class_names.json"


class DlcNames(NamingBench):
    """The names of the regions of DLC-Bench."""

    name = "dlc_names"
    form = "coco"
    file = "annotations.json"
    titles: ClassVar = {"acc": "Acc", "head": "last word right", "similarity": "semantic similarity", "iou": "S-IoU"}
    card: ClassVar = BenchCard(
        title="DLC-Bench, names",
        question="What is the object in the mask?",
        source="Lian et al., Describe Anything: Detailed Localized Image and Video Captioning, 2025 (arXiv 2504.16072)",
        data="`annotations.json` (COCO) and `class_names.json` {annotation id: name}, and the images "
        "(`nvidia/DLC-Bench` on the Hugging Face Hub)",
        size="77 images, 100 masks",
        rules="Acc, last word right, semantic similarity and S-IoU as in [evaluation](evaluation.md)",
        caveats="DLC-Bench scores descriptions, with questions that a language model answers. Only its first question "
        "is about the name, so these values cannot be compared with published ones",
    )

    def truths(self, data: Path) -> Mapping[str, str]:
        file = self.masks_file(data).with_name(CLASS_NAMES)
        if not file.is_file():
            raise OsmError(f"--data {data}: has no file {CLASS_NAMES} beside {self.file}")
        found, _ = read_json(file, "--data")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise OsmError(f"--data {file}: expected an object {{annotation id: name}}")
        return found

    def scores(self, masks: Sequence[NamedMask]) -> dict[str, np.ndarray]:
        pairs = [(mask.name, mask.truth.lower()) for mask in masks]
        return {
            "acc": np.array([is_correct(name, [truth]) for name, truth in pairs], float),
            "head": np.array([head_is_correct(name, [truth]) for name, truth in pairs], float),
            "similarity": similarities(pairs),
            "iou": np.array([semantic_iou(*pair) for pair in pairs], float),
        }
