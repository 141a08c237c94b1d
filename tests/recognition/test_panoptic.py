"""The merge of named masks, by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from osm.errors import OsmError
from osm.io.images import read_panoptic
from osm.recognition.panoptic import as_png, merge


def stripe(start: int, end: int, length: int = 1000) -> np.ndarray:
    mask = np.zeros((1, length), bool)
    mask[0, start:end] = True
    return mask


def test_the_surest_first() -> None:
    found = merge([stripe(0, 500), stripe(400, 600), stripe(550, 900)], [0.5, 0.9, 0.7])
    # 400-600 first; of 550-900 300 of 350 are free; of 0-500 400 of 500, which is 80 % exactly.
    assert found.segments == [1, 2, 0] and not found.dropped
    assert found.ids.dtype == np.int32
    for number, (start, end) in enumerate([(400, 600), (600, 900), (0, 400)], 1):
        assert (found.ids[0, start:end] == number).all()
    assert (found.ids[0, 900:] == 0).all()


def test_equals_stay_in_their_order() -> None:
    found = merge([stripe(0, 200), stripe(0, 200), stripe(100, 300)], [0.5, 0.5, 0.5])
    assert found.segments == [0] and found.dropped == {1: "under 100 pixels left", 2: "under 80% left"}


@pytest.mark.parametrize(("prob", "kept"), [(0.2, True), (0.1999, False), (float("nan"), False), (1.0, True)])
def test_the_bound_of_probability(prob: float, kept: bool) -> None:
    found = merge([stripe(0, 200)], [prob])
    assert bool(found.segments) == kept and bool(found.dropped) != kept


@pytest.mark.parametrize(("taken", "kept"), [(200, True), (201, False)])
def test_the_bound_of_what_is_free(taken: int, kept: bool) -> None:
    assert (1 in merge([stripe(0, taken), stripe(0, 1000)], [0.9, 0.8]).segments) == kept


@pytest.mark.parametrize(("area", "kept"), [(100, True), (99, False), (0, False)])
def test_the_bound_of_pixels(area: int, kept: bool) -> None:
    assert bool(merge([stripe(0, area)], [0.9]).segments) == kept


def test_a_share_that_rounds_up_is_met() -> None:
    """0.8 times an area may come out above the whole number that it is."""
    for area in range(500, 1000, 5):
        found = merge([stripe(0, area // 5), stripe(0, area)], [0.9, 0.8])
        assert found.segments == [0, 1], area


def test_more_segments_than_a_byte_holds() -> None:
    masks = [stripe(100 * k, 100 * k + 100, 70_000).reshape(250, 280) for k in range(700)]
    found = merge(masks, np.linspace(1, 0.5, 700).tolist())
    assert found.segments == list(range(700)) and found.ids.max() == 700
    file = io.BytesIO()
    as_png(found.ids).save(file, "PNG")
    assert (read_panoptic(file.getvalue()) == found.ids).all()
    assert np.asarray(as_png(np.array([[0, 255, 256, 65536 + 2 * 256 + 3]])))[0].tolist() == [
        [0, 0, 0],
        [255, 0, 0],
        [0, 1, 0],
        [3, 2, 1],
    ]


def test_what_is_refused() -> None:
    for masks, probs, message in [
        ([stripe(0, 1)], [], "1 masks, but 0 probabilities"),
        ([], [], "no masks"),
        ([stripe(0, 1), stripe(0, 1, 10)], [1, 1], "the same shape"),
    ]:
        with pytest.raises(OsmError, match=message):
            merge(masks, probs)
    for ids in ([[-1]], [[1 << 24]]):
        with pytest.raises(OsmError, match="fit in an RGB pixel"):
            as_png(np.array(ids))
    assert isinstance(as_png(np.zeros((2, 2), np.int32)), Image.Image)
