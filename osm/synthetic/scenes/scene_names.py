"""The things, attributes and stuff of drawn scenes, their names in each dataset, and the pairs that are held out.

A thing has one attribute (a colour or a pattern). Names in the dataset `scenes_fine` have both ("striped kettle").
Names in `scenes_plain` have only the thing, sometimes by another word ("couch" for "sofa"). A seed decides which
attribute-thing pairs are held out. Training scenes do not show held-out pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from osm.errors import OsmError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PATTERNS = ("striped", "dotted", "checkered", "zigzag", "rainbow", "marbled")
ATTRIBUTES = COLOURS + PATTERNS

# Thing -> its name in the plain dataset.
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
# Stuff -> its name in the plain dataset. Backdrops are behind the things, and grounds are below them.
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
    """A thing and its attribute."""

    attribute: str
    thing: str

    def __str__(self) -> str:
        return f"{self.attribute} {self.thing}"


ALL_PAIRS = tuple(Pair(attribute, thing) for thing in THINGS for attribute in ATTRIBUTES)


@lru_cache
def held_out_pairs(seed: int = HELD_OUT_SEED) -> frozenset[Pair]:
    """Return the held-out pairs, a tenth of all pairs. Every word keeps at least four fifths of its pairs.

    Shuffled attributes are assigned to the shuffled things in turn, shifted by one after each round, so that the
    held-out pairs are spread evenly over the words.
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
    """Return the pairs that scenes may show: `seen` (all except held-out pairs), `held_out`, or `all`.

    Raises:
        OsmError: `pairing` is another string.
    """
    if pairing not in PAIRINGS:
        raise OsmError(f"--pairs {pairing!r} is not one of {', '.join(PAIRINGS)}")
    held_out = held_out_pairs(seed)
    return tuple(pair for pair in ALL_PAIRS if pairing == "all" or (pair in held_out) == (pairing == "held_out"))


def name_in(set_name: str, pair: Pair) -> str:
    """Return the name of a thing in a dataset."""
    return str(pair) if set_name == FINE else THINGS[pair.thing]


def stuff_name_in(set_name: str, stuff: str) -> str:
    """Return the name of stuff in a dataset."""
    return stuff if set_name == FINE else STUFF[stuff]


@lru_cache
def category_ids(set_name: str) -> dict[str, int]:
    """Return the category id of each name of a dataset, things first.

    All pairs have an id, so that an id means the same in every split.

    Raises:
        OsmError: there is no dataset of this name.
    """
    if set_name not in SETS:
        raise OsmError(f"--sets {set_name!r} is not one of {', '.join(SETS)}")
    names = [name_in(set_name, pair) for pair in ALL_PAIRS] + [stuff_name_in(set_name, stuff) for stuff in STUFF]
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}


def categories(set_name: str) -> list[dict[str, object]]:
    """Return the `categories` of a dataset's json."""
    stuff = {stuff_name_in(set_name, name) for name in STUFF}
    return [
        {"id": number, "name": name, "isthing": int(name not in stuff)}
        for name, number in category_ids(set_name).items()
    ]
