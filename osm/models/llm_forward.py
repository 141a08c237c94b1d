"""Runs an LLM on embeddings: on a whole prefix first, then token by token, with the LLM's cache where it has one.

A cache holds keys and values of attention, recurrent states of a state-space model, or both. The name of the cache
argument of `forward` differs between models and between versions of transformers, so it is looked up in the signature.
An LLM without a usable cache (see `osm.models.self_check`) recomputes all earlier positions at every step.

Shapes: R rows, T positions, W width, V vocabulary.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Newest first. transformers 5.40 removes `past_key_values`, and some models silently accept a wrong name in `**kwargs`.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def positions(mask: Tensor) -> Tensor:
    """Return position ids (R, T) that skip padding, so that padding on either side does not change the result."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class LlmInputs:
    """The input of an LLM.

    Attributes:
        embeds_RTW: embeddings of prefix and text.
        mask_RT: 1 at embeddings of the row, 0 at padding.
        gated_kv: keys and values for the gated layers in the LLM; None without such layers.
    """

    embeds_RTW: Tensor
    mask_RT: Tensor
    gated_kv: GatedKeyValues | None = None

    def conditioned(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the LLM's gated layers attend to `gated_kv`; run the LLM inside it."""
        return self.gated_kv or contextlib.nullcontext()

    def select(self, rows: Tensor) -> LlmInputs:
        """Select rows in this order; a row may be repeated."""
        gated_kv = None if self.gated_kv is None else self.gated_kv.select(rows)
        return LlmInputs(
            self.embeds_RTW[rows.to(self.embeds_RTW.device)], self.mask_RT[rows.to(self.mask_RT.device)], gated_kv
        )

    def __len__(self) -> int:
        return len(self.embeds_RTW)


@dataclass(frozen=True)
class LlmSupport:
    """The optimizations of an LLM that give the same result as the plain computation (see `osm.models.self_check`).

    Attributes:
        cache: the LLM's cache is correct. If False, each step recomputes all earlier positions: correct, but slow.
        chunks: the cache is correct when several tokens are added at once. If False, tokens are added one by one.
        generate: transformers' `generate` is correct for embeddings of rows with padding on the left. If False, a
            greedy loop of this package is used.
    """

    cache: bool = True
    chunks: bool = True
    generate: bool = True


def llm_support(llm: nn.Module) -> LlmSupport:
    """Return what `set_llm_support` stored for this LLM; an LLM that was not checked supports everything."""
    return getattr(llm, "osm_support", LlmSupport())


def set_llm_support(llm: nn.Module, support: LlmSupport) -> None:
    """Store on the LLM which optimizations it supports."""
    vars(llm)["osm_support"] = support


def word_embeddings(llm: nn.Module) -> nn.Embedding:
    """Return the input embeddings of a Hugging Face LLM."""
    return cast("PreTrainedModel", llm).get_input_embeddings()  # type: ignore[return-value]


def llm_config(llm: nn.Module) -> Any:
    """Return the Hugging Face config of an LLM, whose fields differ between LLM classes."""
    return llm.config


def cache_argument(llm: nn.Module) -> str | None:
    """Return the name of the cache argument of the LLM's `forward`, or None if it has none."""
    accepted = inspect.signature(llm.forward).parameters
    return next((name for name in CACHE_NAMES if name in accepted), None)


@dataclass(frozen=True)
class DecodingState:
    """The state of decoding after some positions.

    Attributes:
        cache: the LLM's cache; None if each step recomputes all positions.
        embeds_RTW: all embeddings so far; None with a cache.
        gated_kv: keys and values for the gated layers in the LLM; None without such layers.
        device: the device for token ids.
        length: the number of positions so far.
    """

    cache: Any
    embeds_RTW: Tensor | None
    gated_kv: GatedKeyValues | None
    device: torch.device
    length: int

    def keep(self, rows: Sequence[int]) -> DecodingState:
        """Select rows, which may repeat. The cache is changed in place: do not use the old state afterwards."""
        index = torch.tensor(list(rows), device=self.device)
        if self.cache is not None:
            select_rows(self.cache, index)
        embeds = None if self.embeds_RTW is None else self.embeds_RTW[index.to(self.embeds_RTW.device)]
        return replace(self, embeds_RTW=embeds, gated_kv=self.gated_kv and self.gated_kv.select(index))

    def copied(self, rows: Sequence[int]) -> DecodingState:
        """Select rows, which may repeat. The old state stays valid."""
        return replace(self, cache=None if self.cache is None else copied_cache(self.cache)).keep(rows)


def read_prefix(llm: nn.Module, inputs: LlmInputs) -> tuple[Tensor, DecodingState]:
    """Run the LLM on prefixes of equal length, without padding.

    Returns:
        float32 logits (R, V) after the last position, and the state for `read_tokens`.
    """
    embeds_RTW, name = inputs.embeds_RTW, cache_argument(llm)
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
    """Run the LLM on further tokens, equally many in each row.

    Args:
        ids: the token ids of each row.
        state: must not be used afterwards, because the cache grows in place.

    Returns:
        float32 logits (R, V) after the last token, or (R, n, V) after each of the n tokens with `every_position`; and
        the new state.
    """
    tokens_RT = torch.tensor([list(row) for row in ids], device=state.device)
    if state.embeds_RTW is None and tokens_RT.shape[1] > 1 and not llm_support(llm).chunks:
        each = []
        for column in tokens_RT.split(1, dim=1):
            logits, state = read_tokens(llm, column.tolist(), state)
            each.append(logits)
        return (torch.stack(each, 1) if every_position else each[-1]), state
    given: dict[str, Any] = _keeping(llm, tokens_RT.shape[1] if every_position else 1)
    if state.embeds_RTW is None:
        given |= {"input_ids": tokens_RT, "use_cache": True, str(cache_argument(llm)): state.cache}
        if "position_ids" in inspect.signature(llm.forward).parameters:  # not every LLM infers positions from its cache
            places = torch.arange(state.length, state.length + tokens_RT.shape[1], device=state.device)
            given["position_ids"] = places.expand(len(tokens_RT), -1)
    else:
        words_RTW = word_embeddings(llm)(tokens_RT).to(state.embeds_RTW)
        state = replace(state, embeds_RTW=torch.cat([state.embeds_RTW, words_RTW], 1))
        given |= {"inputs_embeds": state.embeds_RTW, "use_cache": False}
    with state.gated_kv or contextlib.nullcontext():
        logits = llm(**given).logits[:, -tokens_RT.shape[1] :].float()
    state = replace(state, length=state.length + tokens_RT.shape[1])
    return (logits if every_position else logits[:, -1]), state


def _keeping(llm: nn.Module, count: int) -> dict[str, Any]:
    """Return the argument that limits the costly LM head to the last positions, if the LLM's `forward` has it."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(llm.forward).parameters else {}


def _cache_of(out: Any, name: str) -> Any:
    """Return the cache in an LLM's output. It is looked up by key because deprecated attributes warn on access."""
    found = next((vars(out)[key] for key in (name, *CACHE_NAMES) if vars(out).get(key) is not None), None)
    if found is None:
        raise OsmError(f"{type(out).__name__}: the LLM returned no cache (none of {', '.join(CACHE_NAMES)})")
    return found


def select_rows(cache: Any, rows: Tensor) -> None:
    """Select rows of a cache in place. Rows may repeat, so the batch may grow or shrink; layers may be on any device.

    We use `reorder_cache` because it is the only method that caches of keys and values and of recurrent states share;
    it also accepts an index that is longer or shorter than the batch.

    Raises:
        OsmError: the cache has no `reorder_cache`.
    """
    if not hasattr(cache, "reorder_cache"):
        raise OsmError(
            f"the LLM's cache ({type(cache).__name__}) cannot select rows; with model.llm.self_check: true "
            "names are decoded without it"
        )
    cache.reorder_cache(rows)


def copied_cache(cache: Any) -> Any:
    """Return a copy of a cache that can be changed by `select_rows` without affecting the original.

    Selecting rows creates new tensors, so only the containers (dicts, lists, sets) are copied, not the tensors.
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
