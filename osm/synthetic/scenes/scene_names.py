"""The objects, attributes and backgrounds in drawn scenes, their names in each dataset, and the held-out pairs.

Every object has exactly one attribute: a color or a pattern. The dataset `scenes_fine` names both the attribute and the
object ("striped kettle"). The dataset `scenes_plain` names only the object, sometimes by a synonym ("couch" for
"sofa"). A seed determines which attribute-object pairs are held out from training scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from osm.errors import not_one_of

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PATTERNS = ("striped", "dotted", "checkered", "zigzag", "rainbow", "marbled")
ATTRIBUTES = COLOURS + PATTERNS

# Maps each kind of object to its name in the dataset `scenes_plain`.
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
# Maps each kind of background to its name in the dataset `scenes_plain`.
# Backdrops fill the upper part of a scene, and grounds fill the lower part.
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
    """A kind of object with its attribute."""

    attribute: str
    thing: str

    def __str__(self) -> str:
        return f"{self.attribute} {self.thing}"


ALL_PAIRS = tuple(Pair(attribute, thing) for thing in THINGS for attribute in ATTRIBUTES)


@lru_cache
def held_out_pairs(seed: int = HELD_OUT_SEED) -> frozenset[Pair]:
    """Return the held-out pairs, which make up a tenth of all attribute-object pairs.

    To spread the held-out pairs evenly, the objects and the attributes are shuffled, and each pass over the objects
    gives every object the next attribute in turn. Each new pass skips one attribute, so that no pair is repeated. For
    every attribute and every kind of object, at least 80% of the pairs are not held out.
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
    """Return the attribute-object pairs that scenes may contain: `seen` (not held out), `held_out` or `all`.

    Raises:
        OsmError: `pairing` is not supported.
    """
    if pairing not in PAIRINGS:
        raise not_one_of("--pairs", pairing, PAIRINGS)
    held_out = held_out_pairs(seed)
    return tuple(pair for pair in ALL_PAIRS if pairing == "all" or (pair in held_out) == (pairing == "held_out"))


def name_in(set_name: str, pair: Pair) -> str:
    """Return the name that a dataset uses for an object with an attribute."""
    return str(pair) if set_name == FINE else THINGS[pair.thing]


def stuff_name_in(set_name: str, stuff: str) -> str:
    """Return the name that a dataset uses for a kind of background, such as `grass`."""
    return stuff if set_name == FINE else STUFF[stuff]


@lru_cache
def category_ids(set_name: str) -> dict[str, int]:
    """Return the category id of each name in a dataset. Objects have lower ids than backgrounds.

    Every attribute-object pair has an id, even if a split does not contain the pair, so that ids have the same meaning
    in all splits.

    Raises:
        OsmError: the dataset does not exist.
    """
    if set_name not in SETS:
        raise not_one_of("--sets", set_name, SETS)
    names = [name_in(set_name, pair) for pair in ALL_PAIRS] + [stuff_name_in(set_name, stuff) for stuff in STUFF]
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}


def categories(set_name: str) -> list[dict[str, object]]:
    """Return the `categories` list for a dataset's JSON file."""
    stuff = {stuff_name_in(set_name, name) for name in STUFF}
    return [
        {"id": number, "name": name, "isthing": int(name not in stuff)}
        for name, number in category_ids(set_name).items()
    ]
