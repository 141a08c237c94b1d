"""Silences third-party library messages that users of this program cannot act on.

The silenced output consists of short-lived progress bars and warnings that only the libraries' maintainers can act on.
Library messages are silenced only inside this module's context managers, which respect the user's settings (logging
levels, disabled progress bars, `HF_HUB_DISABLE_PROGRESS_BARS=0`) and restore them on exit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

from osm.startup import in_command

P = ParamSpec("P")

# Maps logger names to phrases; a message from a logger is dropped if it contains one of the logger's phrases.
_LINES = {
    # Importing torchao logs this message, which is advice for torchao's maintainers.
    "torch.utils._pytree": ("register_constant() on Enum",),
    # timm reports classifier weights that a tower does not use. Missing weights are reported by `check_complete`.
    "timm.models._builder": ("Unexpected keys (",),
}
# timm's module that resamples relative position tables triggers a warning about timm's own use of torch.
_WARNING = r"timm\.layers\.interpolate"
_GGUF = "transformers.modeling_gguf_pytorch_utils"


class _Without(logging.Filter):
    """A logging filter that drops messages containing any of the given phrases."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        return not any(text in message for text in self.texts)


@contextlib.contextmanager
def quiet_lines() -> Iterator[None]:
    """Drop the log messages listed in `_LINES` inside the context. Errors and all other warnings are still shown."""
    with contextlib.ExitStack() as stack:
        for name, texts in _LINES.items():
            logger, without = logging.getLogger(name), _Without(texts)
            logger.addFilter(without)
            stack.callback(logger.removeFilter, without)
        yield


def quiet_command(main: Callable[P, int]) -> Callable[P, int]:
    """Decorator that runs a command's entry point inside `quiet_lines`, so that imports are silenced too."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        with quiet_lines():
            return main(*args, **kwargs)

    return in_command(run)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the messages listed in `_LINES` and weight-loading progress bars inside the context."""
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
        told.disable_progress_bar()  # also disables the progress bars of huggingface_hub
        restore = told.enable_progress_bar
    else:
        restore = _nothing
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def quiet_gguf() -> Iterator[None]:
    """Hide the progress bar of transformers' GGUF reader, which ignores the settings of the other progress bars.

    Only the conversion of a GGUF file needs this, because importing the reader takes half a second.
    """
    from transformers.utils import logging as told

    reader: Any = None
    if not told.is_progress_bar_enabled():
        with contextlib.suppress(ImportError):
            reader = importlib.import_module(_GGUF)
    bar = getattr(reader, "tqdm", None)
    if bar is not None:
        reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar


def _nothing() -> None:
    pass
