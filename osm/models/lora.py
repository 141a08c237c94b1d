"""LoRA on the frozen LLM, through peft (`pip install 'osm-recognition[lora]'`), put into its own modules in place.

What it trains is kept apart from the LLM's weights: by name in checkpoints (`lora.*`), and in float32.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from osm.errors import OsmError
from osm.models.bridges.gated import decoder_layers
from osm.models.model_config import LoraConfig

_MARK = ".lora_"


def add_lora(llm: nn.Module, config: LoraConfig) -> None:
    """Adds trainable low-rank changes that start as none.

    Raises:
        OsmError: peft is not installed, or the LLM has no such matrices.
    """
    try:
        import peft
    except ImportError:
        raise OsmError(
            "model.lora.rank: LoRA needs the package peft: pip install 'osm-recognition[lora]', or set it to 0"
        ) from None
    linear = {
        name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    unknown = [target for target in config.targets if target not in linear]
    if unknown:
        raise OsmError(
            f"model.lora.targets: {unknown[0]!r} is no linear layer of this LLM; it has {', '.join(sorted(linear))}"
        )
    given = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
    )
    try:
        peft.inject_adapter_in_model(given, llm)
    except (ValueError, ImportError) as error:
        raise OsmError(f"model.lora.targets {list(config.targets)}: {error}") from None
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_(_MARK in name)
    keep_precise(llm)
    if not config.targets:
        _report_left_out(llm)


def _report_left_out(llm: nn.Module) -> None:
    """Warns where "all linear layers" leaves out much of the LLM, such as experts that are no linear layers."""
    layers = nn.ModuleList(decoder_layers(llm))
    own = {name: p.numel() for name, p in layers.named_parameters() if p.ndim > 1 and _MARK not in name}
    left = {name: size for name, size in own.items() if ".base_layer." not in name}
    share = sum(left.values()) / max(1, sum(own.values()))
    if share > 0.1:
        largest = max(left, key=lambda name: left[name])
        warnings.warn(
            f"model.lora: {share:.0%} of the values in the LLM's layers are in no linear layer that LoRA changes, most "
            f"in {largest}; they stay as they are",
            stacklevel=4,
        )


def lora_parameters(llm: nn.Module) -> dict[str, nn.Parameter]:
    """What LoRA trains, by name; empty without it."""
    return {name: parameter for name, parameter in llm.named_parameters() if _MARK in name}


def keep_precise(llm: nn.Module) -> None:
    """LoRA's values in float32, whatever the LLM's own are: they are trained."""
    for parameter in lora_parameters(llm).values():
        parameter.data = parameter.data.float()


def train_dropout(llm: nn.Module, mode: bool) -> None:
    """LoRA's dropout is on in training, although the LLM around it stays in eval mode."""
    for name, module in llm.named_modules():
        if name.endswith("lora_dropout"):
            module.train(mode)


def without_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LLM's own entries under its own names."""
    # Fused experts are wrapped once for each of their tensors, so that the mark may stand there several times.
    return {re.sub(r"(\.base_layer)+\.", ".", name): value for name, value in state.items() if _MARK not in name}


def _fits_rank(size: int, rank: int, name: str) -> bool:
    """Fused experts have a change of that rank each, side by side."""
    return size == rank or (".experts." in name and size > 0 and size % rank == 0)


def blank(state: Mapping[str, Tensor], rank: int, where: str) -> dict[str, Tensor]:
    """Names and shapes of a checkpoint's LoRA entries (`lora.*`), as far as they tell without the LLM.

    Raises:
        OsmError: entries of another rank, of half a pair, or none although there should be some.
    """
    found = {name: value for name, value in state.items() if name.startswith("lora.")}
    if bool(found) != bool(rank):
        raise OsmError(f"{where} has {len(found)} entries of LoRA, its config has model.lora.rank {rank}")
    for name, value in found.items():
        axis = 0 if "lora_A" in name else 1
        other = name.replace("lora_A", "lora_B") if axis == 0 else name.replace("lora_B", "lora_A")
        fits = isinstance(value, Tensor) and value.ndim == 2 and _fits_rank(value.shape[axis], rank, name)
        if not fits or _MARK not in name or other not in found:
            raise OsmError(f"{where}: {name} is no half of a change of rank {rank}")
    return {name: torch.empty(value.shape, device="meta") for name, value in found.items()}
