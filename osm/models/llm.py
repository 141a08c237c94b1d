"""Frozen decoder-only LLMs, conditioned through `inputs_embeds`.

Shapes: R rows, T positions, W width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation import GenerateDecoderOnlyOutput

from osm.config import LlmConfig
from osm.errors import OsmError
from osm.models.kv_cache import read_prefix, read_tokens
from osm.models.llm_inputs import LlmInputs, llm_support, positions
from osm.models.quantize import check_works, keep_gradients, loading_options, quantization_config, told_plainly
from osm.models.weights import (
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
        keep_gradients(llm)
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
    with inputs.conditioned():
        logits = llm(inputs_embeds=inputs.embeds_RTW, attention_mask=mask, use_cache=False, **kwargs).logits
    if logits.shape[1] != len(columns):
        logits = logits[:, columns]
    return logits, targets[:, columns]


def stop_ids(llm: nn.Module) -> list[int]:
    """Ids that end a name: the LLM's end tokens, and id 0 as published, unless it is a plain token of the tokenizer."""
    eos = llm.generation_config.eos_token_id if llm.generation_config is not None else None
    if eos is None:
        eos = llm.config.eos_token_id
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return list(dict.fromkeys([*ids, 0] if getattr(llm, "osm_zero_ends_names", True) else ids))


def use_tokenizer(llm: nn.Module, tokenizer: Any, name: str) -> None:
    """Fits an LLM and its tokenizer to each other.

    The tokenizer's end token ends names: it ends the training texts, whatever else the LLM's config names. So does id 0
    where it is a special token of the tokenizer: in the published model it is `<unk>`, in others the letter `!`.

    Raises:
        OsmError: a start or end token that the LLM has no embedding for.
    """
    known = llm.get_input_embeddings().num_embeddings
    for which in ("bos", "eos", "pad"):
        token, number = getattr(tokenizer, f"{which}_token"), getattr(tokenizer, f"{which}_token_id")
        if number is None or number < known:
            continue
        if which != "pad":
            raise OsmError(
                f"model.llm.name {name!r}: its tokenizer's {which} token {token!r} has the id {number}, but the LLM "
                f"has {known} embeddings (ids 0 to {known - 1}); resize its embeddings, or use the tokenizer that it "
                "was trained with"
            )
        # Nothing attends to padding, so any token does.
        tokenizer.pad_token = tokenizer.eos_token
    plain = 0 not in special_ids(tokenizer)
    if llm.generation_config is None:
        llm.generation_config = GenerationConfig()
    llm.osm_zero_ends_names = not plain
    if tokenizer.eos_token_id is not None:
        ends = [tokenizer.eos_token_id, *(i for i in stop_ids(llm) if i != 0)]
        llm.generation_config.eos_token_id = list(dict.fromkeys(ends))


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of a tokenizer's special tokens, among them those of its start, end, padding and unknown words."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def generate(llm: nn.Module, inputs: LlmInputs, **options: Any) -> Any:
    """Generation from embeddings, greedy unless told otherwise.

    Padding may stand anywhere in a row: it is moved to the left, where generation needs it.

    Returns:
        what `llm.generate` returns: the new ids (R, new), or a ModelOutput with `return_dict_in_generate=True`.

    Raises:
        OsmError: an option beyond greedy search, with an LLM whose own `generate` is not right (`LlmSupport.generate`).
    """
    stop, pad = stop_ids(llm), llm.config.pad_token_id
    ends = {"eos_token_id": stop, "pad_token_id": (stop or [0])[0] if pad is None or pad < 0 else pad}
    if not llm_support(llm).generate:
        return _greedy(llm, inputs, {**ends, **options})
    embeds, mask = inputs.embeds_RTW, inputs.mask_RT
    if not mask.all():
        order = mask.long().argsort(dim=1, stable=True)
        embeds, mask = embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)
    settings: dict[str, Any] = {
        # What an LLM's own generation config may set, and greedy search must not take from there.
        **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0},
        "bos_token_id": llm.config.bos_token_id,
        **ends,
        **options,
    }
    with inputs.conditioned():
        return llm.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=GenerationConfig(**settings))


_GREEDY = {"do_sample": False, "num_beams": 1, "cache_implementation": None}
_OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits")


def _greedy(llm: nn.Module, inputs: LlmInputs, options: dict[str, Any]) -> Any:
    """Greedy search without transformers' `generate`: rows of one length go through the LLM together, unpadded."""
    stop, pad = options.pop("eos_token_id"), options.pop("pad_token_id")
    stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    wanted = {name: bool(options.pop(name, False)) for name in _OUTPUTS}
    steps = options.pop("max_new_tokens", 20)
    for name, value in options.items():
        if name not in _GREEDY or value != _GREEDY[name]:
            raise OsmError(
                f"generate: {name}={value!r} needs transformers' own generate, which is not right for "
                f"{type(llm).__name__} fed with embeddings; only greedy search is left (max_new_tokens, eos_token_id)"
            )
    lengths = inputs.mask_RT.sum(1)
    groups, states, rows = [], [], len(inputs)
    logits: Tensor | None = None
    for length in lengths.unique().tolist():
        group = (lengths == length).nonzero().flatten()
        part = inputs.select(group)
        embeds = part.embeds_RTW[part.mask_RT.bool().to(part.embeds_RTW.device)].view(len(group), length, -1)
        found, state = read_prefix(llm, LlmInputs(embeds, embeds.new_ones(embeds.shape[:2]).long(), part.gated_kv))
        logits = found.new_empty(rows, found.shape[-1]) if logits is None else logits
        logits[group] = found
        groups.append(group)
        states.append(state)
    assert logits is not None
    ids: list[Tensor] = []
    all_logits: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool, device=logits.device)
    for step in range(steps):
        if step:
            for place, group in enumerate(groups):
                logits[group], states[place] = read_tokens(llm, ids[-1][group, None].tolist(), states[place])
        all_logits.append(logits.clone())
        ids.append(logits.argmax(-1).masked_fill(ended, pad))
        ended |= torch.isin(ids[-1], torch.tensor(stop, device=logits.device, dtype=torch.long))
        if ended.all():
            break
    sequences = torch.stack(ids, 1)
    if not wanted["return_dict_in_generate"]:
        return sequences
    scores, raw = (tuple(all_logits) if wanted[name] else None for name in ("output_scores", "output_logits"))
    return GenerateDecoderOnlyOutput(sequences=sequences, scores=scores, logits=raw)
