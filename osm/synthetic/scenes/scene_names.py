"""The words of the drawn scenes: things, attributes, stuff, how each set calls them, and the pairs that are held out.

A thing has one attribute (a colour or a pattern). The set `scenes_fine` names both ("striped kettle"), `scenes_plain`
the thing alone, some by another word ("couch" for "sofa"). Which attribute x thing pairs are held out follows from a
seed; no scene for training shows one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from osm.errors import OsmError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PATTERNS = ("striped", "dotted", "checkered", "zigzag", "rainbow", "marbled")
ATTRIBUTES = COLOURS + PATTERNS

# Thing -> its word in the plain set.
THINGS = {
    "kettle": "kettle",
    "mug": "cup",
    "vase": "vase",
    "lamp": "lamp",
    "chair": "chair",
    "sofa": "couch",
    "table": "table",
    "bed": "bed",
    "bottle": "bottle",
    "umbrella": "parasol",
    "key": "key",
    "guitar": "guitar",
    "drum": "drum",
    "bell": "bell",
    "hat": "hat",
    "shirt": "shirt",
    "shoe": "boot",
    "trousers": "pants",
    "crown": "crown",
    "cat": "cat",
    "fish": "fish",
    "butterfly": "butterfly",
    "snail": "snail",
    "turtle": "tortoise",
    "rabbit": "bunny",
    "elephant": "elephant",
    "duck": "duck",
    "whale": "whale",
    "robot": "robot",
    "car": "automobile",
    "bus": "bus",
    "boat": "ship",
    "airplane": "plane",
    "rocket": "rocket",
    "tree": "tree",
    "flower": "blossom",
    "cactus": "cactus",
    "mushroom": "toadstool",
    "banana": "banana",
    "carrot": "carrot",
    "pear": "pear",
    "house": "cottage",
    "windmill": "windmill",
    "castle": "castle",
    "tent": "tent",
    "kite": "kite",
    "star": "star",
    "heart": "heart",
    "anchor": "anchor",
}
# Stuff -> its word in the plain set. What stands behind, and what things stand on.
BACKDROPS = {"sky": "sky", "wall": "wall", "hedge": "bushes", "curtain": "curtain"}
GROUNDS = {"grass": "lawn", "sand": "sand", "water": "sea", "floor": "floor"}
STUFF = {**BACKDROPS, **GROUNDS}

FINE, PLAIN = "scenes_fine", "scenes_plain"
SETS = (FINE, PLAIN)
HELD_OUT_SEED = 0
HELD_OUT_SHARE = 0.1
PAIRINGS = ("seen", "held_out", "all")


@dataclass(frozen=True)
class Pair:
    """A thing with its attribute."""

    attribute: str
    thing: str

    def __str__(self) -> str:
        return f"{self.attribute} {self.thing}"


ALL_PAIRS = tuple(Pair(attribute, thing) for thing in THINGS for attribute in ATTRIBUTES)


@lru_cache
def held_out_pairs(seed: int = HELD_OUT_SEED) -> frozenset[Pair]:
    """A tenth of the pairs, so spread that every word keeps at least four fifths of its own.

    The shuffled things are dealt the attributes in turn, with a stride a round: no word is dealt more than its share.
    """
    rng = np.random.default_rng([seed, 0x5CE7E5])
    things, attributes = list(rng.permutation(list(THINGS))), list(rng.permutation(list(ATTRIBUTES)))
    count = round(HELD_OUT_SHARE * len(ALL_PAIRS))
    pairs = frozenset(
        Pair(str(attributes[(i + i // len(things)) % len(attributes)]), str(things[i % len(things)]))
        for i in range(count)
    )
    assert len(pairs) == count
    return pairs


def choose_pairs(pairing: str, seed: int = HELD_OUT_SEED) -> tuple[Pair, ...]:
    """The pairs that scenes may show: `seen` (all but the held-out ones), `held_out`, or `all`."""
    if pairing not in PAIRINGS:
        raise OsmError(f"--pairs {pairing!r} is not one of {', '.join(PAIRINGS)}")
    held_out = held_out_pairs(seed)
    return tuple(pair for pair in ALL_PAIRS if pairing == "all" or (pair in held_out) == (pairing == "held_out"))


def name_in(set_name: str, pair: Pair) -> str:
    """How a set calls a thing."""
    return str(pair) if set_name == FINE else THINGS[pair.thing]


def stuff_name_in(set_name: str, stuff: str) -> str:
    return stuff if set_name == FINE else STUFF[stuff]


@lru_cache
def category_ids(set_name: str) -> dict[str, int]:
    """Name -> category id of a set, things first. All pairs have one, so that an id means the same in every split."""
    if set_name not in SETS:
        raise OsmError(f"--sets {set_name!r} is not one of {', '.join(SETS)}")
    names = [name_in(set_name, pair) for pair in ALL_PAIRS] + [stuff_name_in(set_name, stuff) for stuff in STUFF]
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}


def categories(set_name: str) -> list[dict[str, object]]:
    """The `categories` of a set's json."""
    stuff = {stuff_name_in(set_name, name) for name in STUFF}
    return [
        {"id": number, "name": name, "isthing": int(name not in stuff)}
        for name, number in category_ids(set_name).items()
    ]
