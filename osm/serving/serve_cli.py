"""The commands `osm serve` and `osm demo`: a server that names regions of images, and its web page."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from osm.command_parser import CommandParser
from osm.config import add_settings
from osm.errors import OsmError
from osm.files import read_text
from osm.recognition.flags import SHIPPED, add_checkpoint
from osm.serving.guard import LOOPBACK_NAMES, is_host_name, is_origin
from osm.shipped import shipped_model
from osm.storage.locations import is_remote
from osm.terminal import console_command, echo, logs_json, message_logger

if TYPE_CHECKING:
    from osm.serving.app import AccessRules
    from osm.serving.services import Services
    from osm.serving.worker import WorkerSettings

logger = message_logger(__name__)

KEY_VARIABLE = "OSM_API_KEY"
_MIN_KEY = 8


def parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm serve`."""
    out = CommandParser(
        prog="osm serve",
        allow_abbrev=False,
        description="Serve models over HTTP: JSON, OpenAI chat completions, X-AnyLabeling, Label Studio, a web page.",
    )
    out.add_argument(
        "models",
        nargs="*",
        default=[SHIPPED],
        metavar="MODEL",
        help="trained models, as [NAME=]CHECKPOINT: a folder `final`, a hub id, a .pt file, or the name of a model "
        f"that comes with the package [{SHIPPED}]",
    )
    out.add_argument("--config", help="the model config of .pt files that do not have their own")
    add_settings(out)
    _add_common(out, port=8000)
    serving = out.add_argument_group("requests")
    serving.add_argument("--api_key_file", type=Path, metavar="FILE", help=f"file with the API key; or {KEY_VARIABLE}")
    serving.add_argument("--allow_origin", nargs="+", metavar="URL", help="origins whose web pages may call the server")
    serving.add_argument(
        "--allow_url_host", nargs="+", metavar="HOST", help="public hosts from which images may be downloaded"
    )
    serving.add_argument(
        "--allow_private_url_host",
        nargs="+",
        metavar="HOST[:PORT]",
        help="hosts that may have private addresses, such as a Label Studio server in your network",
    )
    serving.add_argument("--no_page", action="store_true", help="serve no web page")
    serving.add_argument("--openapi", action="store_true", help="print the OpenAPI schema instead of serving")
    serving.add_argument(
        "--requests_per_minute",
        type=int,
        default=0,
        help="maximum number of POST requests per client address [%(default)s: no limit]",
    )
    serving.add_argument("--max_body_mb", type=float, default=32, help="size limit of a request in MiB [%(default)s]")
    serving.add_argument("--max_regions", type=int, default=256, help="regions per request [%(default)s]")
    serving.add_argument("--max_vocabulary", type=int, default=5000, help="vocabulary names per request [%(default)s]")
    serving.add_argument(
        "--timeout", type=float, default=120, help="seconds that a request may wait and run [%(default)s]"
    )
    serving.add_argument(
        "--drain_seconds", type=float, default=30, help="seconds to let requests complete after SIGTERM [%(default)s]"
    )
    batches = out.add_argument_group("batches")
    batches.add_argument("--max_queue", type=int, default=128, help="requests that may wait, per model [%(default)s]")
    batches.add_argument("--max_batch_masks", type=int, default=256, help="regions per batch [%(default)s]")
    batches.add_argument(
        "--max_batch_requests", type=int, default=32, help="requests per batch; 1 turns batching off [%(default)s]"
    )
    batches.add_argument(
        "--batch_wait_ms",
        type=float,
        default=5,
        help="milliseconds that an idle model waits for more requests [%(default)s]",
    )
    batches.add_argument(
        "--cache_mb", type=float, default=512, help="memory for encoded images in MiB, per model [%(default)s]"
    )
    return out


