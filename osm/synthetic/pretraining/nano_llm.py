"""Pre-trains osm-nano's LLM, a small Llama that learns to generate the name encoded in its context vectors.

A training document consists of the words of a name, one of the project's questions, and the name as the answer. The
words are encoded as vectors that precede the question. The vectors are unordered, blended and noisy, like the output of
a trained bridge. The names contain many more words than the scenes use, so that the LLM learns to read the context
vectors instead of memorizing names. Attribute-object pairs that never occur in training scenes never occur in the LLM's
training documents either.

Shapes: R rows, K context slots, T text tokens, W embedding width.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS
from osm.datasets.labels import load_labels
from osm.models.llm import generate
from osm.models.llm_forward import LlmInputs
from osm.synthetic.pretraining.nano_training import read_state, warmup_cosine, write_state
from osm.synthetic.scenes.scene_names import ATTRIBUTES, STUFF, THINGS, Pair, held_out_pairs
from osm.terminal import message_logger

logger = message_logger(__name__)

PAD, BOS, EOS = 0, 1, 2
PROMPT_WEIGHT = 0.1
MOST_SLOTS = 9
TEST_PAIRS = 200  # attribute-object pairs on which the trained LLM is tested
_ADJECTIVES = (
    "wooden metal plastic golden silver tiny huge small large old new shiny dusty broken round square tall short wide "
    "narrow soft hard wet dry clean dirty cracked painted grey beige turquoise floral plaid spotted woven knitted "
    "paper stone bright dark pale empty full folded bent curved furry smooth rough rusty modern antique frozen burnt "
    "ripe sleeping wild sharp heavy light hollow wrapped torn polished faded carved"
)
OTHER_ADJECTIVES = tuple(_ADJECTIVES.split())
_WORD = re.compile(r"[a-z]+")


# -- corpus ------------------------------------------------------------------------------------------------------------


def scene_nouns() -> tuple[str, ...]:
    """Return all nouns in the names of the two scene datasets."""
    return tuple(dict.fromkeys([*THINGS, *THINGS.values(), *STUFF, *STUFF.values()]))


def other_nouns() -> tuple[str, ...]:
    """Return the one-word class names of COCO and ADE20K that do not occur in scenes."""
    names = [c.target for table in ("coco", "ade20k") for c in load_labels(table).classes.values()]
    known = {*scene_nouns(), *ATTRIBUTES, *OTHER_ADJECTIVES}
    return tuple(dict.fromkeys(name for name in names if _WORD.fullmatch(name) and name not in known))


def tokenizer_text() -> list[str]:
    """Return the text for training the tokenizer: every word 20 times, and the questions."""
    words = [*ATTRIBUTES, *OTHER_ADJECTIVES, *scene_nouns(), *other_nouns()]
    return [*(f" {word}" for word in words for _ in range(20)), *MASK_PROMPTS, *BOX_PROMPTS]


@dataclass(frozen=True)
class NamingDocument:
    """A training document: the words to encode as context vectors, the question, and the answer."""

    words: tuple[str, ...]
    prompt: str
    answer: str


class Corpus:
    """Draws training documents. The two words of a pair in `held_out` never occur together."""

    def __init__(self) -> None:
        self.held_out = {(pair.attribute, pair.thing) for pair in held_out_pairs()}
        self.prompts = (*MASK_PROMPTS, *BOX_PROMPTS)
        self.scene_nouns, self.other_nouns = scene_nouns(), other_nouns()

    def draw(self, rng: np.random.Generator) -> NamingDocument:
        """Draw a training document."""
        prompt = self.prompts[int(rng.integers(len(self.prompts)))]
        while True:
            nouns = self.scene_nouns if rng.random() < 0.6 else self.other_nouns
            noun = nouns[int(rng.integers(len(nouns)))]
            if rng.random() < 0.35:
                return NamingDocument((noun,), prompt, noun)
            adjectives = ATTRIBUTES if rng.random() < 0.6 else OTHER_ADJECTIVES
            adjective = adjectives[int(rng.integers(len(adjectives)))]
            if (adjective, noun) not in self.held_out:
                return NamingDocument((adjective, noun), prompt, f"{adjective} {noun}")

    def held_out_documents(self) -> list[NamingDocument]:
        """Return evaluation documents for the held-out attribute-object pairs, which are never used in training."""
        pairs = sorted(held_out_pairs(), key=str)
        return [NamingDocument((pair.attribute, pair.thing), MASK_PROMPTS[0], str(pair)) for pair in pairs]


def training_pair_documents(count: int, seed: int) -> list[NamingDocument]:
    """Return documents for `count` random training pairs, with the question used in evaluation."""
    rng = np.random.default_rng(seed)
    held_out = held_out_pairs()
    pairs = [Pair(a, t) for t in THINGS for a in ATTRIBUTES if Pair(a, t) not in held_out]
    chosen = (pairs[i] for i in rng.choice(len(pairs), count, replace=False))
    return [NamingDocument((pair.attribute, pair.thing), MASK_PROMPTS[0], str(pair)) for pair in chosen]


# -- model and training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlmTraining:
    """The layer sizes and training settings of the LLM."""

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
    """Train a byte-level BPE tokenizer on all words and questions. Like `</s>`, `<pad>` (id 0) ends a name."""
    return train_tokenizer(tokenizer_text(), vocabulary, model_max_length=128)


def train_tokenizer(texts: Iterable[str], vocabulary: int, **options: Any) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special tokens `<pad>`, `<s>` and `</s>` (ids 0, 1 and 2).

    Args:
        texts: the training texts.
        vocabulary: the maximum number of tokens, including the special tokens and all bytes.
        options: options of `PreTrainedTokenizerFast`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def make_llm(config: LlmTraining, vocabulary: int) -> LlamaForCausalLM:
    """Build the LLM with random weights."""
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
    """Build context vectors (R, `slots` + 1, W) from each row's words, which are given as token ids.

    Each token's embedding is added to one or more slots with a random weight, and noise is added to all slots. The
    standard deviation of the noise is `blur` times that of the embeddings. The last slot contains only noise, because
    a trained bridge puts the mode embedding there.
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


