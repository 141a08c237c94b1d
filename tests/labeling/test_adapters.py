"""What other libraries get: supervision itself, autodistill's interface, and stand-ins of FiftyOne's samples."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.errors import OsmError
from osm.labeling.adapters import AutodistillModel, label_fiftyone, to_detections
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer, load_recognizer
from osm.recognition.segmenters.base import ScoredMask, Segmenter

supervision = pytest.importorskip("supervision")
SIZE = (64, 48)


def masks() -> np.ndarray:
    found = np.zeros((3, *SIZE[::-1]), bool)
    for k in range(3):
        found[k, 5 + k : 20 + k, 10 * k : 10 * k + 12] = True
    return found


ANSWERS = [
    Recognition("any", "cup", 0.5),
    Recognition("any", skipped="no pixel"),
    Recognition("any", "jar", 0.25, calibrated_prob=0.75),
]


def test_detections_of_masks_and_boxes() -> None:
    found = to_detections(ANSWERS, masks())
    assert found.xyxy.tolist() == [[0, 5, 11, 19], [20, 7, 31, 21]] and found.class_id.tolist() == [0, 1]
    assert found.confidence.tolist() == [0.5, 0.75] and found["class_name"].tolist() == ["cup", "jar"]
    assert np.array_equal(found.mask, masks()[[0, 2]])
    boxed = to_detections(ANSWERS, boxes=[[1, 2, 3, 4]] * 3, classes=["jar", "cup"])
    assert boxed.xyxy.tolist() == [[1, 2, 4, 6]] * 2 and boxed.class_id.tolist() == [1, 0] and boxed.mask is None
    assert len(to_detections(ANSWERS[1:2], masks()[:1])) == 0
    with pytest.raises(OsmError, match="3 recognitions, but 2 masks or boxes"):
        to_detections(ANSWERS, masks()[:2])
    with pytest.raises(OsmError, match="classes: has no 'jar'"):
        to_detections(ANSWERS, masks(), classes=["cup"])


class Blocks(Segmenter):
    """Three fixed segments."""

    name = "blocks"

    @classmethod
    def load(cls, checkpoint: Any, recognizer: Any, device: str, **options: Any) -> Blocks:
        return cls()

    def set_image(self, image: Image.Image) -> None:
        assert image.size == SIZE

    def everything(self) -> list[ScoredMask]:
        return [ScoredMask(mask, 1.0) for mask in masks()]

    def at_points(self, points: Any, inside: Any = None) -> ScoredMask:
        raise NotImplementedError

    def in_box(self, box: Any) -> ScoredMask:
        raise NotImplementedError


@pytest.fixture(scope="module")
def recognizer(checkpoint: Path) -> Recognizer:
    return load_recognizer(str(checkpoint), device="cpu", max_new_tokens=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_the_interface_of_autodistill(recognizer: Recognizer, photos: Path, tmp_path: Path) -> None:
    ontology = SimpleNamespace(promptMap=[("a cat", "cat"), ("a dog", "dog")])  # as autodistill's CaptionOntology
    model = AutodistillModel(ontology, recognizer, Blocks())
    found = model.predict(str(photos / "0.png"))
    assert len(found) == 3 and set(found["class_name"]) <= {"cat", "dog"}
    bgr = np.asarray(Image.open(photos / "0.png"))[..., ::-1]
    again = model.predict(bgr)
    assert again.confidence.tolist() == found.confidence.tolist()  # arrays are BGR
    dataset = model.label(str(photos), ".png", str(tmp_path / "out"))
    assert dataset.classes == ["cat", "dog"] and len(dataset) == 2
    for path, _, read in dataset:
        expected = model.predict(path)
        assert read.class_id.tolist() == expected.class_id.tolist()
        assert np.array_equal(read.mask, expected.mask)
    model.set_ontology(None)
    assert len(model.predict(str(photos / "0.png"))) == 3
    with pytest.raises(OsmError, match=r"ontology \[\]: expected a dict"):
        model.set_ontology([])
    with pytest.raises(OsmError, match=r"no file ends with '\.jpg'"):
        model.label(str(photos))


@dataclass
class Detection:
    """As `fiftyone.Detection`: the box is relative to the image, and the mask lies in the box."""

    bounding_box: list[float]
    mask: np.ndarray | None = None
    label: str = "old"
    confidence: float | None = None


@dataclass
class Detections:
    detections: list[Detection]

    def copy(self) -> Detections:
        return copy.deepcopy(self)


@dataclass
class Sample:
    filepath: str
    fields: dict[str, Any] = field(default_factory=dict)
    saved: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.fields[name] = value

    def save(self) -> None:
        self.saved += 1


def test_samples_of_fiftyone(recognizer: Recognizer, photos: Path) -> None:
    box = [10 / 64, 6 / 48, 12 / 64, 15 / 48]
    rows = [Detection(box, np.ones((15, 12), bool)), Detection(box)]
    sample, empty = Sample(str(photos / "0.png"), {"truth": Detections(rows)}), Sample("none", {"truth": None})
    assert label_fiftyone([sample, empty], recognizer, "truth", "named") == 2
    recognizer.set_image(photos / "0.png")
    [[by_mask]] = recognizer.name([masks()[1]])
    [[by_box]] = recognizer.name(boxes=[[10, 6, 12, 15]])
    named = sample["named"].detections
    assert [(one.label, one.confidence) for one in named] == [(one.text, one.prob) for one in (by_mask, by_box)]
    assert [one.label for one in rows] == ["old", "old"] and (sample.saved, empty.saved) == (1, 0)
