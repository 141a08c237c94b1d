"""Changes to a loaded model that make it faster on a CPU. Training uses them for the frozen parts alone.

The linear layers are packed (`osm.models.packed_linear`), `osm.models.fast_llama` runs a small Llama, and the batch
norms of the tower are folded into the convolutions before them, which are then packed (`osm.models.packed_conv`). All
values stay float32. Only the order of the sums changes. Freed memory is kept in the process for the next image.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    """Make a frozen tower in float32 on the CPU faster. `side` is the side length of a window in pixels."""
    fold_batch_norms(tower, side)
    pack_convs(tower, side)
    pack_linears(tower)


def fold_batch_norms(tower: Tower, side: int) -> int:
    """Fold each batch norm of a tower in eval mode into the convolution before it, and return their number.

    A tower whose tokens change is left as it is, because its batch norms do not follow their convolutions directly.

    Args:
        tower: the tower, in float32.
        side: the side length of a window in pixels.
    """
    pairs = _pairs(tower)
    if not pairs:
        return 0
    with torch.no_grad():
        before = _tokens(tower, side)
        for parent, conv_name, norm_name in pairs:
            _fold(parent, conv_name, norm_name)
        after = _tokens(tower, side)
    if _are_close(before, after):
        for parent, _, norm_name in pairs:
            vars(getattr(parent, norm_name)).pop("replaced")
        return len(pairs)
    logger.info("the batch norms of the tower are not folded, because its tokens would change")
    for parent, conv_name, norm_name in pairs:
        _unfold(parent, conv_name, norm_name)
    return 0


def pack_convs(tower: Tower, side: int) -> int:
    """Pack the convolutions whose batch norms have been folded, with their activations, and return their number.

    A tower whose tokens change is left as it is. The arguments are those of `fold_batch_norms`.
    """
    places = [
        (parent, conv_name, norm_name)
        for parent, conv_name, norm_name in _neighbors(tower)
        if isinstance(norm := getattr(parent, norm_name), _Folded)
        and can_be_packed(getattr(parent, conv_name), norm.act)
    ]
    if not places:
        return 0
    replaced = [(getattr(parent, conv_name), getattr(parent, norm_name).act) for parent, conv_name, norm_name in places]
    with torch.no_grad():
        before = _tokens(tower, side)
        for (parent, conv_name, norm_name), (conv, act) in zip(places, replaced, strict=True):
            setattr(parent, conv_name, PackedConv(conv, act))
            getattr(parent, norm_name).act = nn.Identity()
        after = _tokens(tower, side)
    if _are_close(before, after):
        return len(places)
    logger.info("the convolutions of the tower are not packed, because its tokens would change")
    for (parent, conv_name, norm_name), (conv, act) in zip(places, replaced, strict=True):
        setattr(parent, conv_name, conv)
        getattr(parent, norm_name).act = act
    return 0


def _tokens(tower: Tower, side: int) -> Tensor:
    return tower(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))[1]


def _are_close(before: Tensor, after: Tensor) -> bool:
    return bool((after - before).abs().max() <= _CLOSE * before.abs().max())


class _Folded(nn.Module):
    """What is left of a batch norm: its activation. The replaced modules are kept until the tower has been checked."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.act = getattr(norm, "act", None) or nn.Identity()
        vars(self)["replaced"] = conv, norm

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
        ):
            found.append((parent, conv_name, norm_name))
    return found


def _neighbors(tower: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield each pair of adjacent children of a module: the parent and the names of both."""
    for parent in tower.modules():
        names = [name for name, _ in parent.named_children()]
        for one, other in zip(names, names[1:], strict=False):
            yield parent, one, other


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
    setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
    setattr(parent, norm_name, _Folded(conv, norm))


def _unfold(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(parent, norm_name).replaced
    setattr(parent, conv_name, conv)
    setattr(parent, norm_name, norm)
