"""The candidates of several merge trees: no near-duplicates, the right scale for a click, votes for a box."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_namer import built  # noqa: F401  (a fixture)

from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters.candidates import Candidates, gather_candidates
from osm.recognition.segmenters.embedded import EmbeddedSegmenter
from osm.recognition.segmenters.tree import merged, neighbours


def noisy_candidates(seed: int = 0) -> tuple[Candidates, np.ndarray]:
    """The candidates of three trees of one picture, and its superpixels."""
    random = np.random.default_rng(seed)
    labels = np.kron(np.arange(30).reshape(5, 6), np.ones((4, 3), int))
    areas = np.bincount(labels.ravel()).astype(float)
    trees = [merged(random.normal(size=(30, 3)), areas, neighbours(labels)) for _ in range(3)]
    return gather_candidates(trees, labels), labels


def test_each_set_of_superpixels_is_there_once() -> None:
    found, labels = noisy_candidates()
    rows = {row.tobytes() for row in found.members}
    assert len(rows) == len(found.members) > 59  # more than one tree has
    for members, area, box in zip(found.members, found.areas, found.boxes, strict=True):
        mask = members[labels]
        ys, xs = np.nonzero(mask)
        assert area == mask.sum() and box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert found.persistence.max() == 1.0 and found.persistence.min() >= 0


@pytest.mark.parametrize("max_iou", [0.3, 0.7])
def test_near_duplicates_are_left_out(max_iou: float) -> None:
    """As by comparing all masks with each other."""
    found, labels = noisy_candidates()
    masks = found.members[:, labels]

    def iou(one: int, other: int) -> float:
        return float((masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum())

    expected: list[int] = []
    for k in np.argsort(-found.persistence, kind="stable"):
        large = found.areas[k] >= 20 and found.persistence[k] > 0
        if large and len(expected) < 15 and all(iou(int(k), other) <= max_iou for other in expected):
            expected.append(int(k))
    assert found.distinct(15, 20, max_iou) == expected and len(expected) > 3


def test_candidates_of_points_and_boxes() -> None:
    found, labels = noisy_candidates()
    fitting = found.with_superpixels([3, 4], [20])
    assert len(fitting) and all(found.members[k][[3, 4]].all() and not found.members[k][20] for k in fitting)
    ious = found.box_ious((3, 4, 9, 12))
    inside = np.zeros(labels.shape, bool)
    inside[4:12, 3:9] = True
    for (left, top, right, bottom), value in zip(found.boxes.astype(int), ious, strict=True):
        other = np.zeros_like(inside)
        other[top:bottom, left:right] = True
        assert value == pytest.approx((inside & other).sum() / (inside | other).sum())


def rings() -> Image.Image:
    """A large red disc on gray, with small white stripes in its middle."""
    y, x = np.mgrid[:240, :240]
    pixels = np.full((240, 240, 3), 120, np.uint8)
    pixels[(y - 120) ** 2 + (x - 120) ** 2 < 80**2] = (200, 40, 40)
    pixels[116:124, 100:140] = 250
    return Image.fromarray(pixels)


def test_a_click_gets_a_plausible_scale(built: Any) -> None:  # noqa: F811
    """In the middle of a part, it is the part; in the middle of the rest, it is more than one superpixel."""
    segmenter = EmbeddedSegmenter(Recognizer(*built))
    segmenter.set_image(rings())
    disc = (np.mgrid[:240, :240][0] - 120) ** 2 + (np.mgrid[:240, :240][1] - 120) ** 2 < 80**2
    part = segmenter.at_points([(120, 165)]).mask
    assert (part & disc).sum() > 0.9 * part.sum() and part.sum() > 0.8 * disc.sum()
    without = segmenter.at_points([(120, 165), (120, 10)], [True, False]).mask
    assert without[165, 120] and not without[10, 120]
    box = segmenter.in_box([40, 40, 160, 160]).mask
    assert (box & disc).sum() / (box | disc).sum() > 0.9


def test_the_tower_runs_once_for_segmenting_and_naming(built: Any) -> None:  # noqa: F811
    recognizer = Recognizer(*built)
    alone = Recognizer(*built)
    segmenter = EmbeddedSegmenter(recognizer)
    runs = []
    plain = recognizer.encoder.tower_tokens
    recognizer.encoder.tower_tokens = lambda *arguments: runs.append(1) or plain(*arguments)  # type: ignore[method-assign]
    mask = np.zeros((240, 240), bool)
    mask[40:200, 40:200] = True
    for first in (True, False):  # in either order
        image = rings() if first else rings().transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90)
        steps = [lambda image=image: segmenter.set_image(image), lambda image=image: recognizer.set_image(image)]
        for step in steps if first else steps[::-1]:
            step()
        assert sum(runs) == (1 if first else 2)
        alone.set_image(image)
        assert recognizer.name([mask]) == alone.name([mask])
    # An image that the caller changes is another image.
    changed = np.asarray(rings()).copy()
    changed[0, 0] = 0
    recognizer.set_image(Image.fromarray(changed))
    assert sum(runs) == 3


def test_images_are_encoded_as_if_alone(built: Any) -> None:  # noqa: F811
    """However many the encoder takes together: the CPU's way is the other one's."""
    recognizer = Recognizer(*built)
    images = [rings(), rings().resize((100, 240)), rings().rotate(45)]
    together = recognizer.encoder._encode_together(images)
    for one, other in zip(recognizer.encoder.encode(images), together, strict=True):
        assert one.size == other.size
        for part, same in zip(one.state, other.state, strict=True):
            for tensor, equal in zip(part or (), same or (), strict=True):
                assert torch.allclose(tensor, equal, atol=1e-5)
