"""Frozen decoder-only LLMs, conditioned through `inputs_embeds`.

Shapes: R rows, T positions, W width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from osm.config import LlmConfig
from osm.errors import OsmError
from osm.model.gated import Visual
from osm.model.quantize import check_works, loading_options, quantization_config, told_plainly
from osm.model.weights import (
    Found,
    check_attention_scale,
    converted,
    from_pretrained_options,
    load_first,
    model_options,
)


def load_llm(config: LlmConfig) -> tuple[nn.Module, Any, LlmConfig]:
    """Loads a causal LM and its tokenizer from the first place that has it.

    Returns:
        the model (eval; float32, or as `config.quantization` says), the tokenizer, and the config with `source` set to
        where it was found.
    """
    if not config.name:
        raise OsmError("model.llm.name is empty: name a folder, a hub id or a .gguf file")
    bits = quantization_config(config.quantization)
    found, (llm, tokenizer) = load_first(config.name, config.source, partial(_load, config=config, bits=bits))
    if bits is not None:
        check_works(llm, config.quantization)
    return llm.eval(), tokenizer, replace(config, source=found.source)


def _load(found: Found, config: LlmConfig, bits: Any) -> tuple[nn.Module, Any]:
    location = found.location
    if location.endswith(".gguf"):
        location = str(converted(Path(location), lambda folder: _convert_gguf(Path(location), folder)))
    elif found.source == "folder" and Path(location).is_file():
        raise OsmError(f"model.llm.name {location!r}: expected a folder or a .gguf file")
    options = from_pretrained_options(found)
    with told_plainly(config.quantization) if bits is not None else contextlib.nullcontext():
        llm, info = AutoModelForCausalLM.from_pretrained(
            location, output_loading_info=True, **model_options(found), **loading_options(bits)
        )
    check_complete(info, location)
    return llm, AutoTokenizer.from_pretrained(location, **options)


def check_complete(info: dict[str, Any], location: str) -> None:
    """Raises OsmError for weights that lack entries: transformers draws those at random, with a warning alone."""
    if info["missing_keys"]:
        raise OsmError(
            f"weights at {location} lack {len(info['missing_keys'])} entries: {sorted(info['missing_keys'])[0]}, ..."
        )


def _convert_gguf(path: Path, folder: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    check_attention_scale(llm.config, path)
    # The values are dequantised by now; with these two left in place it could not be saved.
    llm.hf_quantizer = None
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    llm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def positions(mask: Tensor) -> Tensor:
    """Position ids (R, T) that count seen tokens alone, so that padding on either side changes nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class LlmInputs:
    """What an LLM is given.

    Attributes:
        embeds_RTW: embeddings of prefix and text. mask_RT: 1 where a row has one.
        visual: what its gated layers see, where there are any.
    """

    embeds_RTW: Tensor
    mask_RT: Tensor
    visual: Visual | None = None

    def shown(self) -> contextlib.AbstractContextManager[Any]:
        """The LLM runs within it."""
        return self.visual or contextlib.nullcontext()

    def select(self, rows: Tensor) -> LlmInputs:
        """Some rows, in this order; they may repeat."""
        visual = None if self.visual is None else self.visual.select(rows)
        return LlmInputs(
            self.embeds_RTW[rows.to(self.embeds_RTW.device)], self.mask_RT[rows.to(self.mask_RT.device)], visual
        )

    def __len__(self) -> int:
        return len(self.embeds_RTW)


def token_losses(llm: nn.Module, inputs: LlmInputs, labels: Tensor, scored: bool = False) -> tuple[Tensor, ...]:
    """Next-token cross entropy of each row.

    Args:
        labels: (R, T), -100 = not supervised.

    Returns:
        (R,) summed cross entropy in float32, (R,) number of supervised tokens; if `scored`, (R,) whether each of them
        was the likeliest one: whether greedy search would say just them.
    """
    logits, targets = _supervised_logits(llm, inputs, labels)
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")
    supervised = targets != -100
    found = losses.sum(1), supervised.sum(1)
    return (*found, ((logits.argmax(2) == targets) | ~supervised).all(1)) if scored else found


def _supervised_logits(llm: nn.Module, inputs: LlmInputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (R, t, V) and targets (R, t) of the t positions that some row is supervised at."""
    targets = labels[:, 1:]
    # The LM head is the costliest matrix of a small LLM: it runs at these positions only (or at one).
    columns = (targets != -100).any(0).nonzero().flatten()
    if len(columns) == 0:
        columns = columns.new_zeros(1)
    accepted = inspect.signature(llm.forward).parameters
    mask = inputs.mask_RT
    kwargs: dict[str, Any] = {"position_ids": positions(mask)} if "position_ids" in accepted else {}
    if "logits_to_keep" in accepted:
        kwargs["logits_to_keep"] = columns
    with inputs.shown():
        logits = llm(inputs_embeds=inputs.embeds_RTW, attention_mask=mask, use_cache=False, **kwargs).logits
    if logits.shape[1] != len(columns):
        logits = logits[:, columns]
    return logits, targets[:, columns]


def stop_ids(llm: nn.Module) -> list[int]:
    """Ids that end a name: the LLM's end tokens, and id 0 (behaviour of the published code)."""
    eos = llm.generation_config.eos_token_id if llm.generation_config is not None else None
    if eos is None:
        eos = llm.config.eos_token_id
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return list(dict.fromkeys([*ids, 0]))


def stop_also_at(llm: nn.Module, token: int) -> None:
    """Makes a token end names: the one that ends the training texts, whatever else the LLM's config names."""
    if llm.generation_config is None:
        llm.generation_config = GenerationConfig()
    llm.generation_config.eos_token_id = list(dict.fromkeys([token, *(i for i in stop_ids(llm) if i != 0)]))


def generate(llm: nn.Module, inputs: LlmInputs, **options: Any) -> Any:
    """Generation from embeddings, greedy unless told otherwise.

    Padding may stand anywhere in a row: it is moved to the left, where generation needs it.

    Returns:
        what `llm.generate` returns: the new ids (R, new), or a ModelOutput with `return_dict_in_generate=True`.
    """
    embeds, mask = inputs.embeds_RTW, inputs.mask_RT
    if not mask.all():
        order = mask.long().argsort(dim=1, stable=True)
        embeds, mask = embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)
    stop = stop_ids(llm)
    pad = llm.config.pad_token_id
    settings: dict[str, Any] = {
        # What an LLM's own generation config may set, and greedy search must not take from there.
        **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0},
        "eos_token_id": stop,
        "pad_token_id": stop[0] if pad is None or pad < 0 else pad,
        "bos_token_id": llm.config.bos_token_id,
        **options,
    }
    with inputs.shown():
        return llm.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=GenerationConfig(**settings))
