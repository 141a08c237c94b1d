"""Models small enough for a test: they take milliseconds, and their random weights make every part matter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import (
    BertTokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from osm.config import from_dict
from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS
from osm.datasets.labels import load_labels
from osm.models.model_config import ModelConfig
from osm.synthetic.pretraining.nano_llm import train_tokenizer

# Id 0 ends a name, as in the published code; only the pad token may have it.
PAD, BOS, EOS = 0, 1, 2


def tiny_tokenizer(folder: Path, vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the project's prompts and COCO's names, and saves it into `folder`."""
    names = sorted(load_labels("coco").vocabulary)
    texts = [*MASK_PROMPTS, *BOX_PROMPTS, *(f" {name}" for name in names)]
    fast = train_tokenizer(texts, vocabulary, model_max_length=512)
    fast.save_pretrained(folder)
    return fast


def randomise(module: nn.Module, seed: int) -> None:
    """Fills a module so that no part is a no-op: InstructBLIP's own start has zero queries and a near-zero ViT."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                scale = 1.0 if "embed" in name or "query_tokens" in name else parameter[0].numel() ** -0.5
                parameter.copy_(values * scale)
            else:
                parameter.copy_(values * 0.1 + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0))


def tiny_llama_config(vocabulary: int, width: int = 40) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def tiny_llm(folder: Path, seed: int = 0) -> LlamaForCausalLM:
    """Saves a random Llama and its tokenizer into `folder`, which can then stand as `model.llm.name`."""
    tokenizer = tiny_tokenizer(folder)
    llm = LlamaForCausalLM(tiny_llama_config(len(tokenizer))).eval()
    randomise(llm, seed)
    llm.save_pretrained(folder)
    return llm


def tiny_model_section(folder: Path, **overrides: Any) -> dict[str, Any]:
    """The section `model:` of a config: random tower, tiny LLM (made in `folder`/llm if it is not there yet)."""
    if not (folder / "llm" / "config.json").is_file():
        tiny_llm(folder / "llm")
    section: dict[str, Any] = {
        "input_size": 56,
        "sliding_window_size": 28,
        "sliding_window_stride": 28,
        "mask_to_grid": "area",
        "tower": {"kind": "random", "patch": 14, "width": 32, "class_token": True, "seed": 0},
        "llm": {"name": str(folder / "llm")},
        "qformer": {
            "layers": 2,
            "width": 24,
            "heads": 2,
            "mlp_width": 48,
            "mask_queries": 4,
            "context_queries": 4,
            "instruction_dim": 8,
        },
        "flamingo": {
            "width": 24,
            "heads": 2,
            "layers": 2,
            "mlp_width": 48,
            "queries": 4,
            "roi": 2,
            "every": 1,
            "gated_width": 24,
            "gated_heads": 2,
            "gated_mlp_width": 32,
        },
    }
    section |= overrides
    if section.get("variant") == "pooled":
        for name in ("variant", "qformer", "flamingo"):
            del section[name]
        return section | {"bridge": {"kind": "pooled", "direct_tokens": 2, "direct_width": 16}}
    del section["qformer" if section.get("variant") == "flamingo" else "flamingo"]  # the other's would mean nothing
    return section


def tiny_model_yaml(folder: Path, **overrides: Any) -> Path:
    """A config file with `tiny_model_section`; `overrides` replace its fields."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": tiny_model_section(folder, **overrides)}))
    return path


def tiny_instructblip(
    text: str = "llama", seed: int = 0, vocabulary: int = 97, instruction_vocabulary: int = 61
) -> InstructBlipForConditionalGeneration:
    """A random InstructBLIP around a Llama or an OPT: patch 14, windows of 28, 4 queries."""
    if text == "llama":
        text_config: Any = tiny_llama_config(vocabulary)
    else:
        text_config = OPTConfig(
            vocab_size=vocabulary,
            hidden_size=40,
            word_embed_proj_dim=40,
            ffn_dim=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=False,  # tied, a random one repeats what it hears
        )
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "vocab_size": instruction_vocabulary,
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
            "max_position_embeddings": 40,
            "layer_norm_eps": 1e-3,  # not the usual one, and large enough to show
        },
        text_config=text_config,
        num_query_tokens=4,
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def tiny_instructblip_folder(folder: Path) -> InstructBlipForConditionalGeneration:
    """Saves a random InstructBLIP as the hub has them, with the LLM's tokenizer and a BERT-like `qformer_tokenizer`."""
    tokenizer = tiny_tokenizer(folder)
    words = sorted({word for prompt in MASK_PROMPTS for word in re.findall(r"\w+|[^\w\s]", prompt.lower())})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    instruction = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    instruction.add_special_tokens({"bos_token": "[DEC]"})
    instruction.save_pretrained(folder / "qformer_tokenizer")
    base = tiny_instructblip(vocabulary=len(tokenizer), instruction_vocabulary=len(instruction))
    base.save_pretrained(folder)
    return base


def tiny_config(folder: Path, kind: str, **settings: Any) -> ModelConfig:
    """The config of a tiny model with the given kind of bridge, some of whose settings are changed."""
    section = tiny_model_section(folder, variant=kind)
    section[{"maskqformer": "qformer", "flamingo": "flamingo"}.get(kind, "bridge")].update(settings)
    return from_dict(ModelConfig, section, "test")
