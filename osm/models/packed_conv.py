"""Frozen convolutions that are faster on CPUs.

The weights are stored in oneDNN's packed layout, and the activation is computed in the same pass. `nn.Conv2d` packs its
weights in every pass, and a separate activation reads and writes the whole output again. The best layout depends on
the size of the input, so that the weights are in memory once more for each size of input. All values stay float32.

With the padding of TensorFlow, the input often needs one more zero after it than before it. PyTorch's operator for
oneDNN only takes the same padding on both sides. Therefore, a row or column of zeros is added before the kernel's own,
which is faster than a padded copy of the input.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

_SIZES_KEPT = 4  # the windows and the zoom windows have two sizes
# Activations that are fused: class -> (name, arguments, algorithm).
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.Identity: ("none", [], ""),
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.SiLU: ("swish", [], ""),
    nn.Hardswish: ("hardswish", [], ""),
}


class PackedConv(nn.Module):
    """A frozen convolution and its activation.

    Float32 inputs on the CPU use the packed weights. All other inputs use the plain convolution and activation, and so
    do all inputs where a gradient is needed. Weights that are changed in place are not noticed.

    Args:
        conv: the convolution. `can_be_packed` must hold.
        act: the activation.
    """

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self._packed: dict[tuple[int, ...], Tensor]
        self.weight, self.bias, self.groups, self.act = conv.weight, conv.bias, conv.groups, act
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.kernel = list(conv.kernel_size)
        self.padding = None if _pads_itself(conv) else [int(side) for side in conv.padding]
        self.training = conv.training
        self.fused = _ACTIVATIONS[type(act)]
        # Not in the module's parameters, because a tensor in oneDNN's packed layout can be neither moved nor converted.
        vars(self)["_packed"] = {}
        _count_flops()

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_packed_for(x):
            return self._plain(x)
        padding, front = self._padding_for(x)
        if padding is None:
            x, padding = self._padded(x), [0, 0]
        sizes = (padding, self.stride, self.dilation, self.groups)
        weight = self._packed_for(x, front, *sizes)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *sizes, *self.fused)

    def _plain(self, x: Tensor) -> Tensor:
        padding = self.padding
        if padding is None:
            x, padding = self._padded(x), [0, 0]
        return self.act(F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups))

    def _is_packed_for(self, x: Tensor) -> bool:
        graded = torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad))
        plain = x.is_cpu and x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return plain and not graded and not self.weight.requires_grad and x.numel() > 0

    def _padding_for(self, x: Tensor) -> tuple[list[int] | None, list[int]]:
        """Return the padding along each axis, and how many zeros are added to the front of the kernel along each axis.

        The padding is None if no symmetric padding gives the same result.
        """
        if self.padding is not None:
            return self.padding, [0, 0]
        axes = zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        totals = [
            max((-(-size // stride) - 1) * stride + (side - 1) * step + 1 - size, 0)
            for size, side, stride, step in axes
        ]
        front = [total % 2 for total in totals]
        if any(zeros and step > 1 for zeros, step in zip(front, self.dilation, strict=True)):
            return None, [0, 0]
        return [(total + 1) // 2 for total in totals], front

    def _packed_for(self, x: Tensor, front: list[int], *sizes: Any) -> Tensor:
        # A padded copy can have the size of another input, whose kernel has zeros in front.
        case = (*x.shape[2:], *front)
        found = self._packed.get(case)
        if found is None:
            if len(self._packed) == _SIZES_KEPT:
                self._packed.clear()
            order = torch.channels_last if self.groups == 1 else torch.contiguous_format
            weight = F.pad(self.weight.detach(), (front[1], 0, front[0], 0)).contiguous(memory_format=order)
            found = self._packed[case] = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, list(x.shape))
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._packed.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._packed.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": {}}

    def _padded(self, x: Tensor) -> Tensor:
        from timm.layers.padding import pad_same

        return pad_same(x, self.kernel, self.stride, self.dilation)


def can_be_packed(conv: nn.Module, act: nn.Module) -> bool:
    """Return whether a `PackedConv` can replace a convolution and the activation after it."""
    if not isinstance(conv, nn.Conv2d) or type(act) not in _ACTIVATIONS:
        return False
    plain = type(conv) is nn.Conv2d and not isinstance(conv.padding, str)
    weight = conv.weight
    return (
        (plain or _pads_itself(conv))
        and conv.padding_mode == "zeros"
        and weight.is_cpu
        and weight.dtype == torch.float32
        and not weight.requires_grad
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and is_packing_possible()
    )


def _pads_itself(conv: nn.Module) -> bool:
    """Return whether a convolution is timm's `Conv2dSame`, which pads its own input as TensorFlow does."""
    return (type(conv).__module__, type(conv).__name__) == ("timm.layers.conv2d_same", "Conv2dSame")


@cache
def _count_flops() -> None:
    """Make PyTorch's `FlopCounterMode` count packed convolutions, unless PyTorch does it itself."""
    if torch.ops.mkldnn._convolution_pointwise in flop_registry:
        return

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def flops(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return conv_flop_count(x_shape, weight_shape, out_shape)


@cache
def is_packing_possible() -> bool:
    """Return whether this PyTorch has the packed convolution and its results equal those of `nn.Conv2d`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            for groups in (1, 8):
                conv = nn.Conv2d(8, 8, 3, 2, 1, groups=groups).requires_grad_(False)
                for act in (nn.Identity(), nn.ReLU6()):
                    if not torch.allclose(PackedConv(conv, act)(x), act(conv(x)), atol=1e-5):
                        return False
    except (AttributeError, RuntimeError):
        return False
    return True
