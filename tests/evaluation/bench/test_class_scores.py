"""AP of class scores for true boxes and masks: hand-worked cases, and whole runs on small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_layout import CAT, PERSON, write_coco

from osm.datasets.table import Dataset
from osm.evaluation.bench.bench_cli import main
from osm.evaluation.bench.class_scores import ClassScoresCoco
from osm.evaluation.bench.true_masks import NamedTruth, TrueImage, TrueMask
from osm.evaluation.scoring.mask_precision import Federated
from osm.evaluation.scoring.truth import InstancesTruth
from osm.io.segmentation import encode_rle

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")


def truth(tops: list[tuple[int, tuple[tuple[int, float], ...]]], federated: Federated | None = None) -> NamedTruth:
    """A square mask per image, with its class and its class scores."""
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    split = InstancesTruth.__new__(InstancesTruth)
    split.things, split.federated = frozenset({1, 2}), federated is not None
    masks = [TrueMask(k, class_id, encode_rle(mask), 100, "", 0.0, top) for k, (class_id, top) in enumerate(tops)]
    images = [TrueImage((20, 20), (), federated) for _ in tops]
    return NamedTruth(Dataset("two", "coco_instances", "Two"), split, images, masks)


def test_average_precision_by_hand() -> None:
    # Class 1: the mask of class 2 comes first, with 0.95: half of the detections are right at every recall. Class 2:
    # the mask of class 1 comes first, with 0.1.
    wrong = truth([(1, ((1, 0.9), (2, 0.1))), (2, ((1, 0.95), (2, 0.05)))])
    rates = ClassScoresCoco().rates(wrong)
    assert rates["ap"].value == pytest.approx(0.5, abs=1e-6)
    assert (rates["top1"].value, rates["top5"].value) == (0.5, 1.0)
    right = ClassScoresCoco().rates(truth([(1, ((1, 0.9), (2, 0.1))), (2, ((2, 0.8), (1, 0.2)))]))
    assert (right["ap"].value, right["top1"].value) == (pytest.approx(1), 1.0)


def test_lvis_does_not_count_a_class_where_it_was_not_checked() -> None:
    scores = [(1, ((1, 0.9), (2, 0.1))), (2, ((1, 0.95), (2, 0.05)))]
    assert ClassScoresCoco().rates(truth(scores, Federated()))["ap"].value == pytest.approx(1)
    # If both classes are known to be absent elsewhere, the wrong detections count as with COCO.
    assert ClassScoresCoco().rates(truth(scores, Federated((1, 2))))["ap"].value == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("name", ["class_scores_coco", "class_scores_coco_boxes"])
def test_a_whole_run_on_cocos_layout(name: str, tmp_path: Path, checkpoint: Path) -> None:
    data, out = write_coco(tmp_path / "coco"), tmp_path / "out"
    assert main([name, str(checkpoint), str(out), "--data", str(data), "--device", "cpu"]) == 0
    found = json.loads((out / "coco_proposals_0_of_1.json").read_text())
    for row in found:
        top = row["open_end_pred"]["any"]["top"]
        assert sorted(class_id for class_id, _ in top) == [PERSON, CAT]
        assert sum(prob for _, prob in top) == pytest.approx(1, abs=1e-5) and top[0][1] >= top[1][1]
    document = json.loads((out / "scores.json").read_text())
    assert (document["masks"], document["images"]) == (5, 3)
    best = [row["open_end_pred"]["any"]["top"][0][0] == row["category_id"] for row in found]
    assert document["rates"]["top1"]["value"] == pytest.approx(np.mean(best))
    assert document["rates"]["ap"]["value"] == pytest.approx(slow_precision(found), abs=1e-6)


def slow_precision(rows: list[dict]) -> float:
    """AP of masks that overlap with no other mask: interpolated precision at 101 recalls, one class after the other."""
    precisions = []
    for class_id in (PERSON, CAT):
        scored = [
            (dict(map(tuple, row["open_end_pred"]["any"]["top"]))[class_id], row["category_id"] == class_id)
            for row in rows
        ]
        hits = [hit for _, hit in sorted(scored, key=lambda one: -one[0])]
        total = sum(hits)
        curve = [(sum(hits[: k + 1]) / total, sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
        at = [max((p for r, p in curve if r >= recall - 1e-9), default=0) for recall in np.linspace(0, 1, 101)]
        precisions.append(np.mean(at))
    return float(np.mean(precisions))


def test_a_run_on_lviss_layout(tmp_path: Path, checkpoint: Path) -> None:
    data, out = write_coco(tmp_path / "lvis"), tmp_path / "out"
    document = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    for image in document["images"]:
        image |= {"coco_url": f"http://images.cocodataset.org/val2017/{image['file_name']}", "neg_category_ids": []}
        image["not_exhaustive_category_ids"] = []
    (data / "lvis_v1_val.json").write_text(json.dumps(document))
    words = ["class_scores_lvis", str(checkpoint), str(out), "--data", str(data), "--device", "cpu"]
    assert main(words) == 0
    found = json.loads((out / "lvis_proposals_0_of_1.json").read_text())
    assert all(len(row["open_end_pred"]["any"]["top"]) == 300 for row in found) and len(found) == 5
    assert json.loads((out / "scores.json").read_text())["masks"] == 5
