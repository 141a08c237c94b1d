"""Shortens the time that a command needs before its model is loaded.

Loading a model imports torch, timm and transformers. Half of that time goes to packages that these libraries import
although this program does not use them, to torch's compiler, which is never used for loading, and to the garbage
collector, which searches the growing number of objects again and again. `benchmarks/startup.py` measures the parts.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, ParamSpec

P = ParamSpec("P")

_IN_COMMAND = False
"""Whether this process runs a command of this package, so that no other program's imports are affected."""


def in_command(main: Callable[P, int]) -> Callable[P, int]:
    """Decorator that marks the call as a command of this package, in which `without_unused` hides packages."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        global _IN_COMMAND
        outer, _IN_COMMAND = _IN_COMMAND, True
        try:
            return main(*args, **kwargs)
        finally:
            _IN_COMMAND = outer

    return run


@contextlib.contextmanager
def without_unused(library: str, packages: Iterable[str]) -> Iterator[None]:
    """Inside the context, in which a library is first imported, hide packages that the library would import needlessly.

    The packages are only hidden inside a command of this package, and only if neither the library nor the package has
    been imported yet. Afterwards, the packages can be imported as usual, but the library may remember for the rest of
    the process that they are missing.
    """
    hide = _IN_COMMAND and library not in sys.modules
    hidden = [name for name in packages if hide and name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system raises ImportError
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


@contextlib.contextmanager
def quick_loading() -> Iterator[None]:
    """Import libraries and load a model inside the context without garbage collection and without torch's compiler."""
    with _without_collections(), _without_compiler():
        yield


_COMPILER = "torch._dynamo"
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
_DEFERRED = {  # what libraries import from the compiler; none of it is used while loading
    f"{_COMPILER}.utils": "is_compile_supported",
    f"{_COMPILER}._trace_wrapped_higher_order_op": "TransformGetItemToIndex",
}


class _StandIn(ModuleType):
    """Stands for a module of torch's compiler. The compiler is imported as soon as anything else is requested of it."""

    def __getattr__(self, name: str) -> Any:
        submodule = name == "__path__" and self.__name__ == _COMPILER  # requested in order to import a submodule
        if name.startswith("__") and not submodule:
            raise AttributeError(name)
        _withdraw_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _withdraw_stand_ins() -> None:
    for name in (_COMPILER, *_DEFERRED):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Inside the context, do not import torch's compiler for what matters only while something is compiled.

    torch, timm, transformers and others import the compiler (a second), mostly for decorators that tell it how to
    treat a function, even if nothing is ever compiled. Like `without_unused`, this affects only commands of this
    package, none of which compiles anything.
    """
    if not _IN_COMMAND or _COMPILER in sys.modules:
        yield
        return
    stand_ins = {name: _StandIn(name) for name in (_COMPILER, *_DEFERRED)}
    vars(stand_ins[_COMPILER]).update(dict.fromkeys(_DECORATORS, _unmarked))
    for module, name in _DEFERRED.items():
        vars(stand_ins[module])[name] = _deferred(module, name)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        _withdraw_stand_ins()


def _deferred(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports a function or class when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        _withdraw_stand_ins()
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def _unmarked(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """Return a function as it is, in place of a decorator that marks the function for the compiler."""
    return _unmarked if fn is None else fn


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pause the garbage collector inside the context, in which libraries are imported and a model is loaded.

    Hundreds of thousands of objects are created that live as long as the process. After a command's first such context,
    the collector ignores all objects that exist by then. This is not repeated, and not done in other programs, because
    garbage that exists at that moment is never freed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if _IN_COMMAND and not gc.get_freeze_count():
                gc.freeze()
            gc.enable()
