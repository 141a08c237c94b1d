"""Loads frozen decoder-only LLMs, computes their losses, and generates text from `inputs_embeds`.

Shapes: R rows, T positions, t supervised positions, W width, V vocabulary.
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

from osm.errors import OsmError
from osm.files import read_json
from osm.models.fast_llama import FastLlama, ends_padded, fast_llama
from osm.models.gguf_reading import quick_gguf
from osm.models.llm_forward import (
    LlmInputs,
    llm_config,
    llm_support,
    positions,
    read_prefix,
    read_tokens,
    word_embeddings,
)
from osm.models.model_config import LlmConfig
from osm.models.quantize import check_works, keep_gradients, loading_options, quantization_config, told_plainly
from osm.models.weights import (
    Found,
    candidates,
    check_attention_scale,
    conversion_folder,
    converted,
    files_of,
    from_pretrained_options,
    load_first,
    model_options,
)
from osm.quiet import quiet_gguf

# transformers imports these packages if they are installed. Only quantized weights need one of them (torchao).
_UNUSED = ("scipy", "sklearn", "torchao")


def load_llm(config: LlmConfig) -> tuple[nn.Module, Any, LlmConfig]:
    """Load a causal LM and its tokenizer from the first source that has the model.

    Returns:
        (model, tokenizer, config). The model is in eval mode, in float32 or quantized according to
        `config.quantization`. In the returned config, `source` is the source that was used.

    Raises:
        OsmError: the name is empty, or no source has the model.
    """
    if not config.name:
        raise OsmError("model.llm.name is empty: expected a folder, a hub id or a .gguf file")
    bits = quantization_config(config.quantization)
    found, (llm, tokenizer) = load_first(config.name, config.source, partial(_load, config=config, bits=bits))
    if bits is not None:
        keep_gradients(llm)
        check_works(llm, config.quantization)
    llm.weight_files = files_of(found)
    return llm.eval(), tokenizer, replace(config, source=found.source)


def _load(found: Found, config: LlmConfig, bits: Any) -> tuple[nn.Module, Any]:
    location = found.location
    if location.endswith(".gguf"):
        location = str(converted(Path(location), lambda folder: _convert_gguf(Path(location), folder)))
    elif found.source == "folder" and Path(location).is_file():
        raise OsmError(f"model.llm.name {location!r}: expected a folder or a .gguf file")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = from_pretrained_options(found)
    with told_plainly(config.quantization) if bits is not None else contextlib.nullcontext():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location, output_loading_info=True, **model_options(found), **loading_options(bits)
        )
    llm, info = loaded  # `output_loading_info` makes `from_pretrained` return a pair
    check_complete(info, location)
    return llm, AutoTokenizer.from_pretrained(location, **options)


def unused_packages(config: LlmConfig) -> tuple[str, ...]:
    """Return the packages that transformers imports if they are installed, but does not need to load and run this LLM.

    transformers needs accelerate to read GGUF files, and torchao for quantized weights.
    """
    found = next(candidates(config.name, config.source), None) if config.name else None
    if config.quantization or found is None:
        return ()
    if found.location.endswith(".gguf"):
        converted_before = conversion_folder(Path(found.location)).is_dir()
        return (*_UNUSED, "accelerate") if converted_before else _UNUSED
    file = Path(found.location) / "config.json"
    document = read_json(file, "model.llm.name")[0] if file.is_file() else None
    plain = isinstance(document, dict) and "quantization_config" not in document
    return (*_UNUSED, "accelerate") if plain else ()


def check_complete(info: dict[str, Any], location: str) -> None:
    """Raise OsmError if weights are missing. transformers would only warn and initialize these weights randomly."""
    if info["missing_keys"]:
        raise OsmError(
            f"the weights at {location} are missing {len(info['missing_keys'])} entries, beginning with "
            f"{sorted(info['missing_keys'])[0]}"
        )


def _convert_gguf(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_gguf(), quick_gguf():
        llm: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    check_attention_scale(llm.config, path)
    # The weights are already dequantized, but transformers refuses to save a model that has quantization attributes.
    llm.hf_quantizer = None
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def token_losses(
    llm: nn.Module, inputs: LlmInputs, labels_RT: Tensor, scored: bool = False, smoothing: float = 0.0
) -> tuple[Tensor, ...]:
    """Compute the next-token cross entropy of each row, summed over the supervised tokens.

    Args:
        labels_RT: token ids, with -100 at positions that are not supervised.
        smoothing: the share of the target that is distributed evenly over all tokens.

    Returns:
        the summed cross entropy (R,) in float32 and the number of supervised tokens (R,). With `scored`, also whether
        every supervised token has the highest logit (R,), so that greedy search would generate exactly these tokens.
    """
    fast = None if inputs.gated_kv else fast_llama(llm, inputs.embeds_RTW)
    if fast is not None and ends_padded(inputs.mask_RT):
        return _fast_losses(fast, inputs, labels_RT, scored, smoothing)
    logits_RtV, targets_Rt = _supervised_logits(llm, inputs, labels_RT)
    # Flattened, because a transposed copy of the logits, which cross_entropy needs otherwise, takes long on a CPU.
    losses_Rt = _cross_entropy(logits_RtV.float().flatten(0, 1), targets_Rt.flatten(), smoothing).view_as(targets_Rt)
    supervised_Rt = targets_Rt != -100
    found = losses_Rt.sum(1), supervised_Rt.sum(1)
    return (*found, ((logits_RtV.argmax(2) == targets_Rt) | ~supervised_Rt).all(1)) if scored else found


def _cross_entropy(logits_nV: Tensor, targets_n: Tensor, smoothing: float) -> Tensor:
    """Return the cross entropy (n,), which is 0 where the target is -100."""
    return F.cross_entropy(logits_nV, targets_n, ignore_index=-100, reduction="none", label_smoothing=smoothing)


def _fast_losses(
    fast: FastLlama, inputs: LlmInputs, labels_RT: Tensor, scored: bool, smoothing: float
) -> tuple[Tensor, ...]:
    """Compute `token_losses`. Of all logits, only those of the n supervised tokens are computed."""
    supervised_RT = F.pad(labels_RT[:, 1:] != -100, (0, 1))
    targets_n = labels_RT.roll(-1, 1)[supervised_RT]
    row_n = supervised_RT.nonzero()[:, 0]
    counts_R = supervised_RT.sum(1)
    wanted_RT = supervised_RT
    if not len(row_n):  # the LM head needs at least one position
        wanted_RT = torch.zeros_like(supervised_RT).index_fill(1, torch.tensor(0), True)
    logits_nV = fast.logits_at(inputs.embeds_RTW, inputs.mask_RT, wanted_RT, inputs.constant)
    losses_n = _cross_entropy(logits_nV[: len(row_n)], targets_n, smoothing)
    losses_R = logits_nV.new_zeros(len(labels_RT)).index_add(0, row_n, losses_n)
    if not scored:
        return losses_R, counts_R
    right_n = logits_nV[: len(row_n)].argmax(1) == targets_n
    return losses_R, counts_R, counts_R == torch.zeros_like(counts_R).index_add(0, row_n, right_n.long())


def _supervised_logits(llm: nn.Module, inputs: LlmInputs, labels_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (R, t, V) and targets (R, t) at the t positions where at least one row is supervised."""
    targets_RT = labels_RT[:, 1:]
    # The LM head is the most expensive layer of a small LLM, so it runs at supervised positions only.
    # If no position is supervised, the LM head runs at a single position.
    columns_t = (targets_RT != -100).any(0).nonzero().flatten()
    if len(columns_t) == 0:
        columns_t = columns_t.new_zeros(1)
    accepted = inspect.signature(llm.forward).parameters
    mask_RT = inputs.mask_RT
    kwargs: dict[str, Any] = {"position_ids": positions(mask_RT)} if "position_ids" in accepted else {}
    if "logits_to_keep" in accepted:
        kwargs["logits_to_keep"] = columns_t
    with inputs.conditioned():
        logits = llm(inputs_embeds=inputs.embeds_RTW, attention_mask=mask_RT, use_cache=False, **kwargs).logits
    if logits.shape[1] != len(columns_t):
        logits = logits[:, columns_t]
    return logits, targets_RT[:, columns_t]


