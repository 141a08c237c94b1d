"""Benchmarks of other projects that name masks: their files, their rules, and what they published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osm.registry import Registry

if TYPE_CHECKING:
    from osm.evaluation.bench.benchmark import Bench

_HERE = "osm.evaluation.bench"
BENCHES: Registry[type[Bench]] = Registry(
    "benchmark",
    "osm.benches",
    {
        "osprey_lvis": f"{_HERE}.osprey:OspreyLvis",
        "osprey_paco": f"{_HERE}.osprey:OspreyPaco",
        "dlc_names": f"{_HERE}.dlc:DlcNames",
        "vocabulary_free": f"{_HERE}.vocabulary_free:VocabularyFree",
        "true_masks_ade20k": f"{_HERE}.open_segmentation:TrueMasksAde20k",
        "true_masks_cityscapes": f"{_HERE}.open_segmentation:TrueMasksCityscapes",
        "true_masks_coco": f"{_HERE}.open_segmentation:TrueMasksCoco",
        "class_scores_coco": f"{_HERE}.class_scores:ClassScoresCoco",
        "class_scores_coco_boxes": f"{_HERE}.class_scores:ClassScoresCocoBoxes",
        "class_scores_lvis": f"{_HERE}.class_scores:ClassScoresLvis",
        "class_scores_lvis_boxes": f"{_HERE}.class_scores:ClassScoresLvisBoxes",
    },
    f"{_HERE}.benchmark:Bench",
)
