"""What the page's visitors send through gradio: read within bounds, and refused without a traceback.

gradio's own reading of a painting opens pictures of any kind and size. It cannot be replaced in a subclass, for gradio
writes a file beside the source of every component's class, nor on an instance, for gradio makes one a visitor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import osm
from osm.errors import OsmError
from osm.io.images import decode, open_image
from osm.serving.storage import Uploads
from osm.terminal import message_logger

logger = message_logger(__name__)

_MOST_PAINTINGS = 8  # that were sent and not read yet; a page sends one right before it is read


def bound_paintings(max_pixels: int, uploads: Uploads) -> None:
    """Makes gradio's image editors decode the layers of paintings alone, within bounds, and keep few of them.

    A painting that was uploaded is read where it lies: gradio would copy it, out of reach of the bound on uploads.
    """
    editor: Any = gr.ImageEditor
    if "osm_own" not in vars(editor):
        editor.osm_own = editor.accept_blobs, editor.async_move_resource_to_block_cache
    accept, move = editor.osm_own

    def accept_blobs(self: Any, data: Any) -> None:
        if data.data["type"] != "layer":  # nobody looks at the others
            return
        accept(self, data)
        while len(self.blob_storage) > _MOST_PAINTINGS:
            del self.blob_storage[next(iter(self.blob_storage))]

    async def move_to_cache(self: Any, path: Any) -> Any:
        return path if isinstance(path, str) and uploads.holds(Path(path)) else await move(self, path)

    def convert(self: Any, file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
        if file is None or flatten_on_white:  # background and composite
            return None
        try:
            image = open_image(bytes(file) if isinstance(file, (bytes, bytearray, memoryview)) else Path(file.path))
            if image.width * image.height > max_pixels:
                raise OsmError(f"the painting has {image.width} x {image.height} pixels, {max_pixels} are taken")
            return np.asarray(decode(image, "RGBA"))
        except OsmError as error:
            raise gr.Error(str(error), print_exception=False) from None

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    editor.accept_blobs, editor.convert_and_format_image = accept_blobs, convert
    editor.async_move_resource_to_block_cache = move_to_cache


def read_in_place(button: Any, uploads: Uploads) -> None:
    """Makes an upload button give the very file that was sent; gradio's copies are shared by all of one content."""

    async def in_place(path: str) -> str:
        if not uploads.holds(Path(path)):
            raise OsmError("the file is not an upload")
        return path

    button.async_move_resource_to_block_cache = in_place


def without_tracebacks(blocks: Any) -> None:
    """Makes gradio report a malformed call in a line. Only an error of this package itself has a traceback."""

    def told(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            error.print_exception = False
            return error
        logger.warning(f"malformed call ({error!r:.200})")
        return gr.Error("The call is malformed", print_exception=False)

    def guarded(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(*arguments: Any, **more: Any) -> Any:
            try:
                return await function(*arguments, **more)
            except Exception as error:
                if _is_ours(error):
                    raise
                raise told(error) from None

        return run

    for name in ("preprocess_data", "call_function"):
        setattr(blocks, name, guarded(getattr(blocks, name)))


def _is_ours(error: Exception) -> bool:
    """Whether the error was raised by (or below) a function of this package, other than this module's."""
    package, trace = str(Path(osm.__file__).parent), error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(package) and file != __file__:
            return True
        trace = trace.tb_next
    return False
