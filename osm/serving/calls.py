"""Patches for gradio that limit the size of painted masks and report malformed calls without a traceback.

Without the patches, gradio would decode painted masks as images of any format and size. This module patches gradio's
`ImageEditor` class instead of subclassing it, because gradio writes a file next to each component class's source file.
Patching one `ImageEditor` instance is not enough, because gradio creates one instance per visitor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from osm.errors import OsmError
from osm.io.images import decode, open_image
from osm.serving.page_files import Uploads
from osm.terminal import message_logger

logger = message_logger(__name__)

_MAX_PENDING_PAINTINGS = 8  # the page sends a painting right before the painting is read, so few are pending


def bound_paintings(max_pixels: int, uploads: Uploads) -> None:
    """Patch gradio's ImageEditor to decode only the layers of a painting, and only up to a size limit.

    Gradio's storage keeps only the most recently painted masks. An uploaded painting is read in place, because a copy
    made by gradio would not count toward the upload size limit.

    Args:
        max_pixels: maximum number of pixels per painting.
        uploads: storage of uploads.
    """
    editor: Any = gr.ImageEditor
    if "osm_own" not in vars(editor):
        editor.osm_own = editor.accept_blobs, editor.async_move_resource_to_block_cache
    accept, move = editor.osm_own

    def accept_blobs(self: Any, data: Any) -> None:
        if data.data["type"] != "layer":  # the background and the composite image are not used
            return
        accept(self, data)
        while len(self.blob_storage) > _MAX_PENDING_PAINTINGS:
            del self.blob_storage[next(iter(self.blob_storage))]

    async def move_to_cache(self: Any, path: Any) -> Any:
        return path if isinstance(path, str) and uploads.holds(Path(path)) else await move(self, path)

    def convert(self: Any, file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
        if file is None or flatten_on_white:  # only the background and the composite image are flattened
            return None
        try:
            image = open_image(bytes(file) if isinstance(file, (bytes, bytearray, memoryview)) else Path(file.path))
            if image.width * image.height > max_pixels:
                raise OsmError(
                    f"the painting has {image.width} x {image.height} pixels, but the maximum is {max_pixels}"
                )
            return np.asarray(decode(image, "RGBA"))
        except OsmError as error:
            raise gr.Error(str(error), print_exception=False) from None

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    editor.accept_blobs, editor.convert_and_format_image = accept_blobs, convert
    editor.async_move_resource_to_block_cache = move_to_cache


def read_in_place(button: Any, uploads: Uploads) -> None:
    """Patch an upload button to use the uploaded file in place instead of copying it.

    Gradio would store uploads with identical content as one shared copy.
    """

    async def in_place(path: str) -> str:
        if not uploads.holds(Path(path)):
            raise OsmError("the file is not an upload")
        return path

    button.async_move_resource_to_block_cache = in_place


def without_tracebacks(blocks: Any) -> None:
    """Patch gradio to log each malformed call as a single line.

    Tracebacks are logged only for exceptions from this package.
    """

    def reported(error: Exception) -> gr.Error:
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
                if _is_raised_by_package(error):
                    raise
                raise reported(error) from None

        return run

    for name in ("preprocess_data", "call_function"):
        setattr(blocks, name, guarded(getattr(blocks, name)))


def _is_raised_by_package(error: Exception) -> bool:
    """Return whether an exception was raised by a function in this package, other than the gradio patches."""
    package, trace = str(Path(__file__).parents[1]), error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(package) and file != __file__:
            return True
        trace = trace.tb_next
    return False