def demo_parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm demo`."""
    out = CommandParser(
        prog="osm demo",
        allow_abbrev=False,
        description="Serve a web page that names what the user points at in an image (the page of osm serve).",
    )
    add_checkpoint(out)
    _add_common(out, port=7860)
    return out


def _add_common(out: argparse.ArgumentParser, port: int) -> None:
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    out.add_argument(
        "--segmenter",
        default="auto",
        help="segmenter that generates masks from points and boxes; none for no segmenter [%(default)s]",
    )
    out.add_argument("--sam_checkpoint", metavar="FILE", help="the weights of SAM")
    out.add_argument("--samples", type=Path, metavar="DIR", help="folder of additional sample images")
    out.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines connect [%(default)s]"
    )
    out.add_argument("--port", type=int, default=port, help="port [%(default)s]")
    out.add_argument(
        "--allow_host",
        nargs="+",
        metavar="NAME",
        help="additional host names of the server, for example behind a proxy",
    )
    out.add_argument("--max_file_mb", type=float, default=20, help="size limit of an image in MiB [%(default)s]")
    out.add_argument("--max_megapixels", type=float, default=25, help="maximum megapixels per image [%(default)s]")
    out.add_argument(
        "--max_uploads_mb", type=float, default=200, help="memory for uploaded images in MiB [%(default)s]"
    )


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Serve models until Ctrl+C or SIGTERM. Return 0, or 2 for a user error."""
    return _run(parser().parse_args(argv), "osm serve")


@console_command
def demo_main(argv: Sequence[str] | None = None) -> int:
    """Serve the web page until Ctrl+C or SIGTERM. Return 0, or 2 for a user error."""
    args = demo_parser().parse_args(argv)
    given = vars(args) | {"models": [args.checkpoint]}
    del given["checkpoint"]
    known = vars(parser().parse_args([]))
    known["max_body_mb"] = max(known["max_body_mb"], 4 / 3 * args.max_file_mb + 1)  # base64 is a third larger
    return _run(argparse.Namespace(**(known | given)), "osm demo")


def _run(args: argparse.Namespace, command: str) -> int:
    try:
        check(args, command)
        if args.openapi:
            echo(*openapi_text().splitlines())
        else:
            asyncio.run(_serve(args))
    except OsmError as error:
        logger.error(error)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    return 0


def check(args: argparse.Namespace, command: str = "osm serve") -> None:
    """Validate the flags before a model is loaded.

    Raises:
        OsmError: a flag has an invalid value, or a required package is not installed.
    """
    if not 1 <= args.port <= 65535:
        raise OsmError(f"--port {args.port} must be between 1 and 65535")
    positive = ("max_file_mb", "max_megapixels", "max_uploads_mb", "max_body_mb", "timeout", "drain_seconds")
    for flag in positive:
        if not getattr(args, flag) > 0:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be greater than 0")
    for flag in ("max_regions", "max_vocabulary", "max_queue", "max_batch_masks", "max_batch_requests"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    for flag in ("requests_per_minute", "batch_wait_ms", "cache_mb"):
        if not getattr(args, flag) >= 0:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 0 or more")
    if args.max_body_mb * 3 / 4 < args.max_file_mb:
        raise OsmError(
            f"--max_body_mb {args.max_body_mb:g} is too small for an image of --max_file_mb {args.max_file_mb:g}, "
            f"which is a third larger as base64; give at least {args.max_file_mb * 4 / 3 + 1:.0f}"
        )
    for name in args.allow_host or ():
        if not is_host_name(name):
            raise OsmError(f"--allow_host {name!r} is not a host name without a port, such as studio.example.org")
    for origin in args.allow_origin or ():
        if not is_origin(origin):
            raise OsmError(f"--allow_origin {origin!r} is not an origin, such as https://tool.example.org")
    if os.environ.get("LABEL_STUDIO_API_KEY") and not os.environ.get("LABEL_STUDIO_URL"):
        logger.warning("LABEL_STUDIO_API_KEY has no effect without LABEL_STUDIO_URL")
    model_names(args.models)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        needed = "pip install 'fastapi>=0.115' 'uvicorn>=0.34' 'python-multipart>=0.0.20' 'prometheus-client>=0.21'"
        raise OsmError(f"{command} requires more packages ({error}): {needed}") from None


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Return the checkpoints by the models' names, from arguments of the form [NAME=]CHECKPOINT.

    Raises:
        OsmError: a name is not plain, or two models have the same name.
    """
    found: dict[str, str] = {}
    for text in models:
        name, equals, checkpoint = text.partition("=")
        if not equals or is_remote(text) or "/" in name:
            name, checkpoint = _name_of(text), text
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
            raise OsmError(f"{text!r}: the model's name {name!r} may only have letters, digits, '-', '_' and '.'")
        if name in found:
            raise OsmError(
                f"two models have the name {name!r}: give one of them another name, as in {name}_2={checkpoint}"
            )
        found[name] = checkpoint
    return found


def _name_of(checkpoint: str) -> str:
    """Return the name of a model: its folder, or the folder above a folder `final`."""
    if shipped_model(checkpoint) is not None:
        return checkpoint
    parts = [part for part in checkpoint.split("?")[0].replace("\\", "/").split("/") if part not in ("", ".")]
    while len(parts) > 1 and parts[-1] in ("final", "last"):
        parts.pop()
    name = parts[-1].removesuffix(".pt") if parts else ""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def openapi_text() -> str:
    """Return the OpenAPI schema of the server as JSON."""
    from osm.serving.app import build_routes

    services = build_services(parser().parse_args([]))
    return json.dumps(build_routes(services).openapi(), indent=1)


async def _serve(args: argparse.Namespace) -> None:
    from osm.serving.app import create_app
    from osm.serving.http_server import bound_socket, on_signals, serve_until_signal

    access, key_is_new = access_rules(args)
    services = build_services(args)
    sock = bound_socket(args.host, args.port)

    def on_start() -> None:
        address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{sock.getsockname()[1]}"
        if key_is_new:
            logger.warning(f"--host {args.host}: other machines need the API key {access.api_key}")
            address += f"/#key={access.api_key}"
        echo(f"{address} (press Ctrl+C to stop)", flush=True)

    def on_end() -> None:
        services.draining = True
        logger.info("shutting down: waiting for requests in progress")

    loop, loading = asyncio.get_running_loop(), asyncio.current_task()

    def stop_loading() -> None:
        assert loading is not None
        loading.cancel()

    try:
        with on_signals(loop, stop_loading):
            for model in services.models.values():
                await model.start()
        await serve_until_signal(create_app(services, access), sock, args.drain_seconds, on_start, on_end)
    finally:
        for model in services.models.values():
            await model.close()
        sock.close()


def access_rules(args: argparse.Namespace) -> tuple[AccessRules, bool]:
    """Return who may use the server, and whether its API key was generated because none was given.

    A server that other machines can reach always needs a key.

    Raises:
        OsmError: the key file cannot be read, or the key is too short.
    """
    from osm.serving.app import AccessRules
    from osm.serving.guard import GuardLimits, HostNames

    key, generated = os.environ.get(KEY_VARIABLE, "").strip(), False
    if args.api_key_file is not None:
        key = read_text(args.api_key_file, "--api_key_file").strip()
        if not key:
            raise OsmError(f"--api_key_file {args.api_key_file} is empty")
    if key and (len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise OsmError(f"the API key must be at least {_MIN_KEY} printable ASCII characters, without spaces")
    if not key and args.host not in LOOPBACK_NAMES:
        key, generated = secrets.token_urlsafe(24), True
    bodies = max(512.0, 4 * args.max_body_mb)
    limits = GuardLimits(
        max_body=int(args.max_body_mb * 2**20),
        max_bodies=int(bodies * 2**20),
        max_requests=8 * args.max_queue,
        requests_per_minute=args.requests_per_minute,
        body_seconds=args.timeout,
    )
    return AccessRules(HostNames(args.host, args.allow_host or ()), limits, key, args.allow_origin or ()), generated


def build_services(args: argparse.Namespace) -> Services:
    """Return the services of a server whose models are not loaded yet."""
    from osm.serving.http_images import ImageLimits, RequestImages
    from osm.serving.metrics import ServerMetrics
    from osm.serving.page_samples import PageSamples
    from osm.serving.scheduler import BatchLimits, ModelQueue
    from osm.serving.services import ListLimits, Services
    from osm.serving.url_fetch import UrlFetcher, UrlRules
    from osm.serving.worker import WorkerProcess

    limits = ImageLimits(args.max_file_mb, args.max_megapixels, args.max_uploads_mb)
    rules = UrlRules(tuple(args.allow_url_host or ()), tuple(args.allow_private_url_host or ()))
    batch = BatchLimits(
        args.max_queue, args.max_batch_masks, args.max_batch_requests, args.batch_wait_ms / 1000, args.timeout
    )
    metrics = ServerMetrics()
    models = {
        name: ModelQueue(
            name,
            partial(WorkerProcess, _worker_settings(args, checkpoint)),
            batch,
            metrics.on_batch(name),
        )
        for name, checkpoint in model_names(args.models).items()
    }
    images = RequestImages(limits, UrlFetcher(rules, limits.file_bytes))
    samples = None if args.no_page else PageSamples(args.samples)
    return Services(models, images, ListLimits(args.max_regions, args.max_vocabulary), metrics, samples)


def _worker_settings(args: argparse.Namespace, checkpoint: str) -> WorkerSettings:
    from osm.serving.worker import WorkerSettings

    return WorkerSettings(
        checkpoint,
        args.segmenter,
        args.sam_checkpoint,
        args.device,
        args.config,
        tuple(args.settings or ()),
        int(args.cache_mb * 2**20),
        logs_json(),
    )
