"""A tokenizer made on the spot, for benchmarks that need texts of plausible lengths but no weights."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS


def small_tokenizer(names: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the instructions and of these names, with the special tokens that a Llama has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*MASK_PROMPTS, *BOX_PROMPTS, *(f" {name}" for name in names)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
