"""A generated tokenizer, for benchmarks that need texts of plausible lengths but no weights."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS
from osm.synthetic.pretraining.nano_llm import train_tokenizer


def small_tokenizer(names: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the instructions and of these names, with the special tokens that a Llama has."""
    return train_tokenizer([*MASK_PROMPTS, *BOX_PROMPTS, *(f" {name}" for name in names)], vocabulary)
