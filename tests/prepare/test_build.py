"""The keys of samples: short names where they tell, and never the same key twice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from osm.data.shard_writer import MAX_NAME_BYTES
from osm.forms.base import Entry
from osm.prepare.build import keyed

ROOT = Path("/set")


def entry(name: str, image_id: Any = 0) -> Entry:
    return Entry(ROOT / name, {}, {"file_name": name, "image_id": image_id})


def keys(*entries: Entry) -> list[str]:
    """The keys, in the order of the entries."""
    found = {id(one): key for key, one in keyed(entries, ROOT)}
    assert len(set(found.values())) == len(entries)
    return [found[id(one)] for one in entries]


def test_a_key_is_the_name() -> None:
    assert keys(entry("a/x.1.jpg"), entry("b/y.jpg"), entry("z.png")) == ["x_1", "y", "z"]


def test_names_that_clash_are_told_apart_by_their_paths() -> None:
    assert keys(entry("a/x.jpg"), entry("b/x.jpg"), entry("y.jpg")) == ["a_x", "b_x", "y"]
    assert keys(entry("x.jpg"), entry("b/x.jpg")) == ["x", "b_x"] or keys(entry("x.jpg"), entry("b/x.jpg")) == [
        "x_0",
        "b_x",
    ]
    assert keys(entry("x.jpg", 1), entry("x.png", 2)) == ["x_1", "x_2"]


def test_one_file_of_two_images() -> None:
    assert keys(entry("x.jpg", 7), entry("x.jpg", "nine/9"), entry("y.jpg", 1)) == ["x_7", "x_nine_9", "y"]


def test_a_path_may_spell_anothers_name() -> None:
    found = keys(entry("a/x.jpg", 1), entry("b/x.jpg", 2), entry("a_x.jpg", 3), entry("a.x.jpg", 4))
    assert len(set(found)) == 4


def test_long_names_are_cut_and_stay_apart() -> None:
    found = keys(*(entry("ü" * 80 + f"{number}.jpg") for number in range(3)))
    assert all(len(f"{key}.whole.png".encode()) <= MAX_NAME_BYTES for key in found)


def test_two_entries_that_say_the_same_are_two_samples() -> None:
    assert len(set(keys(entry("x.jpg", 1), entry("x.jpg", 1)))) == 2


@pytest.mark.parametrize("seed", range(5))
def test_keys_do_not_depend_on_the_order(seed: int) -> None:
    names = ["a/x.jpg", "b/x.jpg", "a_x.jpg", "y.jpg", "c/y.png", "long" * 40 + ".jpg"]
    entries = [entry(name, number) for number, name in enumerate(names)]
    expected = dict(zip(names, keys(*entries), strict=True))
    random.Random(seed).shuffle(entries)
    found = dict(zip((one.record["file_name"] for one in entries), keys(*entries), strict=True))
    assert found == expected
    order = [key for key, _ in keyed(entries, ROOT)]
    assert order == [key for key, _ in keyed(entries[::-1], ROOT)]
