"""Skips the random initialization of weights that are overwritten anyway."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TRAINED: ContextVar[bool] = ContextVar("trained", default=False)


class WithoutRandomValues(TorchFunctionMode):
    """Skips random initialization. It is slow even for meta tensors, which have no values."""

    _SKIPPED = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in self._SKIPPED:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@contextlib.contextmanager
def trained_model() -> Iterator[None]:
    """Mark the model that is built inside the context as trained: the random state that it leaves does not matter.

    An untrained model must consume random numbers in a fixed order, because they determine the weights of its bridge.
    """
    token = _TRAINED.set(True)
    try:
        yield
    finally:
        _TRAINED.reset(token)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Skip random initialization inside the context if the model is trained. All weights must be loaded afterwards."""
    if _TRAINED.get():
        with WithoutRandomValues():
            yield
    else:
        yield
