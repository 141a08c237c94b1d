"""Labels: in the picture, readable, and clear of each other."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from osm.recognition.draw import PALETTE, _common, _place, _shortened, _unlike_their_neighbours, draw_ids, draw_names


@pytest.mark.parametrize("at", [(0, 0), (199, 0), (0, 149), (199, 149), (100, 75)])
def test_labels_stay_in_the_picture_and_apart(at: tuple[int, int]) -> None:
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(12):
        _place(*at, 40, 14, (200, 150), taken)
    for k, box in enumerate(taken):
        assert box[0] >= 0 and box[1] >= 0 and box[2] < 200 and box[3] < 150
        assert not any(_common(box, other) for other in taken[:k])
    assert abs((taken[0][0] + taken[0][2]) / 2 - at[0]) <= 21


def test_where_there_is_no_room_labels_stay_inside_all_the_same() -> None:
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(30):
        _place(20, 10, 30, 14, (40, 20), taken)
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] < 40 and box[3] < 20 for box in taken)


def test_a_long_name_is_cut_and_says_so() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(12)
    short = _shortened(draw, font, "a very long\nname of a thing" * 5, 100)
    assert short.endswith("...") and draw.textlength(short, font=font) <= 100 and "\n" not in short
    assert _shortened(draw, font, "cat", 100) == "cat"


def test_touching_segments_have_different_colours() -> None:
    ids = np.arange(1, 401, dtype=np.int32).reshape(20, 20).repeat(8, 0).repeat(8, 1)
    chosen = _unlike_their_neighbours(ids, 400, list(range(400)))
    colours = np.append(-1, chosen)[ids[4::8, 4::8]]
    assert (colours[:, 1:] != colours[:, :-1]).all() and (colours[1:] != colours[:-1]).all()
    assert len(set(chosen.tolist())) == len(PALETTE)


def test_pictures_of_maps() -> None:
    image = Image.new("RGB", (90, 60), (128, 128, 128))
    ids = np.zeros((60, 90), np.int32)
    ids[10:50, 5:40], ids[20:40, 50:85] = 1, 300
    names = [""] * 300
    names[0], names[299] = "a cat", "a dog"
    drawn = np.asarray(draw_ids(image, ids, names, alpha=1.0))
    assert (drawn[:5] == 128).all()  # nobody's pixels are as they were
    assert {tuple(p) for p in drawn[12:15, 7:39].reshape(-1, 3).tolist()} == {PALETTE[0]}
    assert (np.asarray(draw_ids(image, np.zeros((60, 90), np.int32), [])) == 128).all()
    assert draw_names(image, np.zeros((0, 60, 90), bool), []).size == image.size
