"""Names to classes, and mask AP, on cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from osm.datasets.labels import LabelSet
from osm.evaluation.scoring.class_names import ClassNames, Match
from osm.evaluation.scoring.mask_precision import Federated, MaskPrecision, mean_precision

LABELS = LabelSet.from_categories(
    [
        {"id": 7, "name": "Wolf", "synonyms": ["canine"]},
        {"id": 2, "name": "dog", "synonyms": ["canine", "wolve"]},
        {"id": 4, "name": "bus"},
        {"id": 3, "name": "unknown"},
    ],
    "test",
)


class ByLength:
    """The nearest name is the one of the most similar length, the first of equals."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def nearest(self, texts: Sequence[str], names: Sequence[str], count: int = 1) -> list[list[tuple[int, float]]]:
        self.asked += texts
        best = [min(range(len(names)), key=lambda k: abs(len(names[k]) - len(text))) for text in texts]
        return [[(k, 0.5)] for k in best]


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("wolf", 7),
        (" Dogs", 2),
        ("BUS", 4),
        ("buses", 4),
        ("wolves", 2),  # a plural of both: the class with the lower id
        ("wolve", 2),  # a name before all forms
        ("canine", 2),
        ("unknown", 3),
        ("teapot", None),
        ("", None),
    ],
)
def test_names_by_themselves(text: str, category_id: int | None) -> None:
    names = ClassNames(LABELS, {3})
    assert names.match([text]) == {text: Match(category_id, "without_class" if category_id is None else "exact")}
    assert names.shared == {"canine": [2, 7]}


def test_nearest_names() -> None:
    encoder = ByLength()
    found = ClassNames(LABELS, {3}, encoder).match(["cat", "Cat ", "a flower", "a plant", "dogs", "", "teapot", "cat"])
    # Names of the ignored class (7 letters) are not among the candidates; these are in order of id.
    assert found == {
        "cat": Match(2, "nearest"),
        "Cat ": Match(2, "nearest"),
        "a flower": Match(2, "nearest"),  # canine, which two classes have
        "a plant": Match(2, "nearest"),
        "teapot": Match(2, "nearest"),
        "dogs": Match(2, "exact"),
        "": Match(None, "without_class"),
    }
    assert encoder.asked == ["cat", "a flower", "a plant", "teapot"]  # each once, and none that is known
    assert ClassNames(LABELS, {2, 3}, ByLength()).match(["cat", "road"]) == {
        "cat": Match(4, "nearest"),
        "road": Match(7, "nearest"),
    }
    assert ClassNames(LABELS, {2, 3, 4, 7}, encoder).match(["cat"]) == {"cat": Match(None, "without_class")}


def test_nearest_in_meaning() -> None:
    pytest.importorskip("transformers")
    from osm.recognition.similarity import SentenceEncoder

    found = ClassNames(LABELS, (), SentenceEncoder()).match(["puppy", "coach for passengers", "timber wolf"])
    assert [match.category_id for match in found.values()] == [2, 4, 7]


def rows(*which: int) -> np.ndarray:
    """A mask of 10 x 10: whole rows."""
    mask = np.zeros((10, 10), bool)
    mask[list(which)] = True
    return mask


def ap(truth: list[Any], found: list[Any], federated: bool = False, about: Federated | None = None) -> dict[int, Any]:
    """Of one image; `truth`: (class, rows[, crowd]), `found`: (class, rows, score)."""
    precision = MaskPrecision(federated)
    precision.add_image((10, 10), about)
    for category_id, where, *crowd in truth:
        precision.add_truth(rows(*where), category_id, *crowd)
    for category_id, where, score in sorted(found, key=lambda entry: -entry[2]):
        precision.add_found(rows(*where), category_id, score)
    return precision.by_class()


def test_perfect_masks() -> None:
    truth = [(0, (1, 2)), (0, (4,)), (9, (5, 6, 7))]
    by_class = ap(truth, [(*entry, 0.1) for entry in truth])
    assert by_class == {0: (1, 1, 1), 9: (1, 1, 1)}
    assert mean_precision(by_class) == {"ap": 1, "ap50": 1, "ap75": 1, "classes": 2}


def test_a_mix() -> None:
    # Class 0: right, wrong, right: precision 1 at the 51 recalls to 0.50, 2/3 at the other 50.
    # Class 9: IoU 4/5, so right at 0.50 to 0.80, 7 of the 10 thresholds. Class 3: nothing found. Class 4: not there.
    truth = [(0, (0, 1)), (0, (5,)), (9, (2, 3, 4, 6, 7)), (3, (8,))]
    found = [(0, (0, 1), 0.9), (0, (9,), 0.8), (0, (5,), 0.7), (9, (2, 3, 4, 6), 0.5), (4, (8,), 1)]
    first = (51 + 50 * 2 / 3) / 101
    by_class = ap(truth, found)
    assert {i: pytest.approx(figures) for i, figures in by_class.items()} == {
        0: (first, first, first),
        9: (0.7, 1, 1),
        3: (0, 0, 0),
    }
    mean = mean_precision(by_class)
    assert mean["ap"] == pytest.approx((first + 0.7) / 3) and mean["classes"] == 3
    assert mean_precision(by_class, lambda i: i == 77) == {"ap": None, "ap50": None, "ap75": None, "classes": 0}