def stop_ids(llm: nn.Module) -> list[int]:
    """Return the token ids that end a name: the LLM's EOS tokens and, as in the published model, token id 0.

    Token id 0 does not end a name if it is an ordinary token of the tokenizer (see `use_tokenizer`).
    """
    generation_config: Any = llm.generation_config
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None:
        eos = llm_config(llm).eos_token_id
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return list(dict.fromkeys([*ids, 0] if getattr(llm, "osm_zero_ends_names", True) else ids))


def use_tokenizer(llm: nn.Module, tokenizer: Any, name: str) -> None:
    """Make an LLM and its tokenizer use the same padding and EOS tokens.

    The tokenizer's EOS token ends a generated name regardless of the LLM's config, because training texts end with this
    token. Token id 0 also ends a name if it is a special token of the tokenizer. In the published model, token id 0 is
    `<unk>`, but in some other models it is the ordinary token `!`.

    Raises:
        OsmError: the LLM has no embedding for the tokenizer's start or end token.
    """
    known = word_embeddings(llm).num_embeddings
    for which in ("bos", "eos", "pad"):
        token, number = getattr(tokenizer, f"{which}_token"), getattr(tokenizer, f"{which}_token_id")
        if number is None or number < known:
            continue
        if which != "pad":
            raise OsmError(
                f"model.llm.name {name!r}: the tokenizer's {which} token {token!r} has the id {number}, but the LLM "
                f"has {known} embeddings (ids 0 to {known - 1}); resize the LLM's embeddings, or use the tokenizer "
                "that the LLM was trained with"
            )
        # No token attends to padding, so any token can serve as the padding token.
        tokenizer.pad_token = tokenizer.eos_token
    generator: Any = llm  # has the attributes of transformers' GenerationMixin
    if generator.generation_config is None:
        from transformers import GenerationConfig

        generator.generation_config = GenerationConfig()
    generator.osm_zero_ends_names = 0 in special_ids(tokenizer)
    if tokenizer.eos_token_id is not None:
        ends = [tokenizer.eos_token_id, *(i for i in stop_ids(llm) if i != 0)]
        generator.generation_config.eos_token_id = list(dict.fromkeys(ends))


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of all special tokens of a tokenizer, including the start, end, padding and unknown tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def generate(llm: nn.Module, inputs: LlmInputs, **options: Any) -> Any:
    """Generate token ids from embeddings, with greedy search by default.

    Rows may be padded anywhere. All padding is moved to the left, because transformers' `generate` requires it.

    Args:
        options: fields of transformers' `GenerationConfig`.

    Returns:
        the result of `llm.generate`: the new ids (R, new), or a ModelOutput with `return_dict_in_generate=True`.

    Raises:
        OsmError: an option requires transformers' `generate`, which is not correct for this LLM (`LlmSupport.generate`
            is False).
    """
    stop, pad = stop_ids(llm), llm_config(llm).pad_token_id
    ends = {"eos_token_id": stop, "pad_token_id": (stop or [0])[0] if pad is None or pad < 0 else pad}
    if not llm_support(llm).generate:
        return _greedy(llm, inputs, {**ends, **options})
    embeds_RTW, mask_RT = inputs.embeds_RTW, inputs.mask_RT
    if not mask_RT.all():
        order_RT = mask_RT.long().argsort(dim=1, stable=True)
        embeds_RTW = embeds_RTW.gather(1, order_RT[..., None].expand_as(embeds_RTW))
        mask_RT = mask_RT.gather(1, order_RT)
    settings: dict[str, Any] = {
        # Fields that the LLM's own generation config may set are reset to the values for greedy search.
        **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0},
        "bos_token_id": llm_config(llm).bos_token_id,
        **ends,
        **options,
    }
    from transformers import GenerationConfig

    with inputs.conditioned():
        generator: Any = llm
        return generator.generate(
            inputs_embeds=embeds_RTW, attention_mask=mask_RT, generation_config=GenerationConfig(**settings)
        )


