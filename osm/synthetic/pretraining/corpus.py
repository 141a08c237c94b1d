"""What osm-nano's LLM reads: words by which something is called, a question of the project, and the name as answer.

The words stand in the context as the bridge will put them there: vectors, in no order, blended and blurred. Names are
made of many more words than the scenes have, so that what is learned is to say what the context says. The pairs that
scenes hold out are held out here too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS
from osm.datasets.labels import load_labels
from osm.synthetic.scenes.words import ATTRIBUTES, STUFF, THINGS, Pair, held_out_pairs

_ADJECTIVES = (
    "wooden metal plastic golden silver tiny huge small large old new shiny dusty broken round square tall short wide "
    "narrow soft hard wet dry clean dirty cracked painted grey beige turquoise floral plaid spotted woven knitted "
    "paper stone bright dark pale empty full folded bent curved furry smooth rough rusty modern antique frozen burnt "
    "ripe sleeping wild sharp heavy light hollow wrapped torn polished faded carved"
)
OTHER_ADJECTIVES = tuple(_ADJECTIVES.split())
_WORD = re.compile(r"[a-z]+")


def scene_nouns() -> tuple[str, ...]:
    """Every noun of both sets of scenes."""
    return tuple(dict.fromkeys([*THINGS, *THINGS.values(), *STUFF, *STUFF.values()]))


def other_nouns() -> tuple[str, ...]:
    """One-word names of COCO and ADE20K that scenes do not have."""
    names = [c.target for table in ("coco", "ade20k") for c in load_labels(table).classes.values()]
    known = {*scene_nouns(), *ATTRIBUTES, *OTHER_ADJECTIVES}
    return tuple(dict.fromkeys(name for name in names if _WORD.fullmatch(name) and name not in known))


def tokenizer_text() -> list[str]:
    """What the tokenizer is trained on: every word, and the questions."""
    words = [*ATTRIBUTES, *OTHER_ADJECTIVES, *scene_nouns(), *other_nouns()]
    return [*(f" {word}" for word in words for _ in range(20)), *MASK_PROMPTS, *BOX_PROMPTS]


@dataclass(frozen=True)
class Named:
    """One document: the words of the context, the question, and the answer."""

    words: tuple[str, ...]
    prompt: str
    answer: str


class Corpus:
    """Draws documents. `held_out` never occur as an answer, nor their words together in a context."""

    def __init__(self) -> None:
        self.held_out = {(pair.attribute, pair.thing) for pair in held_out_pairs()}
        self.prompts = (*MASK_PROMPTS, *BOX_PROMPTS)
        self.scene_nouns, self.other_nouns = scene_nouns(), other_nouns()

    def draw(self, rng: np.random.Generator) -> Named:
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        while True:
            nouns = self.scene_nouns if rng.random() < 0.6 else self.other_nouns
            noun = nouns[int(rng.integers(len(nouns)))]
            if rng.random() < 0.35:
                return Named((noun,), prompt, noun)
            adjectives = ATTRIBUTES if rng.random() < 0.6 else OTHER_ADJECTIVES
            adjective = adjectives[int(rng.integers(len(adjectives)))]
            if (adjective, noun) not in self.held_out:
                return Named((adjective, noun), prompt, f"{adjective} {noun}")

    def held_out_documents(self) -> list[Named]:
        """The held-out pairs as documents, to see whether they can be said; never trained on."""
        pairs = sorted(held_out_pairs(), key=str)
        return [Named((pair.attribute, pair.thing), MASK_PROMPTS[0], str(pair)) for pair in pairs]


def seen_documents(count: int, seed: int) -> list[Named]:
    """Pairs of scenes that are trained on, as documents with the test's question."""
    rng = np.random.default_rng(seed)
    held_out = held_out_pairs()
    pairs = [Pair(a, t) for t in THINGS for a in ATTRIBUTES if Pair(a, t) not in held_out]
    chosen = (pairs[i] for i in rng.choice(len(pairs), count, replace=False))
    return [Named((pair.attribute, pair.thing), MASK_PROMPTS[0], str(pair)) for pair in chosen]
