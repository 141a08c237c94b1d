"""The `segmentation` field in the spellings of tools: all of one mask, and what is none is named by its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from osm.errors import SampleError
from osm.io.segmentation import decode_segmentation, read_segmentation

HEIGHT, WIDTH = 12, 20
SIZE = (HEIGHT, WIDTH)
FLAT = [3, 2, 11, 2, 11, 9, 3, 9]
POINTS = [[3, 2], [11, 2], [11, 9], [3, 9]]


def square() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[2:9, 3:11] = True
    return mask


def runs() -> list[int]:
    flat = square().T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return np.diff(edges).tolist()


def compressed() -> str:
    text: str = coco_mask.encode(np.asfortranarray(square().astype(np.uint8)))["counts"].decode()
    return text


SPELLINGS: dict[str, Any] = {
    "polygons": lambda: [FLAT],
    "a flat polygon": lambda: FLAT,
    "coordinates as texts": lambda: [[str(value) for value in FLAT]],
    "a flat polygon of texts": lambda: [f" {value}.0 " for value in FLAT],
    "points": lambda: POINTS,
    "polygons of points": lambda: [POINTS],
    "tuples": lambda: (tuple(FLAT),),
    "an array": lambda: np.array([FLAT]),
    "runs": lambda: {"size": [HEIGHT, WIDTH], "counts": runs()},
    "runs as texts": lambda: {"size": [HEIGHT, WIDTH], "counts": list(map(str, runs()))},
    "runs as floats": lambda: {"size": [float(HEIGHT), float(WIDTH)], "counts": list(map(float, runs()))},
    "runs without the last zeros": lambda: {"size": [HEIGHT, WIDTH], "counts": runs()[:-1]},
    "an array of runs": lambda: {"size": np.array(SIZE), "counts": np.array(runs())},
    "compressed": lambda: {"size": [HEIGHT, WIDTH], "counts": compressed()},
    "bytes": lambda: {"size": SIZE, "counts": compressed().encode()},
    "bytes as a text": lambda: {"size": ["12", "20"], "counts": str(compressed().encode())},
    "in a list": lambda: [{"size": [HEIGHT, WIDTH], "counts": compressed()}],
    "several in a list": lambda: [
        {"size": [HEIGHT, WIDTH], "counts": runs()},
        {"size": [HEIGHT, WIDTH], "counts": compressed()},
    ],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_mask(spelling: str) -> None:
    value = SPELLINGS[spelling]()
    np.testing.assert_array_equal(decode_segmentation(value, SIZE, "here"), square())
    standard = read_segmentation(value, SIZE, "here").value
    again = read_segmentation(standard, SIZE, "here")
    assert again.value is standard and not again.unusable, "what was read is in the standard form"


@pytest.mark.parametrize("spelling", ["polygons", "runs", "compressed"])
def test_the_standard_form_is_passed_on_as_it_is(spelling: str) -> None:
    value = SPELLINGS[spelling]()
    assert read_segmentation(value, SIZE, "here").value is value


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ([1, 1, 2, 2], "polygon_too_short"),
        ([1, 1, 2, 2, 3], "polygon_too_short"),
        ([1, 1, 2, float("nan"), 3, 3], "polygon_not_numbers"),
        ([1, 1, 2, True, 3, 3], "polygon_not_numbers"),
        ([0, 0, 0, 5000, 9, 9], "polygon_outside"),
        ([], "polygon_too_short"),
    ],
)
def test_a_bad_polygon_costs_itself_alone(other: list[Any], reason: str) -> None:
    read = read_segmentation([FLAT, other], SIZE, "annotation 7")
    assert read.value == [FLAT]
    assert [fault for fault, _ in read.unusable] == [reason]
    assert read.unusable[0][1].startswith("annotation 7: polygon ")
    if other:
        with pytest.raises(SampleError) as caught:
            read_segmentation([other], SIZE, "annotation 7")
        assert caught.value.reason == reason


@pytest.mark.parametrize("nothing", [None, [], [[]], [[], []], {}, ()])
def test_nothing_is_no_mask(nothing: Any) -> None:
    with pytest.raises(SampleError, match="has no mask") as caught:
        read_segmentation(nothing, SIZE, "here")
    assert caught.value.reason == "annotation_without_mask"


@pytest.mark.parametrize(
    ("counts", "size", "reason"),
    [
        (lambda: [*runs()[:-1], runs()[-1] - 1], SIZE, "rle_malformed"),  # the last run is of zeros, and short
        (lambda: [*runs(), 5], SIZE, "rle_malformed"),
        (lambda: ["many"], SIZE, "rle_malformed"),
        (lambda: "b'never closed", SIZE, "rle_malformed"),
        (lambda: runs(), (WIDTH, HEIGHT), "rle_size"),
        (lambda: runs(), (HEIGHT,), "rle_malformed"),
    ],
)
def test_a_bad_rle_has_its_reason(counts: Any, size: tuple[int, ...], reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        read_segmentation({"size": list(size), "counts": counts()}, SIZE, "here")
    assert caught.value.reason == reason
