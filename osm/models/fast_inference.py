"""Makes a loaded model faster on a CPU.

The linear layers are packed (`osm.models.packed_linear`), `osm.models.fast_llama` runs a small Llama, and the batch
norms of the tower are folded into the convolutions before them, which are then packed (`osm.models.packed_conv`). All
values stay float32, and results differ only by rounding. Freed memory is kept in the process for the next image. Naming
uses all of these changes. Training uses those of the frozen tower and LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from osm.memory_reuse import keep_freed_memory
from osm.models.fast_llama import make_fast
from osm.models.osm import OmniScientModel
from osm.models.packed_conv import PackedConv, can_be_packed
from osm.models.packed_linear import pack_linears
from osm.models.towers.tower import Tower
from osm.terminal import message_logger

logger = message_logger(__name__)
_CLOSE = 1e-4  # largest difference of a token, relative to the largest token


def speed_up(model: OmniScientModel) -> None:
    """Make a model on the CPU faster at inference. Its state dict stays that of the model, except for the tower's."""
    if next(model.tower.parameters(), torch.empty(0)).is_cpu:
        speed_up_tower(model.tower, model.config.sliding_window_size)
    pack_linears(model)
    make_fast(model.llm)
    keep_freed_memory()


def speed_up_tower(tower: Tower, side: int) -> None:
    """Make a frozen tower faster, which must be in float32 on the CPU.

    Args:
        tower: the tower.
        side: the side length of a window in pixels.
    """
    before = _test_tokens(tower, side) if _pairs(tower) else None
    fold_batch_norms(tower, side, before)
    pack_convs(tower, side, before)
    pack_linears(tower)


def fold_batch_norms(tower: Tower, side: int, before: Tensor | None = None) -> int:
    """Fold each batch norm of a tower in eval mode into the convolution before it, and return their number.

    A tower whose tokens change is left as it is, because its batch norms do not follow their convolutions directly.

    Args:
        tower: the tower, in float32.
        side: the side length of a window in pixels.
        before: the tower's tokens for the test window, if they are known.
    """
    changes = []
    for parent, conv_name, norm_name in _pairs(tower):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        changes.append(_Change(parent, {conv_name: fuse_conv_bn_eval(conv, norm), norm_name: _Folded(norm)}))
    return _changed(tower, side, before, changes, "the batch norms of the tower are not folded")


def pack_convs(tower: Tower, side: int, before: Tensor | None = None) -> int:
    """Pack each convolution whose batch norm was folded, together with its activation. Return their number.

    A tower whose tokens change is left as it is. The arguments are those of `fold_batch_norms`.
    """
    changes = []
    for parent, conv_name, norm_name in _neighbors(tower):
        conv, folded = getattr(parent, conv_name), getattr(parent, norm_name)
        if isinstance(folded, _Folded) and can_be_packed(conv, folded.act):
            changes.append(_Change(parent, {conv_name: PackedConv(conv, folded.act), norm_name: nn.Identity()}))
    return _changed(tower, side, before, changes, "the convolutions of the tower are not packed")


class _Change:
    """Replaces children of a module.

    Args:
        parent: the module.
        new: the new children by name.
    """

    def __init__(self, parent: nn.Module, new: dict[str, nn.Module]) -> None:
        self.parent, self.new = parent, new
        self.old = {name: getattr(parent, name) for name in new}

    def set(self, children: dict[str, nn.Module]) -> None:
        for name, child in children.items():
            setattr(self.parent, name, child)


@torch.no_grad()
def _test_tokens(tower: Tower, side: int) -> Tensor:
    """Return the tower's tokens, and the logits of its classes if it has any, for a test window of random values."""
    window_13ww = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    cells = (side // tower.patch) ** 2
    found = tower.tokens_and_classes(window_13ww, torch.full((1, cells), 1 / cells))
    return torch.cat([one.flatten() for one in found if one is not None])


def _changed(tower: Tower, side: int, before: Tensor | None, changes: Sequence[_Change], failed: str) -> int:
    """Apply changes to a tower, unless its tokens for the test window would change. Return the number of changes."""
    if not changes:
        return 0
    before = _test_tokens(tower, side) if before is None else before
    for change in changes:
        change.set(change.new)
    try:
        apart = (_test_tokens(tower, side) - before).abs().max()
        reason = "" if apart <= _CLOSE * before.abs().max() else "its tokens would change"
    except Exception as error:  # the tower's own code may need something that the new layers do not have
        reason = f"it would fail ({error})"
    if reason:
        logger.info(f"{failed}, because {reason}")
        for change in changes:
            change.set(change.old)
    return 0 if reason else len(changes)


class _Folded(nn.Module):
    """What is left of a batch norm: its activation."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.act = getattr(norm, "act", None) or nn.Identity()
        self.training = norm.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


def _pairs(tower: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Return each convolution that is followed by a batch norm of as many channels, with the parent of both."""
    found = []
    for parent, conv_name, norm_name in _neighbors(tower):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        if (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.num_features == conv.out_channels
            and norm.track_running_stats
            and not (conv.training or norm.training)
            and conv.weight.dtype == torch.float32
            and not any(m._forward_hooks or m._forward_pre_hooks for m in (conv, norm))
        ):
            found.append((parent, conv_name, norm_name))
    return found


def _neighbors(tower: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield each pair of adjacent children of a module: the parent and the names of both."""
    for parent in tower.modules():
        names = [name for name, _ in parent.named_children()]
        for one, other in zip(names, names[1:], strict=False):
            yield parent, one, other
