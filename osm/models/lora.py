"""Adds LoRA to the frozen LLM in place, using the peft package (`pip install peft`).

LoRA's parameters are separate from the LLM's weights, stay in float32, and are stored as `lora.*` in checkpoints.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges.gated import decoder_layers
from osm.models.model_config import LoraConfig

_MARK = ".lora_"


def add_lora(llm: nn.Module, config: LoraConfig) -> None:
    """Add trainable low-rank updates, initially zero, to those linear layers of the LLM that `config.targets` lists.

    Raises:
        OsmError: peft is not installed, or a target is not a linear layer of the LLM.
    """
    try:
        import peft
    except ImportError:
        raise OsmError(
            "model.lora.rank: LoRA requires the peft package: pip install peft, or set the rank to 0"
        ) from None
    from transformers.pytorch_utils import Conv1D

    linear = {
        name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    unknown = [target for target in config.targets if target not in linear]
    if unknown:
        raise OsmError(
            f"model.lora.targets: {unknown[0]!r} is not a linear layer of this LLM; its linear layers are "
            f"{', '.join(sorted(linear))}"
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
    """Warn if many of the LLM's weights get no LoRA updates, e.g. because the experts are not linear layers."""
    layers = nn.ModuleList(decoder_layers(llm))
    own = {name: p.numel() for name, p in layers.named_parameters() if p.ndim > 1 and _MARK not in name}
    left = {name: size for name, size in own.items() if ".base_layer." not in name}
    share = sum(left.values()) / max(1, sum(own.values()))
    if share > 0.1:
        largest = max(left, key=lambda name: left[name])
        warnings.warn(
            f"model.lora: {share:.0%} of the values in the LLM's layers are in no linear layer that LoRA changes, most "
            f"in {largest}; these values are not trained",
            stacklevel=4,
        )


def lora_parameters(llm: nn.Module) -> dict[str, nn.Parameter]:
    """Return LoRA's parameters by name, or an empty dict if there is no LoRA."""
    return {name: parameter for name, parameter in llm.named_parameters() if _MARK in name}


def keep_precise(llm: nn.Module) -> None:
    """Convert LoRA's parameters to float32, because they are trained in float32 regardless of the LLM's dtype."""
    for parameter in lora_parameters(llm).values():
        parameter.data = parameter.data.float()


def train_dropout(llm: nn.Module, mode: bool) -> None:
    """Set LoRA's dropout to training mode or eval mode. All other LLM modules stay in eval mode."""
    for name, module in llm.named_modules():
        if name.endswith("lora_dropout"):
            module.train(mode)


def without_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an LLM's state dict as it would be without LoRA: with the original names, and without LoRA's entries."""
    # peft wraps fused experts once per tensor, so a name may contain `.base_layer` several times in a row.
    return {re.sub(r"(\.base_layer)+\.", ".", name): value for name, value in state.items() if _MARK not in name}


def _fits_rank(size: int, rank: int, name: str) -> bool:
    """Return whether `size`, the length of one side of a LoRA matrix, matches `rank`.

    For fused experts, multiples of `rank` are also accepted, because the updates of all experts are concatenated.
    """
    return size == rank or (".experts." in name and size > 0 and size % rank == 0)


def blank(state: Mapping[str, Tensor], rank: int, where: str) -> dict[str, Tensor]:
    """Check a checkpoint's LoRA entries (`lora.*`) without loading the LLM, and return them as meta tensors.

    Raises:
        OsmError: an entry has a different rank or lacks the second matrix of its pair, or there are no entries
            although `rank` is not 0.
    """
    found = {name: value for name, value in state.items() if name.startswith("lora.")}
    if bool(found) != bool(rank):
        raise OsmError(f"{where} has {len(found)} LoRA entries, but its config sets model.lora.rank to {rank}")
    for name, value in found.items():
        axis = 0 if "lora_A" in name else 1
        other = name.replace("lora_A", "lora_B") if axis == 0 else name.replace("lora_B", "lora_A")
        fits = isinstance(value, Tensor) and value.ndim == 2 and _fits_rank(value.shape[axis], rank, name)
        if not fits or _MARK not in name or other not in found:
            raise OsmError(
                f"{where}: {name} is not a LoRA matrix of rank {rank}, or its lora_A or lora_B counterpart is missing"
            )
    return {name: torch.empty(value.shape, device="meta") for name, value in found.items()}
