"""The `osm demo` command: a web page that names what the user points at, without contacting any other server."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.command_parser import CommandParser
from osm.errors import OsmError
from osm.recognition.flags import add_checkpoint, config_options
from osm.serving.guard import LOOPBACK_NAMES, Guard, HostNames
from osm.startup import quick_loading
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

if TYPE_CHECKING:  # gradio and torch take seconds to import
    from osm.serving.page import Page

_MAX_TABS = 32  # number of browser tabs whose state is kept; the least recently used tab is dropped first


def parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm demo`."""
    out = CommandParser(
        prog="osm demo",
        allow_abbrev=False,
        description="Serve a web page that names what the user points at in an image.",
    )
    add_checkpoint(out)
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    out.add_argument("--segmenter", default="auto", help="segmenter that makes masks of points and boxes [%(default)s]")
    out.add_argument("--sam_checkpoint", metavar="FILE", help="the weights of SAM")
    out.add_argument("--samples", type=Path, metavar="DIR", help="folder of images to offer beside the drawn samples")
    out.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets anyone connect [%(default)s]"
    )
    out.add_argument(
        "--allow_host",
        nargs="+",
        metavar="NAME",
        help="additional host names of the page, for instance behind a proxy",
    )
    out.add_argument("--port", type=int, default=7860, help="port of the page [%(default)s]")
    out.add_argument("--max_file_mb", type=float, default=20, help="size limit of an upload in MiB [%(default)s]")
    out.add_argument(
        "--max_megapixels", type=float, default=25, help="limit for the megapixels of an upload [%(default)s]"
    )
    out.add_argument(
        "--max_uploads_mb", type=float, default=200, help="size limit of all pending uploads in MiB [%(default)s]"
    )
    return out


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the demo page until Ctrl+C or SIGTERM, then remove its temporary files. Return 0, or 2 for a user error."""
    args = parser().parse_args(argv)
    try:
        with _ended_by_signals():
            check(args)
            with contextlib.closing(PageServer(load_page(args), args.host, args.port, args.allow_host or ())):
                echo(f"http://{_in_url(args.host)}:{args.port} (Ctrl+C ends it)", flush=True)
                threading.Event().wait()
    except OsmError as error:
        logger.error(error)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP inside the context, so that temporary files are removed.

    Repeated signals are ignored.
    """

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def check(args: argparse.Namespace) -> None:
    """Validate the flags before loading the model, and warn if the page can be reached from other machines.

    Raises:
        OsmError: a flag has an invalid value, or gradio is not installed.
    """
    if not 1 <= args.port <= 65535:
        raise OsmError(f"--port {args.port} must be between 1 and 65535")
    for flag in ("max_file_mb", "max_megapixels", "max_uploads_mb"):
        if not getattr(args, flag) > 0:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be over 0")
    if args.host not in LOOPBACK_NAMES:
        logger.warning(f"--host {args.host}: the page has no password, and anyone who reaches this machine can use it.")
    import_gradio()


def import_gradio() -> None:
    """Import gradio with its analytics disabled.

    Raises:
        OsmError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads this variable when it is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise OsmError(f"osm demo requires gradio ({error}): pip install 'gradio>=6.31,<7'") from None


@quick_loading()
def load_page(args: argparse.Namespace) -> Page:
    """Load the model, the segmenter and the sample images, and return the page."""
    from osm.serving.engine import load_engine
    from osm.serving.page import Limits, Page
    from osm.serving.page_files import sample_images

    samples = sample_images(args.samples)
    engine = load_engine(
        args.checkpoint, args.segmenter, args.sam_checkpoint, device=args.device, **config_options(args)
    )
    return Page(engine, samples, Limits(args.max_file_mb, args.max_megapixels, args.max_uploads_mb))


class PageServer:
    """A running web server for the demo page. `close` stops the server and removes the page's temporary files.

    Args:
        page: the page to serve.
        host: the address to listen on.
        port: the port to listen on.
        names: additional host names of the page.

    Raises:
        OsmError: the port is in use, or the host is not an address of this machine.
    """

    def __init__(self, page: Page, host: str, port: int, names: Collection[str] = ()) -> None:
        self._page, self._blocks = page, None
        self._before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
        _use_folder(str(page.folder.cache), str(page.folder.path))
        try:
            self._blocks = _launched(page, host, port, HostNames(host, names))
        except OSError as error:
            self.close()
            raise OsmError(f"--host {host} --port {port}: the server cannot listen on this address ({error})") from None

    def close(self) -> None:
        """Stop the server and remove its files."""
        if self._blocks is not None:
            self._blocks.close(verbose=False)
        _use_folder(*self._before)
        self._page.folder.close()


def _launched(page: Page, host: str, port: int, names: HostNames) -> Any:
    import gradio as gr

    from osm.serving.markup import CSS
    from osm.serving.page import build

    fonts = (gr.themes.Font("system-ui"), gr.themes.Font("sans-serif"))
    mono = (gr.themes.Font("ui-monospace"), gr.themes.Font("monospace"))
    # The page's colors are darker than gradio's defaults, so that text has a contrast ratio of at least 4.5:1.
    theme = gr.themes.Base(primary_hue="blue", font=fonts, font_mono=mono).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    blocks = build(page).queue(max_size=64)

    @contextlib.asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        # The guard is installed at startup, before any request, so that it wraps gradio's entire middleware stack.
        inputs = {number: len(function.inputs) for number, function in blocks.fns.items()}
        app.middleware_stack = Guard(app.middleware_stack, names, inputs, page.uploads, page.limits.file_bytes)
        yield

    blocks.launch(
        server_name=_in_url(host),
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=page.limits.file_bytes,
        state_session_capacity=_MAX_TABS,
        theme=theme,
        css=CSS,
        app_kwargs={"lifespan": guarded},
    )
    return blocks


def _use_folder(cache: str | None, temporary: str | None) -> None:
    """Set the folders for gradio's files (`cache`) and for temporary files. None restores the default."""
    if cache is None:
        os.environ.pop("GRADIO_TEMP_DIR", None)
    else:
        os.environ["GRADIO_TEMP_DIR"] = cache
    tempfile.tempdir = temporary


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
