"""Pre-trains osm-nano's LLM: a small Llama that says what the vectors before its text mean.

Shapes: R rows, K context slots, T text tokens, W embedding width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from osm.models.llm import generate
from osm.models.llm_forward import LlmInputs
from osm.synthetic.pretraining.corpus import Corpus, Named, seen_documents, tokenizer_text
from osm.synthetic.pretraining.schedule import warm_cosine
from osm.synthetic.pretraining.work import read_state
from osm.terminal import message_logger

logger = message_logger(__name__)

PAD, BOS, EOS = 0, 1, 2
PROMPT_WEIGHT = 0.1
MOST_SLOTS = 9


@dataclass(frozen=True)
class LlmTraining:
    """The LLM's size, and how it is trained."""

    vocabulary: int = 2400
    width: int = 160
    layers: int = 4
    heads: int = 5
    mlp_width: int = 432
    steps: int = 600
    batch_size: int = 192
    learning_rate: float = 3e-3
    seed: int = 1_000_003
    threads: int = 2


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the corpus; id 0 is the pad token, as it ends a name."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def make_llm(config: LlmTraining, vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=128,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=True,
            initializer_range=config.width**-0.5 / 2,
        )
    )


def context_vectors(
    words: Sequence[Sequence[int]], embeddings: Tensor, slots: int, blur: float, rng: np.random.Generator
) -> Tensor:
    """Words (token ids of each row) -> (R, K, W): every token in one slot or several, weighted, added up and blurred.

    The last slot holds no word: the answer style's embedding will stand there.
    """
    rows, width = len(words), embeddings.shape[1]
    spread = float(embeddings.detach().std())
    out = torch.from_numpy(rng.standard_normal((rows, slots + 1, width), np.float32)) * spread * blur
    weights = np.zeros((rows, slots, max(map(len, words))), np.float32)
    ids = np.zeros((rows, weights.shape[2]), np.int64)
    for row, tokens in enumerate(words):
        ids[row, : len(tokens)] = tokens
        chosen = rng.random((slots, len(tokens))) < rng.choice([0.3, 0.6, 1.0])
        chosen[rng.integers(slots, size=len(tokens)), np.arange(len(tokens))] = True
        weights[row, :, : len(tokens)] = chosen * rng.uniform(0.4, 1.3, chosen.shape)
    blended = torch.from_numpy(weights) @ embeddings[torch.from_numpy(ids)]
    return torch.cat([out[:, :-1] + blended, out[:, -1:]], 1)


def _text(documents: Sequence[Named], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """ids (R, T) = BOS, question, answer, end token, padded on the right; weight of each as a target (R, T)."""
    rows, weights = [], []
    for document in documents:
        prompt = tokenizer(document.prompt, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(f" {document.answer}", add_special_tokens=False)["input_ids"], EOS]
        rows.append([BOS, *prompt, *answer])
        weights.append([0.0, *[PROMPT_WEIGHT] * len(prompt), *[1.0] * len(answer)])
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, torch.tensor([row + [0.0] * (length - len(row)) for row in weights])


def _loss(llm: Any, documents: Sequence[Named], tokenizer: Any, rng: np.random.Generator) -> Tensor:
    embeddings = llm.get_input_embeddings().weight
    words = [[i for w in d.words for i in tokenizer(f" {w}", add_special_tokens=False)["input_ids"]] for d in documents]
    context = context_vectors(words, embeddings, int(rng.integers(2, MOST_SLOTS)), float(rng.uniform(0, 0.7)), rng)
    ids, weights = _text(documents, tokenizer)
    seen = torch.cat([torch.ones(context.shape[:2], dtype=torch.long), (ids != PAD).long()], 1)
    logits = llm(inputs_embeds=torch.cat([context, embeddings[ids]], 1), attention_mask=seen).logits
    logits = logits[:, context.shape[1] : -1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def pretrain_llm(config: LlmTraining, folder: Path) -> dict[str, Any]:
    """Trains the LLM; interrupted, it goes on from its last checkpoint.

    Returns:
        `llm`, `tokenizer`, and what is to be told about them (`accuracy` on pairs that were trained on and on held-out
        ones, `seconds`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer(config.vocabulary)
    llm = make_llm(config, len(tokenizer))
    corpus = Corpus()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=config.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    path = folder / "llm.pt"
    first, started = 0, time.monotonic()
    if path.is_file():
        document = read_state(path, asdict(config))
        llm.load_state_dict(document["llm"])
        optimizer.load_state_dict(document["optimizer"])
        first, started = document["step"], started - document["seconds"]
    llm.train()
    for step in range(first, config.steps):
        rng = np.random.default_rng([config.seed, step])
        loss = _loss(llm, [corpus.draw(rng) for _ in range(config.batch_size)], tokenizer, rng)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm_cosine(step, config.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            logger.info(f"llm step {step}/{config.steps}: {loss:.3f} {time.monotonic() - started:.0f} s")
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            saved = {"llm": llm.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(
                {**saved, "config": asdict(config), "seconds": time.monotonic() - started}, path.with_suffix(".tmp")
            )
            os.replace(path.with_suffix(".tmp"), path)
    llm.eval()
    documents = {"seen pairs": seen_documents(200, config.seed), "held-out pairs": corpus.held_out_documents()}
    accuracy = {name: round(says(llm, tokenizer, chosen, config.seed), 4) for name, chosen in documents.items()}
    return {
        "llm": llm,
        "tokenizer": tokenizer,
        "accuracy": accuracy,
        "seconds": round(time.monotonic() - started),
    }


@torch.no_grad()
def says(llm: Any, tokenizer: Any, documents: Sequence[Named], seed: int, slots: int = 4, blur: float = 0.4) -> float:
    """How often the LLM says a document's answer, its words blended and blurred in the context."""
    rng = np.random.default_rng(seed)
    embeddings = llm.get_input_embeddings().weight
    words = [[i for w in d.words for i in tokenizer(f" {w}", add_special_tokens=False)["input_ids"]] for d in documents]
    context = context_vectors(words, embeddings, slots, blur, rng)
    prompt = torch.tensor([BOS, *tokenizer(documents[0].prompt, add_special_tokens=False)["input_ids"]])
    embeds = torch.cat([context, embeddings[prompt].expand(len(documents), -1, -1)], 1)
    inputs = LlmInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.long))
    out = generate(llm, inputs, max_new_tokens=12)
    said = [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    return sum(a == d.answer for a, d in zip(said, documents, strict=True)) / len(documents)