_GREEDY = {"do_sample": False, "num_beams": 1, "cache_implementation": None}
_OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits")


def _greedy(llm: nn.Module, inputs: LlmInputs, options: dict[str, Any]) -> Any:
    """Run greedy search without transformers' `generate`.

    Rows of equal length are batched together, so no padding is needed.
    """
    stop, pad = options.pop("eos_token_id"), options.pop("pad_token_id")
    stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    wanted = {name: bool(options.pop(name, False)) for name in _OUTPUTS}
    steps = options.pop("max_new_tokens", 20)
    for name, value in options.items():
        if name not in _GREEDY or value != _GREEDY[name]:
            raise OsmError(
                f"generate: {name}={value!r} is not supported: this option needs transformers' generate(), which "
                f"returns wrong results for {type(llm).__name__} with inputs_embeds; only greedy search "
                "(max_new_tokens, eos_token_id) is available"
            )
    lengths_R = inputs.mask_RT.sum(1)
    groups, states, rows = [], [], len(inputs)
    logits_RV: Tensor | None = None
    for length in lengths_R.unique().tolist():
        group = (lengths_R == length).nonzero().flatten()
        part = inputs.select(group)
        embeds_RTW = part.embeds_RTW[part.mask_RT.bool().to(part.embeds_RTW.device)].view(len(group), length, -1)
        mask_RT = embeds_RTW.new_ones(embeds_RTW.shape[:2]).long()
        found_RV, state = read_prefix(llm, LlmInputs(embeds_RTW, mask_RT, part.gated_kv))
        logits_RV = found_RV.new_empty(rows, found_RV.shape[-1]) if logits_RV is None else logits_RV
        logits_RV[group] = found_RV
        groups.append(group)
        states.append(state)
    assert logits_RV is not None
    ids: list[Tensor] = []
    all_logits: list[Tensor] = []
    ended_R = torch.zeros(rows, dtype=torch.bool, device=logits_RV.device)
    for step in range(steps):
        if step:
            for place, group in enumerate(groups):
                logits_RV[group], states[place] = read_tokens(llm, ids[-1][group, None].tolist(), states[place])
        all_logits.append(logits_RV.clone())
        ids.append(logits_RV.argmax(-1).masked_fill(ended_R, pad))
        ended_R |= torch.isin(ids[-1], torch.tensor(stop, device=logits_RV.device, dtype=torch.long))
        if ended_R.all():
            break
    sequences_RT = torch.stack(ids, 1)
    if not wanted["return_dict_in_generate"]:
        return sequences_RT
    scores, raw = (tuple(all_logits) if wanted[name] else None for name in ("output_scores", "output_logits"))
    from transformers.generation import GenerateDecoderOnlyOutput

    outputs: dict[str, Any] = {"sequences": sequences_RT, "scores": scores, "logits": raw}
    return GenerateDecoderOnlyOutput(**outputs)
