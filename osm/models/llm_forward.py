"""Runs an LLM on embeddings: first on the whole prefix, then token by token, with the LLM's cache if possible.

A cache holds attention keys and values, recurrent states of a state-space model, or both. The name of the cache
argument of `forward` depends on the model and on the version of transformers, so it is looked up in the signature. For
an LLM without a usable cache (see `osm.models.self_check`), all earlier positions are recomputed at every step.

Shapes: R rows, K selected rows, T positions, W width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges.gated import GatedKeyValues
from osm.models.fast_llama import KeyValues, fast_llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The newest name comes first, because some models silently accept an outdated argument name in `**kwargs`.
# transformers 5.40 removes `past_key_values`.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def positions(mask_RT: Tensor) -> Tensor:
    """Return position ids (R, T) that skip padding, so that padding on either side does not change the results."""
    return (mask_RT.long().cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class LlmInputs:
    """A batch of inputs for an LLM.

    Attributes:
        embeds_RTW: the embeddings of prefix and text.
        mask_RT: 1 at the row's own embeddings, 0 at padding.
        gated_kv: keys and values for the gated layers in the LLM, or None if the LLM has no gated layers.
        constant: the number of positions at the beginning of each row that need no gradient, such as those of a prompt.
        certainty_R: how certain the bridge is of the name that the LLM reads, among the allowed names; None without
            known names.
        overall_R: how certain the bridge is of the same name among all names; None without known names.
    """

    embeds_RTW: Tensor
    mask_RT: Tensor
    gated_kv: GatedKeyValues | None = None
    constant: int = 0
    certainty_R: Tensor | None = None
    overall_R: Tensor | None = None

    @property
    def certain(self) -> list[float]:
        """How certain the bridge is of each row's name, among the allowed names: 1 in a model without known names."""
        return [1.0] * len(self) if self.certainty_R is None else self.certainty_R.tolist()

    @property
    def overall(self) -> list[float]:
        """How certain the bridge is of each row's name, among all names: 1 in a model without known names."""
        return [1.0] * len(self) if self.overall_R is None else self.overall_R.tolist()

    def conditioned(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager that makes the LLM's gated layers attend to `gated_kv`."""
        return self.gated_kv or contextlib.nullcontext()

    def select(self, rows_K: Tensor) -> LlmInputs:
        """Return the inputs of the rows with the given indices, in that order. Indices may repeat."""
        gated_kv = None if self.gated_kv is None else self.gated_kv.select(rows_K)
        certainty_K, overall_K = (
            None if each is None else each[rows_K.to(each.device)] for each in (self.certainty_R, self.overall_R)
        )
        embeds_KTW = self.embeds_RTW[rows_K.to(self.embeds_RTW.device)]
        mask_KT = self.mask_RT[rows_K.to(self.mask_RT.device)]
        return LlmInputs(embeds_KTW, mask_KT, gated_kv, self.constant, certainty_K, overall_K)

    def __len__(self) -> int:
        return len(self.embeds_RTW)


@dataclass(frozen=True)
class LlmSupport:
    """Records which optimizations give the same results as plain computation for an LLM (see `osm.models.self_check`).

    Attributes:
        cache: whether the LLM's cache is correct. If False, each step recomputes all earlier positions, which is
            correct but slow.
        chunks: whether the cache is correct if several tokens are added at once. If False, tokens are added one by
            one.
        generate: whether transformers' `generate` is correct for embeddings with padding on the left. If False, this
            package's greedy search is used.
    """

    cache: bool = True
    chunks: bool = True
    generate: bool = True


def llm_support(llm: nn.Module) -> LlmSupport:
    """Return the `LlmSupport` of an LLM. An unchecked LLM is assumed to support all optimizations."""
    return getattr(llm, "osm_support", LlmSupport())


def set_llm_support(llm: nn.Module, support: LlmSupport) -> None:
    """Record an LLM's supported optimizations as an attribute of the LLM."""
    vars(llm)["osm_support"] = support


def word_embeddings(llm: nn.Module) -> nn.Embedding:
    """Return the input embeddings of a Hugging Face LLM."""
    return cast("PreTrainedModel", llm).get_input_embeddings()  # type: ignore[return-value]


def llm_config(llm: nn.Module) -> Any:
    """Return an LLM's Hugging Face config, whose fields depend on the class of the LLM."""
    return llm.config


def cache_argument(llm: nn.Module) -> str | None:
    """Return the name of the cache argument of the LLM's `forward`, or None if there is no such argument."""
    accepted = inspect.signature(llm.forward).parameters
    return next((name for name in CACHE_NAMES if name in accepted), None)


@dataclass(frozen=True)
class DecodingState:
    """The decoding state after all positions that the LLM has processed.

    Attributes:
        cache: the LLM's cache, or None if each step recomputes all positions.
        embeds_RTW: all embeddings so far, or None if the LLM has a cache.
        gated_kv: keys and values for the gated layers in the LLM, or None if the LLM has no gated layers.
        device: the device for token ids.
        length: the number of positions so far.
    """

    cache: Any
    embeds_RTW: Tensor | None
    gated_kv: GatedKeyValues | None
    device: torch.device
    length: int

    def keep(self, rows: Sequence[int]) -> DecodingState:
        """Select rows (indices may repeat). The old state becomes invalid, because its cache is modified in place."""
        rows_K = torch.tensor(list(rows), device=self.device)
        if self.cache is not None:
            select_rows(self.cache, rows_K)
        embeds_KTW = None if self.embeds_RTW is None else self.embeds_RTW[rows_K.to(self.embeds_RTW.device)]
        return replace(self, embeds_RTW=embeds_KTW, gated_kv=self.gated_kv and self.gated_kv.select(rows_K))

    def copied(self, rows: Sequence[int]) -> DecodingState:
        """Return a copy of the state with the selected rows. The old state remains valid, and indices may repeat."""
        if isinstance(self.cache, KeyValues):
            return replace(self, cache=self.cache.selected(torch.tensor(list(rows), device=self.device)))
        return replace(self, cache=None if self.cache is None else copied_cache(self.cache)).keep(rows)


def read_prefix(llm: nn.Module, inputs: LlmInputs) -> tuple[Tensor, DecodingState]:
    """Run the LLM on prefixes of equal length, which need no padding.

    Returns:
        float32 logits (R, V) after the last position, and the decoding state for `read_tokens`.
    """
    embeds_RTW, name = inputs.embeds_RTW, cache_argument(llm)
    graded = torch.is_grad_enabled() and embeds_RTW.requires_grad  # its cache is changed in place
    fast = None if inputs.gated_kv or graded else fast_llama(llm, embeds_RTW)
    if fast is not None:
        logits_RV, keys_values = fast.read_prefix(embeds_RTW)
        return logits_RV, DecodingState(keys_values, None, None, embeds_RTW.device, embeds_RTW.shape[1])
    cached = name is not None and llm_support(llm).cache
    with inputs.conditioned():
        out = llm(inputs_embeds=embeds_RTW, use_cache=cached, **_keeping(llm, 1))
    cache = _cache_of(out, str(name)) if cached else None
    state = DecodingState(
        cache, None if cached else embeds_RTW, inputs.gated_kv, embeds_RTW.device, embeds_RTW.shape[1]
    )
    return out.logits[:, -1].float(), state


def read_tokens(
    llm: nn.Module, ids: Sequence[Sequence[int]], state: DecodingState, every_position: bool = False
) -> tuple[Tensor, DecodingState]:
    """Run the LLM on more tokens, continuing from a decoding state.

    All rows must have the same number of tokens.

    Args:
        ids: the token ids of each row.
        state: the decoding state. It must not be used afterwards, because its cache grows in place.

    Returns:
        (logits, new state). The logits are float32: (R, V) after the last token or, with `every_position`, (R, n, V)
        after each of the n tokens.
    """
    tokens_RT = torch.tensor([list(row) for row in ids], device=state.device)
    if isinstance(state.cache, KeyValues):
        fast = fast_llama(llm)
        assert fast is not None
        logits = fast.read_tokens(tokens_RT, state.cache, every_position)
        return logits, replace(state, length=state.length + tokens_RT.shape[1])
    if state.embeds_RTW is None and tokens_RT.shape[1] > 1 and not llm_support(llm).chunks:
        each = []
        for column_R1 in tokens_RT.split(1, dim=1):
            logits_RV, state = read_tokens(llm, column_R1.tolist(), state)
            each.append(logits_RV)
        return (torch.stack(each, 1) if every_position else each[-1]), state
    given: dict[str, Any] = _keeping(llm, tokens_RT.shape[1] if every_position else 1)
    if state.embeds_RTW is None:
        given |= {"input_ids": tokens_RT, "use_cache": True, str(cache_argument(llm)): state.cache}
        if "position_ids" in inspect.signature(llm.forward).parameters:  # some LLMs infer no positions from a cache
            places_T = torch.arange(state.length, state.length + tokens_RT.shape[1], device=state.device)
            given["position_ids"] = places_T.expand(len(tokens_RT), -1)
    else:
        words_RTW = word_embeddings(llm)(tokens_RT).to(state.embeds_RTW)
        state = replace(state, embeds_RTW=torch.cat([state.embeds_RTW, words_RTW], 1))
        given |= {"inputs_embeds": state.embeds_RTW, "use_cache": False}
    with state.gated_kv or contextlib.nullcontext():
        logits_RTV = llm(**given).logits[:, -tokens_RT.shape[1] :].float()
    state = replace(state, length=state.length + tokens_RT.shape[1])
    return (logits_RTV if every_position else logits_RTV[:, -1]), state


def _keeping(llm: nn.Module, count: int) -> dict[str, Any]:
    """Return the `forward` argument that restricts the costly LM head to the last positions, or {} if unsupported."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(llm.forward).parameters else {}


def _cache_of(out: Any, name: str) -> Any:
    """Return the cache in an LLM's output.

    The cache is looked up in the output's `__dict__`, because accessing a deprecated attribute emits a warning.
    """
    found = next((vars(out)[key] for key in (name, *CACHE_NAMES) if vars(out).get(key) is not None), None)
    if found is None:
        raise OsmError(
            f"{type(out).__name__}: the LLM's output contains no cache; expected one of the attributes "
            f"{', '.join(CACHE_NAMES)}"
        )
    return found


def select_rows(cache: Any, rows_K: Tensor) -> None:
    """Select rows of a cache in place. The cache's layers may be on different devices.

    A row index may be repeated or omitted, so the batch may grow or shrink. `reorder_cache` is used because it is the
    only method that both key-value caches and recurrent-state caches have. `reorder_cache` also accepts index tensors
    that are longer or shorter than the batch.

    Raises:
        OsmError: the cache has no `reorder_cache`.
    """
    if not hasattr(cache, "reorder_cache"):
        raise OsmError(
            f"the LLM's cache ({type(cache).__name__}) does not support row selection; set model.llm.self_check to "
            "true to decode without the cache"
        )
    cache.reorder_cache(rows_K)


def copied_cache(cache: Any) -> Any:
    """Copy a cache, so that `select_rows` can change the copy without affecting the original.

    Only the containers (dicts, lists, sets) are copied, not the tensors, because selecting rows creates new tensors.
    """
    if not hasattr(cache, "layers"):
        return copy.deepcopy(cache)
    new = _with_own_containers(cache)
    new.layers = [_with_own_containers(layer) for layer in cache.layers]
    return new


def _with_own_containers(holder: Any) -> Any:
    new = copy.copy(holder)
    for name, value in vars(holder).items():
        if isinstance(value, (dict, list, set)):
            setattr(new, name, copy.copy(value))
    return new