def test_crowd() -> None:
    """What lies on a crowd of its class is not wrong; a class with nothing but crowd is not averaged."""
    truth = [(1, (0,)), (1, (5, 6, 7), True), (2, (9,), True)]
    assert ap(truth, [(1, (0,), 0.5), (1, (5,), 0.9), (1, (6,), 0.8)]) == {1: (1, 1, 1)}
    assert ap(truth, [(1, (0,), 0.5), (1, (4,), 0.9)])[1] == pytest.approx((0.5, 0.5, 0.5))


def test_nothing_found_and_nothing_there() -> None:
    assert ap([(1, (0,))], []) == {1: (0, 0, 0)}
    assert ap([], [(1, (0,), 0.5)]) == {}
    assert MaskPrecision().by_class() == {}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (None, 1),  # nobody looked for the class there
        (Federated(absent=(2,)), 1),
        (Federated(absent=(1,)), 0.5),
    ],
)
def test_lvis_images_without_the_class(about: Federated | None, expected: float) -> None:
    precision = MaskPrecision(True)
    precision.add_image((10, 10))
    precision.add_truth(rows(0), 1)
    precision.add_found(rows(0), 1, 0.5)
    precision.add_image((10, 10), about)
    precision.add_found(rows(5), 1, 0.9)
    assert precision.by_class()[1] == pytest.approx((expected,) * 3)


def test_lvis_images_with_not_all_annotated() -> None:
    truth, found = [(1, (0,))], [(1, (0,), 0.5), (1, (5,), 0.9)]
    assert ap(truth, found, True, Federated(not_exhaustive=(1,))) == {1: (1, 1, 1)}
    assert ap(truth, found, True, Federated(not_exhaustive=(2,)))[1] == pytest.approx((0.5, 0.5, 0.5))


def test_the_best_masks_alone() -> None:
    """COCO: 100 of each class; LVIS: 300 of the image."""
    wrong = [(2, (9,), 0.9)] * 300
    truth, right = [(1, (0,)), (2, (1,))], (1, (0,), 0.5)
    assert ap(truth, [*wrong, right])[1] == (1, 1, 1)
    assert ap(truth, [*wrong, right], True)[1] == (0, 0, 0)
    assert ap(truth, [*wrong[:299], right], True)[1] == (1, 1, 1)
    assert ap(truth, [*[(1, (9,), 0.9)] * 100, right])[1] == (0, 0, 0)
    assert ap(truth, [*[(1, (9,), 0.9)] * 99, right])[1] == pytest.approx((0.01,) * 3)


def test_classes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = [(i, (i,)) for i in range(5)]
    found = [(i, (i,), 0.9 - i / 10) for i in range(3)]
    whole = ap(truth, found)
    monkeypatch.setattr("osm.evaluation.scoring.mask_precision._PAIRS_AT_ONCE", 2)
    assert ap(truth, found) == whole == {i: (float(i < 3),) * 3 for i in range(5)}


def test_against_pycocotools() -> None:
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    random = np.random.default_rng(3)
    precision = MaskPrecision()
    images, true, found = [], [], []
    for image_id in range(1, 9):
        precision.add_image((10, 10))
        images.append({"id": image_id, "height": 10, "width": 10})
        scores = sorted(random.random(12).tolist(), reverse=True)
        for k in range(5 + 12):
            mask = rows(*random.choice(10, random.integers(1, 4), replace=False))
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            category_id, crowd = int(random.integers(1, 4)), bool(random.random() < 0.2)
            entry = {"image_id": image_id, "category_id": category_id, "segmentation": rle}
            if k < 5:
                precision.add_truth(mask, category_id, crowd)
                true.append({**entry, "id": len(true) + 1, "iscrowd": int(crowd), "area": int(mask.sum())})
            else:
                precision.add_found(mask, category_id, scores[k - 5])
                found.append({**entry, "score": scores[k - 5]})
    truth = COCO()
    truth.dataset = {"info": {}, "images": images, "annotations": true, "categories": [{"id": i} for i in (1, 2, 3)]}
    truth.createIndex()
    theirs = COCOeval(truth, truth.loadRes(found), "segm")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    ours = mean_precision(precision.by_class())
    assert 0 < ours["ap"] < 0.9
    assert [ours["ap"], ours["ap50"], ours["ap75"]] == pytest.approx(theirs.stats[:3].tolist())