def _text(documents: Sequence[NamingDocument], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Tokenize documents and return the token ids (R, T) and the loss weight of each token (R, T).

    Each row consists of BOS, question, answer and EOS, and is padded on the right.
    """
    rows, weights = [], []
    for document in documents:
        prompt = tokenizer(document.prompt, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(f" {document.answer}", add_special_tokens=False)["input_ids"], EOS]
        rows.append([BOS, *prompt, *answer])
        weights.append([0.0, *[PROMPT_WEIGHT] * len(prompt), *[1.0] * len(answer)])
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, torch.tensor([row + [0.0] * (length - len(row)) for row in weights])


def _loss(llm: Any, documents: Sequence[NamingDocument], tokenizer: Any, rng: np.random.Generator) -> Tensor:
    embeddings = llm.get_input_embeddings().weight
    words = [[i for w in d.words for i in tokenizer(f" {w}", add_special_tokens=False)["input_ids"]] for d in documents]
    context = context_vectors(words, embeddings, int(rng.integers(2, MOST_SLOTS)), float(rng.uniform(0, 0.7)), rng)
    ids, weights = _text(documents, tokenizer)
    attention = torch.cat([torch.ones(context.shape[:2], dtype=torch.long), (ids != PAD).long()], 1)
    logits = llm(inputs_embeds=torch.cat([context, embeddings[ids]], 1), attention_mask=attention).logits
    logits = logits[:, context.shape[1] : -1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def pretrain_llm(config: LlmTraining, folder: Path) -> dict[str, Any]:
    """Train the LLM, or resume an interrupted training run from its last checkpoint.

    Returns:
        `llm`, `tokenizer`, `accuracy` (on training pairs and on held-out pairs) and `seconds`.

    Raises:
        OsmError: the checkpoint is broken, or was written with different settings.
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
            group["lr"] = config.learning_rate * warmup_cosine(step, config.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            logger.info(f"llm step {step}/{config.steps}: {loss:.3f} {time.monotonic() - started:.0f} s")
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            saved = {"llm": llm.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_state(path, {**saved, "config": asdict(config), "seconds": time.monotonic() - started})
    llm.eval()
    documents = {
        "seen pairs": training_pair_documents(TEST_PAIRS, config.seed),
        "held-out pairs": corpus.held_out_documents(),
    }
    accuracy = {
        name: round(naming_accuracy(llm, tokenizer, chosen, config.seed), 4) for name, chosen in documents.items()
    }
    return {
        "llm": llm,
        "tokenizer": tokenizer,
        "accuracy": accuracy,
        "seconds": round(time.monotonic() - started),
    }


@torch.no_grad()
def naming_accuracy(
    llm: Any, tokenizer: Any, documents: Sequence[NamingDocument], seed: int, slots: int = 4, blur: float = 0.4
) -> float:
    """Return the fraction of documents for which the LLM generates the correct answer from noisy context vectors."""
    rng = np.random.default_rng(seed)
    embeddings = llm.get_input_embeddings().weight
    words = [[i for w in d.words for i in tokenizer(f" {w}", add_special_tokens=False)["input_ids"]] for d in documents]
    context = context_vectors(words, embeddings, slots, blur, rng)
    prompt = torch.tensor([BOS, *tokenizer(documents[0].prompt, add_special_tokens=False)["input_ids"]])
    embeds = torch.cat([context, embeddings[prompt].expand(len(documents), -1, -1)], 1)
    inputs = LlmInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.long))
    out = generate(llm, inputs, max_new_tokens=12)
    answers = [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    return sum(a == d.answer for a, d in zip(answers, documents, strict=True)) / len(documents)
