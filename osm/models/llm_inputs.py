"""What an LLM is given, and what is known about how it may be run.

Shapes: R rows, T positions, W width.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from osm.models.bridges.gated import GatedKeyValues


def positions(mask: Tensor) -> Tensor:
    """Position ids (R, T) that count seen tokens alone, so that padding on either side changes nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


@dataclass(frozen=True)
class LlmInputs:
    """What an LLM is given.

    Attributes:
        embeds_RTW: embeddings of prefix and text. mask_RT: 1 where a row has one.
        gated_kv: what its gated layers see, where there are any.
    """

    embeds_RTW: Tensor
    mask_RT: Tensor
    gated_kv: GatedKeyValues | None = None

    def conditioned(self) -> contextlib.AbstractContextManager[Any]:
        """The LLM runs within it."""
        return self.gated_kv or contextlib.nullcontext()

    def select(self, rows: Tensor) -> LlmInputs:
        """Some rows, in this order; they may repeat."""
        gated_kv = None if self.gated_kv is None else self.gated_kv.select(rows)
        return LlmInputs(
            self.embeds_RTW[rows.to(self.embeds_RTW.device)], self.mask_RT[rows.to(self.mask_RT.device)], gated_kv
        )

    def __len__(self) -> int:
        return len(self.embeds_RTW)


@dataclass(frozen=True)
class LlmSupport:
    """Which of an LLM's own shortcuts give what the plain computation gives (`osm.models.self_check` finds out).

    Attributes:
        cache: its cache; False = everything is read again at each step, which is right and slow.
        chunks: its cache with several tokens at a time; False = they are read one by one.
        generate: transformers' `generate`, from embeddings of rows that are padded on the left; False = a greedy loop
            of ours.
    """

    cache: bool = True
    chunks: bool = True
    generate: bool = True


def llm_support(llm: nn.Module) -> LlmSupport:
    """What was found out about an LLM; all is supported where nothing was."""
    return getattr(llm, "osm_support", LlmSupport())


def set_llm_support(llm: nn.Module, support: LlmSupport) -> None:
    """Keeps with the LLM what was found out about it."""
    llm.osm_support = support
