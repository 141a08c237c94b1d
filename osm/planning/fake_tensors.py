"""Runs a model without values, and counts the bytes that its tensors would take.

A fake tensor has a shape, a dtype and a storage of a known size, but no values. torch's FakeTensorMode runs a model on
fake tensors: the same operators in the same order as a real run, in seconds and without memory.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from osm.models import zoom

_ALLOCATORS = ("empty", "empty_strided")
_COLLECT_EVERY = 1000
"""Operators between two garbage collections. Recomputed fake tensors are in reference cycles, real ones are not."""


class DeviceMode(FakeTensorMode):
    """Uses fake tensors in place of device tensors, and real tensors for values that the host needs.

    Masks, token ids and indices are real tensors, because the model's control flow depends on their values. An operator
    whose inputs are all real computes real values. As soon as a real tensor meets a fake one, it counts as a tensor of
    the device.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        allocates = not tensors and func.overloadpacket.__name__ in _ALLOCATORS
        if not allocates and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def to_fake(module: nn.Module, mode: DeviceMode) -> None:
    """Replace all parameters and buffers of a module on the meta device by fake tensors. Tied weights stay tied."""

    def made(old: Tensor) -> Tensor:
        with mode:
            return torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cpu")

    replace_tensors(module, made)


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replace each parameter and buffer of a module by `make(tensor)`. Tied weights stay tied."""
    replaced: dict[int, Any] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, old in table.items():
                if old is not None and id(old) not in replaced:
                    new = make(old)
                    replaced[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    table[name] = replaced[id(old)]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live fake tensors. Views share the storage of their base, so they are counted once.

    Attributes:
        live: bytes of the storages that exist now.
        peak: the largest value of `live` since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._born: dict[int, int] = {}
        self._count = self._count_at_peak = self._operators = 0

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made outside of this mode, such as the parameters of a model."""
        for tensor in tensors:
            self._add(local_part(tensor))

    def restart(self) -> None:
        """Begin a new measurement of the peak."""
        self.peak, self._count_at_peak = self.live, self._count

    def at_peak(self, tensors: Iterable[Tensor]) -> int:
        """Return how many bytes of the given tensors, which must still exist, existed at the peak."""
        storages = {id(storage): storage for storage in (local_part(t).untyped_storage() for t in tensors)}
        return sum(self._sizes.get(key, 0) for key in storages if self._born.get(key, 0) <= self._count_at_peak)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._remove(key))
        self._sizes[key], self._count = storage.nbytes(), self._count + 1
        self._born[key] = self._count
        self._change(self._sizes[key])

    def _remove(self, key: int) -> None:
        del self._alive[key], self._born[key]
        self._change(-self._sizes.pop(key))

    def _change(self, size: int) -> None:
        self.live += size
        if self.live > self.peak:
            self.peak, self._count_at_peak = self.live, self._count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._operators += 1
        if self._operators % _COLLECT_EVERY == 0:
            gc.collect()
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor):
                self._add(tensor)
        return out

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the context, follow storages that are resized in place, as FSDP does to free gathered parameters.

        Objects that exist before are excluded from garbage collections, which are then fast.
        """
        resize: Callable[..., Any] = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            found = resize(storage, size)
            if id(storage) in self._sizes:
                change, self._sizes[id(storage)] = size - self._sizes[id(storage)], size
                self._change(change)
            return found

        gc.freeze()
        try:
            with patch.object(torch.UntypedStorage, "resize_", resized):
                yield
        finally:
            gc.unfreeze()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of tensors, each storage once, on this process."""
    storages = {id(storage): storage for storage in (local_part(t).untyped_storage() for t in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds."""
    tensor = tensor.data if isinstance(tensor, nn.Parameter) else tensor
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# -- the kernels of a GPU ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside the context, attention, dropout and zoom windows take the memory that they take on a GPU.

    Fake tensors are on the CPU, because torch cannot run a backward pass on a fake GPU. The CPU's kernels for attention
    with dropout store all attention weights, and those for dropout store a mask of floats. The kernels of a GPU do not.
    Zoom windows are resized by weighted sums on a CPU, and by `roi_align` on a GPU.
    """
    with contextlib.ExitStack() as patched:
        patched.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
        patched.enter_context(patch.object(F, "dropout", _dropout))
        patched.enter_context(patch.object(zoom, "sampled_squares", zoom.sampled_by_roi_align))
        yield


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention by the memory-efficient kernel, whose memory is linear in the number of keys."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:  # the kernel adds the mask to the scores
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    log_sums = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, log_sums, dropout_p, is_causal, scale=scale)[0]


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else input
