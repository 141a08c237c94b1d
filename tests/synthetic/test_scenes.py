"""Drawn scenes: their words, which pairs are held out, and what can be seen in a scene."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from osm.errors import OsmError
from osm.synthetic.scenes import compose
from osm.synthetic.scenes.compose import DRAW, DrawnScene, draw_scene
from osm.synthetic.scenes.pen import BODY, HOLE, Pen
from osm.synthetic.scenes.scene_names import (
    ALL_PAIRS,
    ATTRIBUTES,
    BACKDROPS,
    COLOURS,
    FINE,
    GROUNDS,
    PATTERNS,
    PLAIN,
    STUFF,
    THINGS,
    Pair,
    categories,
    category_ids,
    choose_pairs,
    held_out_pairs,
    name_in,
)

SEEDS = (0, 1, 2, 17, 12345)


# -- words -------------------------------------------------------------------------------------------------------------


def test_there_are_enough_words() -> None:
    assert len(THINGS) >= 40 and len(STUFF) == 8 and len(COLOURS) == 10 and len(PATTERNS) == 6
    assert len(set(ATTRIBUTES)) == 16 and not set(ATTRIBUTES) & {*THINGS, *THINGS.values(), *STUFF, *STUFF.values()}
    assert len(ALL_PAIRS) == len(set(ALL_PAIRS)) == 16 * len(THINGS)
    assert not set(BACKDROPS) & set(GROUNDS) and set(DRAW) == set(THINGS)


def test_the_plain_set_has_some_words_of_its_own() -> None:
    """And none of them means another thing, or the sets would contradict each other."""
    other = {thing: word for thing, word in {**THINGS, **STUFF}.items() if thing != word}
    assert len(other) >= 10
    assert not set(other.values()) & {*THINGS, *STUFF}
    plain = [*THINGS.values(), *STUFF.values()]
    assert len(plain) == len(set(plain))
    assert (name_in(FINE, Pair("striped", "sofa")), name_in(PLAIN, Pair("striped", "sofa"))) == (
        "striped sofa",
        "couch",
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tenth_of_the_pairs_is_held_out_and_every_word_keeps_most_of_its_own(seed: int) -> None:
    held_out = held_out_pairs(seed)
    assert held_out <= set(ALL_PAIRS)
    assert 0.09 <= len(held_out) / len(ALL_PAIRS) <= 0.11
    things, attributes = Counter(p.thing for p in held_out), Counter(p.attribute for p in held_out)
    assert max(things.values()) <= 0.2 * len(ATTRIBUTES)
    assert max(attributes.values()) <= 0.2 * len(THINGS)


def test_the_seed_decides_which_pairs_are_held_out() -> None:
    sets = [held_out_pairs(seed) for seed in SEEDS]
    held_out_pairs.cache_clear()
    assert [held_out_pairs(seed) for seed in SEEDS] == sets
    assert len(set(sets)) == len(SEEDS)
    assert held_out_pairs() == sets[0]


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_seen_and_held_out_pairs_are_all(seed: int) -> None:
    seen, held_out, everything = (choose_pairs(pairing, seed) for pairing in ("seen", "held_out", "all"))
    assert set(held_out) == held_out_pairs(seed) and not set(seen) & set(held_out)
    assert sorted(map(str, seen + held_out)) == sorted(map(str, everything))
    assert set(everything) == set(ALL_PAIRS)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(OsmError, match="--pairs 'unseen' is not one of seen, held_out, all"):
        choose_pairs("unseen")
    with pytest.raises(OsmError, match="--sets 'coco' is not one of scenes_fine, scenes_plain"):
        category_ids("coco")


@pytest.mark.parametrize("set_name", [FINE, PLAIN])
def test_categories_of_a_set(set_name: str) -> None:
    rows = categories(set_name)
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == (len(ALL_PAIRS) if set_name == FINE else len(THINGS)) + len(STUFF)
    assert [row["isthing"] for row in rows] == [1] * (len(rows) - 8) + [0] * 8


# -- scenes ------------------------------------------------------------------------------------------------------------


def check_form(scene: DrawnScene, size: int) -> None:
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert scene.ids.shape == (size, size) and scene.ids.dtype == np.int32
    assert set(np.unique(scene.ids).tolist()) <= set(scene.segments)
    assert scene.segments and max(scene.segments) <= 12  # pre-training counts on it
    assert all(what in STUFF if isinstance(what, str) else what in ALL_PAIRS for what in scene.segments.values())
    assert scene.image.std() > 5  # something is to be seen


@pytest.mark.parametrize("size", [64, 256, 301])
def test_a_scene_has_the_size_asked_for(size: int) -> None:
    for index in range(2):
        check_form(draw_scene(size, choose_pairs("all"), 4, index), size)


@pytest.mark.slow
def test_a_large_scene() -> None:
    check_form(draw_scene(1120, choose_pairs("all"), 4, 0), 1120)


def test_seed_and_index_decide_a_scene() -> None:
    pairs = choose_pairs("seen")
    scene, same = draw_scene(64, pairs, 5, 1), draw_scene(64, pairs, 5, 1)
    assert scene.image.tobytes() == same.image.tobytes() and scene.ids.tobytes() == same.ids.tobytes()
    assert scene.segments == same.segments
    for seed, index in ((5, 2), (6, 1), (1, 5)):
        other = draw_scene(64, pairs, seed, index)
        assert (other.image != scene.image).mean() > 0.5 and (other.ids != scene.ids).any()


class Watched:
    """A scene, and the full outlines of its things in the picture (S, S), hidden parts included."""

    def __init__(self, scene: DrawnScene, outlines: dict[int, np.ndarray]) -> None:
        self.scene, self.outlines = scene, outlines

    def shares(self) -> list[float]:
        """How much of each thing can be seen."""
        return [float((self.scene.ids == n).sum() / full.sum()) for n, full in self.outlines.items()]

    def longest_sides(self) -> list[int]:
        return [max(int(np.ptp(axis)) + 1 for axis in np.nonzero(full)) for full in self.outlines.values()]


def watched(monkeypatch: pytest.MonkeyPatch, size: int, pairs: Sequence[Pair], indices: range) -> list[Watched]:
    put: Callable[..., None] = compose._put
    outlines: dict[int, np.ndarray] = {}

    def watch(canvas: np.ndarray, ids: np.ndarray, thing: Any, place: tuple[int, int], number: int) -> None:
        full = np.zeros(ids.shape, bool)
        full[place[0] : place[0] + thing.mask.shape[0], place[1] : place[1] + thing.mask.shape[1]] = thing.mask
        outlines[number] = full[1::2, 1::2]  # the canvas is twice as large as the picture
        put(canvas, ids, thing, place, number)

    monkeypatch.setattr(compose, "_put", watch)
    found = []
    for index in indices:
        outlines.clear()
        scene = draw_scene(size, pairs, 8, index)
        found.append(Watched(scene, dict(outlines)))
    return found


def check_things(scenes: list[Watched], size: int, pairs: Sequence[Pair]) -> None:
    shares = [share for scene in scenes for share in scene.shares()]
    assert min(shares) >= 0.29  # of 0.3; counted on every second pixel of the canvas
    assert sum(share < 0.9 for share in shares) > len(scenes) / 4  # things do stand before each other
    sides = [side for scene in scenes for side in scene.longest_sides()]
    assert min(sides) >= 40 * size // 256 and max(sides) > 80 * size / 256
    for scene in scenes:
        things = {n for n, what in scene.scene.segments.items() if isinstance(what, Pair)}
        assert things == set(scene.outlines) and {scene.scene.segments[n] for n in things} <= set(pairs)
        for number, full in scene.outlines.items():
            assert not ((scene.scene.ids == number) & ~full).any()
    counts = [len(scene.outlines) for scene in scenes]
    assert min(counts) >= 2 and max(counts) <= 7 and len(set(counts)) >= 3


def test_things_are_large_enough_and_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = choose_pairs("held_out")
    check_things(watched(monkeypatch, 128, pairs, range(24)), 128, pairs)


@pytest.mark.slow
def test_things_are_large_enough_and_can_be_seen_at_the_usual_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = choose_pairs("seen")
    check_things(watched(monkeypatch, 256, pairs, range(60)), 256, pairs)


def test_stuff_lies_behind_and_below() -> None:
    for index in range(8):
        scene = draw_scene(64, choose_pairs("seen"), 9, index)
        stuff = [what for what in scene.segments.values() if isinstance(what, str)]
        assert 2 <= len(stuff) == len(set(stuff)) <= 3
        assert stuff[-1] in GROUNDS and set(stuff[:-1]) <= set(BACKDROPS)
        ground = np.nonzero(scene.ids == len(stuff))[0]
        backdrop = np.nonzero((scene.ids > 0) & (scene.ids < len(stuff)))[0]
        assert ground.mean() > backdrop.mean()


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_colour_is_that_colour(colour: str, channel: int) -> None:
    pairs = [pair for pair in ALL_PAIRS if pair.attribute == colour]
    pixels = []
    for index in range(6):
        scene = draw_scene(64, pairs, 10, index)
        things = [n for n, what in scene.segments.items() if isinstance(what, Pair)]
        pixels.append(scene.image[np.isin(scene.ids, things)])
    mean = np.concatenate(pixels).mean(0)
    assert mean[channel] > max(np.delete(mean, channel)) + 25


# -- outlines ----------------------------------------------------------------------------------------------------------


def outline(thing: str, side: int = 64) -> tuple[np.ndarray, float]:
    """A thing's mask, as large as it fits into a square, and how much of it takes the thing's attribute."""
    pen = Pen(np.random.default_rng(0))
    DRAW[thing](pen)
    points = np.concatenate([part.points for part in pen.parts if part.role != HOLE])
    low, scale = points.min(0), (side - 1) / np.ptp(points, 0).max()
    drawing = Image.new("L", (side, side))
    for part in pen.parts:
        fill = 0 if part.role == HOLE else 1 + (part.role == BODY)
        ImageDraw.Draw(drawing).polygon(list(map(tuple, (part.points - low) * scale)), fill=fill)
    parts = np.asarray(drawing)
    return parts > 0, float((parts == 2).sum() / (parts > 0).sum())


def test_different_things_have_different_outlines() -> None:
    masks = {thing: outline(thing)[0] for thing in THINGS}
    for one, other in itertools.combinations(THINGS, 2):
        both, either = (masks[one] & masks[other]).sum(), (masks[one] | masks[other]).sum()
        assert both / either < 0.9, (one, other)


@pytest.mark.parametrize("thing", THINGS)
def test_enough_of_a_thing_takes_its_attribute(thing: str) -> None:
    mask, share = outline(thing)
    assert mask.mean() > 0.15 and share > 0.4
