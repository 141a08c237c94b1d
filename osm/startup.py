"""Shortens the time that a command needs before its model is loaded.

Loading a model imports torch, timm and transformers. More than a third of that time goes to packages that transformers
and timm import if they are installed, although this program does not use them, and to the garbage collector, which
searches the growing number of objects again and again. `benchmarks/startup.py` measures the parts.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec

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
def without_collections() -> Iterator[None]:
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
