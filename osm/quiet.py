"""What libraries print and nobody who runs this program can act on: bars of seconds, advice to their own maintainers.

Only within the functions below, and only those lines: what a user set (logging levels, bars that were off,
`HF_HUB_DISABLE_PROGRESS_BARS=0`) holds, and is as it was afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

P = ParamSpec("P")

# By logger: how the messages begin, or what they hold, that say nothing about this program's input.
_LINES = {
    # torchao, on being imported, to whoever maintains it.
    "torch.utils._pytree": ("register_constant() on Enum",),
    # timm, of a classifier that a file has and a tower leaves out. What is lacking, `check_complete` finds.
    "timm.models._builder": ("Unexpected keys (",),
}
# Modules that warn of how they call torch themselves (timm, on resampling relative positions).
_WARNING = r"timm\.layers\.interpolate"
_GGUF = "transformers.modeling_gguf_pytorch_utils"


class _Without(logging.Filter):
    """Drops records that hold any of these texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        return not any(text in message for text in self.texts)


@contextlib.contextmanager
def quiet_lines() -> Iterator[None]:
    """Importing and running within it prints none of the lines above; errors and other warnings pass."""
    with contextlib.ExitStack() as stack:
        for name, texts in _LINES.items():
            logger, without = logging.getLogger(name), _Without(texts)
            logger.addFilter(without)
            stack.callback(logger.removeFilter, without)
        yield


def quiet_command(main: Callable[P, int]) -> Callable[P, int]:
    """Runs a command's function within `quiet_lines`: libraries are imported in it."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        with quiet_lines():
            return main(*args, **kwargs)

    return run


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Loading weights within it prints no bars either."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_lines())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", category=UserWarning, module=_WARNING)
        if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() not in ("0", "OFF", "NO", "FALSE"):
            stack.enter_context(_no_bars())
        yield


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging as told

    if told.is_progress_bar_enabled():
        told.disable_progress_bar()  # huggingface_hub's as well
        restore = told.enable_progress_bar
    else:
        restore = _nothing
    reader: Any = _gguf_reader()
    bar = getattr(reader, "tqdm", None)
    if bar is not None:  # this module asks neither library whether bars are wanted
        reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        restore()
        if bar is not None:
            reader.tqdm = bar


def _gguf_reader() -> Any:
    with contextlib.suppress(ImportError):
        importlib.import_module(_GGUF)
    return sys.modules.get(_GGUF)


def _nothing() -> None:
    pass
