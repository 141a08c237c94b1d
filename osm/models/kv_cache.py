"""Reading a prefix once and then a token at a time, with whatever cache an LLM has, or with none.

A cache holds attention's keys and values, or the recurrent states of a state-space model, or both. Its name in
`forward` has changed between versions of transformers and differs between models, so it is looked up in the signature.
An LLM that has no cache, or none that may be used (see `osm.models.self_check`), reads all that came before at every
step.

Shapes: R rows, T positions, W width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges.gated import GatedKeyValues
from osm.models.llm_inputs import LlmInputs, llm_support

# Newest first. transformers 5.40 takes `past_key_values` away; some models swallow a wrong name in `**kwargs`.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def cache_argument(llm: nn.Module) -> str | None:
    """The name of the cache among the arguments of an LLM's `forward`; None where it takes none."""
    accepted = inspect.signature(llm.forward).parameters
    return next((name for name in CACHE_NAMES if name in accepted), None)


@dataclass(frozen=True)
class DecodingState:
    """What decoding continues from.

    Attributes:
        cache: the LLM's own; None where it reads everything again at each step.
        embeds_RTW: all embeddings so far; None with a cache.
        gated_kv: what the gated layers of the LLM attend to, where there are any.
        device: of token ids.
        length: how many positions were read.
    """

    cache: Any
    embeds_RTW: Tensor | None
    gated_kv: GatedKeyValues | None
    device: torch.device
    length: int

    def keep(self, rows: Sequence[int]) -> DecodingState:
        """Selects rows, which may repeat. The old state must not be used any more."""
        index = torch.tensor(list(rows), device=self.device)
        if self.cache is not None:
            select_rows(self.cache, index)
        embeds = None if self.embeds_RTW is None else self.embeds_RTW[index.to(self.embeds_RTW.device)]
        return replace(self, embeds_RTW=embeds, gated_kv=self.gated_kv and self.gated_kv.select(index))

    def copied(self, rows: Sequence[int]) -> DecodingState:
        """Selects rows, which may repeat. The old state stays as it is."""
        return replace(self, cache=None if self.cache is None else copied_cache(self.cache)).keep(rows)


def read_prefix(llm: nn.Module, inputs: LlmInputs) -> tuple[Tensor, DecodingState]:
    """Reads rows of one length, without padding.

    Returns:
        the logits (R, V) after them in float32, and the state that `read_tokens` takes.
    """
    embeds, name = inputs.embeds_RTW, cache_argument(llm)
    cached = name is not None and llm_support(llm).cache
    with inputs.conditioned():
        out = llm(inputs_embeds=embeds, use_cache=cached, **_keeping(llm, 1))
    cache = _cache_of(out, str(name)) if cached else None
    state = DecodingState(cache, None if cached else embeds, inputs.gated_kv, embeds.device, embeds.shape[1])
    return out.logits[:, -1].float(), state


def read_tokens(
    llm: nn.Module, ids: Sequence[Sequence[int]], state: DecodingState, every_position: bool = False
) -> tuple[Tensor, DecodingState]:
    """Reads the same number of further tokens in each row.

    Args:
        state: must not be used any more afterwards (a cache grows in place).

    Returns:
        float32 logits (R, V) after the last token, or with `every_position` (R, n, V) after each of them, and the state
        after them.
    """
    tokens = torch.tensor([list(row) for row in ids], device=state.device)
    if state.embeds_RTW is None and tokens.shape[1] > 1 and not llm_support(llm).chunks:
        each = []
        for column in tokens.split(1, dim=1):
            logits, state = read_tokens(llm, column.tolist(), state)
            each.append(logits)
        return (torch.stack(each, 1) if every_position else each[-1]), state
    given: dict[str, Any] = _keeping(llm, tokens.shape[1] if every_position else 1)
    if state.embeds_RTW is None:
        given |= {"input_ids": tokens, "use_cache": True, str(cache_argument(llm)): state.cache}
        if "position_ids" in inspect.signature(llm.forward).parameters:  # not every LLM asks its cache where it is
            places = torch.arange(state.length, state.length + tokens.shape[1], device=state.device)
            given["position_ids"] = places.expand(len(tokens), -1)
    else:
        words = llm.get_input_embeddings()(tokens).to(state.embeds_RTW)
        state = replace(state, embeds_RTW=torch.cat([state.embeds_RTW, words], 1))
        given |= {"inputs_embeds": state.embeds_RTW, "use_cache": False}
    with state.gated_kv or contextlib.nullcontext():
        logits = llm(**given).logits[:, -tokens.shape[1] :].float()
    state = replace(state, length=state.length + tokens.shape[1])
    return (logits if every_position else logits[:, -1]), state


def _keeping(llm: nn.Module, count: int) -> dict[str, Any]:
    """The LM head is costly: it runs at the last positions alone, where the LLM can do that."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(llm.forward).parameters else {}


def _cache_of(out: Any, name: str) -> Any:
    """The cache in an LLM's output. Looked up by key: the attributes of old names warn."""
    found = next((vars(out)[key] for key in (name, *CACHE_NAMES) if vars(out).get(key) is not None), None)
    if found is None:
        raise OsmError(f"{type(out).__name__}: the LLM returned no cache (none of {', '.join(CACHE_NAMES)})")
    return found


def select_rows(cache: Any, rows: Tensor) -> None:
    """Selects rows of a cache in place, on whichever device each layer lies; they may repeat, and be more or fewer.

    `reorder_cache` is the one method that layers of every kind have (keys and values, recurrent states, both), and an
    index of another length than the batch does what it says.

    Raises:
        OsmError: a cache without such a method.
    """
    if not hasattr(cache, "reorder_cache"):
        raise OsmError(
            f"the LLM's cache ({type(cache).__name__}) cannot select rows; with model.llm.self_check: true "
            "names are decoded without it"
        )
    cache.reorder_cache(rows)


def copied_cache(cache: Any) -> Any:
    """A cache that shares no state with the old one once rows of it were selected.

    Selecting makes new tensors, so tensors are not copied here; the dicts and lists that hold them are.
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
