"""Linear layers whose weights are stored in oneDNN's packed layout, which makes matrix products on CPUs faster.

A matrix product rearranges its weights for the CPU's caches before it multiplies. With a few rows, as in the decoding
of names, this takes as long as the product. `pack_linears` rearranges the weights once. The products are those of the
same float32 values, summed in another order.

PyTorch has the packed product as an operator that its compiler uses on CPUs. Where the operator is missing, or gives
other results than `nn.Linear`, the layers stay as they are.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from osm.errors import OsmError

_ROWS = 64  # the number of rows for which oneDNN chooses the layout; other numbers are about as fast
_SMALLEST = 64  # layers with fewer inputs or outputs are too small to gain anything


class _FrozenProduct(torch.autograd.Function):
    """The product with a packed weight, whose gradient with respect to the input is a packed product too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.ops.mkldnn._linear_pointwise(grad, ctx.layer.transposed(), None, "none", [], ""), None


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 on a CPU, with its weight in oneDNN's packed layout.

    A frozen layer passes gradients on to its input. In every other case, for example if the weight is trained or in
    autocast, the layer computes what `nn.Linear` does. State dicts contain the weight as that of `nn.Linear`.

    Args:
        linear: the layer to replace. Its weight is float32 on the CPU.
        keep: whether the weight is also kept as it is, because another layer shares it.
    """

    def __init__(self, linear: nn.Linear, keep: bool = False) -> None:
        super().__init__()
        self._packed: Tensor
        self._dense: Tensor | None
        self._transposed: Tensor | None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.training = linear.training
        self._trained = any(parameter.requires_grad for parameter in linear.parameters())
        self._use(linear.weight)
        if keep:
            vars(self)["_dense"] = linear.weight

    def _use(self, weight: Tensor) -> None:
        # Not in the module's parameters, because a tensor in oneDNN's packed layout can be neither moved nor converted.
        vars(self)["_packed"] = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        vars(self)["_dense"] = vars(self)["_transposed"] = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight (out_features, in_features), which is kept after the first access."""
        if self._dense is None:
            vars(self)["_dense"] = nn.Parameter(self._packed.to_dense(), requires_grad=self._trained)
        assert self._dense is not None
        return self._dense

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_plain(x):
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() and x.requires_grad:
            return _FrozenProduct.apply(x, self)
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """Return the output for a float32 input on the CPU, without its gradient."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def transposed(self) -> Tensor:
        """Return the transposed weight in oneDNN's packed layout, which is made at the first use."""
        if self._transposed is None:
            weight = self.values().t().contiguous()
            vars(self)["_transposed"] = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        assert self._transposed is not None
        return self._transposed

    def gelu(self, x: Tensor) -> Tensor:
        """Return the GELU of the layer's output, computed in the same pass."""
        if self._is_fused(x):
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "gelu", [], "none")
        return F.gelu(self(x))

    def silu(self, x: Tensor) -> Tensor:
        """Return the SiLU of the layer's output, computed in the same pass."""
        if self._is_fused(x):
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "swish", [], "")
        return F.silu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the layer's output plus a tensor of its shape, computed in the same pass."""
        return self._combined(x, other, "add") if self._is_fused(x, other) else self(x) + other

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the layer's output times a tensor of its shape, computed in the same pass."""
        return self._combined(x, other, "mul") if self._is_fused(x, other) else self(x) * other

    def _combined(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, how)

    @property
    def packed(self) -> Tensor:
        """The weight in oneDNN's packed layout. A weight that is loaded later is another tensor."""
        return self._packed

    def values(self) -> Tensor:
        """Return the weight (out_features, in_features) without keeping it."""
        return self._packed.to_dense() if self._dense is None else self._dense.detach()

    def _is_fused(self, *inputs: Tensor) -> bool:
        """Whether further operations can be computed in the same pass, which has no gradient."""
        graded = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return self._is_plain(inputs[0]) and not graded

    def _is_plain(self, x: Tensor) -> bool:
        trained = torch.is_grad_enabled() and self._trained
        return x.is_cpu and x.dtype == torch.float32 and not trained and not torch.is_autocast_enabled("cpu")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        like = fn(torch.zeros(1))
        if not like.is_cpu or like.dtype != torch.float32:
            raise OsmError(
                f"a model that was made faster for a CPU cannot be moved to {like.device} as {like.dtype}; load it for "
                "this device, or with load_recognizer(..., fast=False)"
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.values()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + "weight"
        if key in state_dict:
            self._use(state_dict[key].to("cpu", torch.float32))
            state_dict = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": self._packed.to_dense(), "_transposed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        dense = state["_dense"]
        self._use(state["_packed"])
        vars(self)["_dense"] = dense


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers of a model on the CPU by packed ones, and return their number.

    The layers have to be float32 and are replaced only if they are exactly `nn.Linear`. A weight that is shared with
    another layer, such as the word embeddings, is kept, so that only such weights need more memory.
    """
    if not is_packing_right():
        return 0
    _count_flops()
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and _can_be_packed(child):
                setattr(parent, name, PackedLinear(child, keep=uses[id(child.weight)] > 1))
                count += 1
    return count


@cache
def _count_flops() -> None:
    """Make PyTorch's `FlopCounterMode` count packed products, unless PyTorch does it itself."""
    if torch.ops.mkldnn._linear_pointwise in flop_registry:
        return

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def flops(x_shape: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
        # The arguments are (weight, bias, activation, ...), or (other, weight, bias, operation).
        outputs, inputs = args[0] if isinstance(args[2], str) else args[1]
        return 2 * math.prod(x_shape[:-1]) * inputs * outputs


def _can_be_packed(linear: nn.Linear) -> bool:
    weight = linear.weight
    hooked = linear._forward_hooks or linear._forward_pre_hooks  # `accelerate` moves weights in hooks
    return (
        type(linear) is nn.Linear
        and weight.is_cpu
        and weight.dtype == torch.float32
        and weight.layout == torch.strided
        and min(weight.shape) >= _SMALLEST
        and not hooked
    )


@cache
def is_packing_right() -> bool:
    """Return whether this machine's PyTorch has the packed product, and it gives what `nn.Linear` gives."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(96, 80)
    rows = torch.randn(7, 96, generator=generator)
    try:
        with torch.inference_mode():
            packed = PackedLinear(linear)
            return torch.allclose(packed(rows), linear(rows), atol=1e-5) and torch.equal(
                packed._packed.to_dense(), linear.weight
            )
    except (AttributeError, RuntimeError):
        return False
