"""Files of a trained model, from one form into another: `osm export` and `osm import`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from osm.config import add_settings
from osm.errors import OsmError, exit_code
from osm.files import replacing
from osm.models import checkpoint as files
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.factory import base_config, build, check_widths
from osm.models.model_config import ModelConfig
from osm.models.sizes import blank_entries
from osm.storage import remote
from osm.storage.locations import is_remote, public
from osm.storage.output import check_output, locked, open_output, remote_file
from osm.terminal import echo
from osm.training import dcp
from osm.training.config import MODEL_FLAGS, WIDTH_FLAGS
from osm.training.saved import candidates, run_document

PUBLISHED_SUFFIXES = (".pt", ".pth")
FOLDER_FILES = ("config.json", "model.safetensors")
OPTIMIZER = "optimizer_state_dict"


class Source(NamedTuple):
    """Trained parts, as a file or a folder has them.

    Attributes:
        config: the config document; None in a published file.
        state: the entries under the published names.
        where: how a message calls it.
        rest: what else is there: optimizer state, progress, ...
    """

    config: Any
    state: dict[str, Tensor]
    where: str
    rest: dict[str, Any]


def read_source(path: Path) -> Source:
    """Reads a run's folder (its newest checkpoint), a `.pt` checkpoint or one of mid-run, or a folder `final`.

    Raises:
        OsmError: it is none of them, or broken.
    """
    if not path.exists():
        raise OsmError(f"{path}: no such file or folder; a run's folder, a .pt checkpoint or a folder `final` is read")
    if not path.is_dir():
        document = files.read_published(path)
        state = document.pop("model_state_dict")
        return Source(document.pop("config", None), state, f"checkpoint {path}", document)
    if any((path / name).exists() for name in FOLDER_FILES):
        return Source(*files.read_folder(path), f"checkpoint folder {path}", {})
    if (path / "run.json").is_file():
        return _in_mid_run(path)
    newest = next(iter(candidates(path)), None)
    if newest is None:
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / "config.json").is_file() else ""
        raise OsmError(f"{path} holds no model: no checkpoint, and no {' and '.join(FOLDER_FILES)}{hint}")
    return read_source(newest)


def _in_mid_run(path: Path) -> Source:
    """A checkpoint of `osm.training.dcp`."""
    document = run_document(path)
    named = {name.removeprefix("model."): value for name, value in dcp.read_whole(path).items() if name[:6] == "model."}
    if not any(name.startswith("bridge.") for name in named) or "model" not in document:
        raise OsmError(f"checkpoint {path} holds no model")
    kind: type[Bridge] = BRIDGES.get(files.model_config(document["model"], f"checkpoint {path}").bridge.kind)
    rest = {"progress": document["progress"]}
    return Source(document["model"], kind.published_names(named), f"checkpoint {path}", rest)


def export(source: Path, out: str | Path, with_optimizer: bool = False, force: bool = False, half: bool = False) -> str:
    """Writes a trained model in the other form: `out` is a published `.pt` file by its name, else a folder.

    `out` may be a URL on `s3://` or `gs://`: what is written is staged on this machine and uploaded when whole.

    Returns:
        a line that says what was written.

    Raises:
        OsmError: a source without a model or its config, or an `out` that is in the way.
        RunStopped: the server of a remote `out` does not answer.
    """
    with target(out, force) as path:
        return _export(source, path, public(out), with_optimizer, half)


def _export(source: Path, path: Path, out: str, with_optimizer: bool, half: bool) -> str:
    """Writes to `path`, which messages call `out`."""
    published = path.suffix in PUBLISHED_SUFFIXES
    if half and with_optimizer:
        raise OsmError("--half: training does not go on from rounded values; leave out --half, or --with_optimizer")
    if with_optimizer and not published:
        raise OsmError(f"--with_optimizer: the folder {out} has no place for it; export to a name that ends in .pt")
    found = read_source(source)
    if found.config is None:
        raise OsmError(
            f"{found.where} does not tell its model's config, as the published files do not: "
            f"osm import {source} {out} --config <the config it was trained with>"
        )
    if with_optimizer and OPTIMIZER not in found.rest:
        raise OsmError(f"--with_optimizer: {found.where} has no {OPTIMIZER}")
    wanted = blank_entries(files.model_config(found.config, found.where), found.state, found.where)
    given = files.fitting(wanted, found.state, found.where)
    # A copy each: an entry may be a view of something larger, which would be written whole.
    entries = {name: given[name].reshape(blank.shape).clone() for name, blank in wanted.items()}
    if half:
        entries = {name: _halved(value, name, found.where) for name, value in entries.items()}
    if (twice := "base_model.query_tokens") in entries:
        entries[twice] = entries["context_query"]
    try:
        document = json.loads(json.dumps(found.config))  # the same plain values in both forms: lists, no tuples
    except (TypeError, ValueError) as error:
        raise OsmError(f"{found.where}: its config holds more than plain values ({error})") from None
    write(path, document, entries, found.rest if with_optimizer else {})
    return _told(out, entries, found.where)


def _halved(value: Tensor, name: str, where: str) -> Tensor:
    small = value.half()
    if not small.isfinite().all():
        raise OsmError(f"--half: {where}: {name} has values that float16 does not hold (beyond 65504, or not finite)")
    return small


def import_published(
    zoo: Path, out: str | Path, config: ModelConfig, widths: Mapping[str, int | None], base: str, force: bool = False
) -> str:
    """Writes a published file, which does not tell its config, as our own: the model is built to check every entry.

    Args:
        config: the model the file was trained in; modes that it has beyond these are added.
        widths: see `check_widths`. base: how a message names the config.

    Returns:
        a line that says what was written.

    Raises:
        OsmError: a file that is none, or does not fit; a base that is not found; an `out` that is in the way.
        RunStopped: the server of a remote `out` does not answer.
    """
    with target(out, force) as path:
        return _import(zoo, path, public(out), config, widths, base)


def _import(zoo: Path, path: Path, out: str, config: ModelConfig, widths: Mapping[str, int | None], base: str) -> str:
    """Writes to `path`, which messages call `out`."""
    if zoo.is_dir():
        raise OsmError(f"{zoo} is a folder, and a published .pt file is imported; osm export reads folders")
    found = read_source(zoo)
    if found.config is not None:
        raise OsmError(f"{found.where} tells its model's config itself: osm export {zoo} {out}")
    model, _ = build(config.with_modes(_modes(found.state)))
    check_widths(model, *(widths.get(flag) for flag in WIDTH_FLAGS))
    try:
        files.load_published_state_dict(model, found.state, found.where)
    except OsmError as error:
        raise OsmError(f"{error}; {base} is another model than it was trained in; name that one") from None
    document, entries = files.config_document(model), files.published_state_dict(model)
    write(path, document, entries, {})
    return _told(out, entries, found.where)


@contextmanager
def target(out: str | Path, force: bool) -> Iterator[Path]:
    """Where the block writes a model: `out` itself, or what is uploaded to it once the block has ended well.

    Raises:
        OsmError: something stands at `out` that must not, or not without --force, be replaced; or another process
            writes there. RunStopped: the server does not answer.
    """
    location = check_output(out, "out")
    if not is_remote(location):
        check_out(Path(location), force)
        yield Path(location)
    elif location.endswith(PUBLISHED_SUFFIXES):
        with remote_file(location, "out") as path:
            if not force and remote.exists(location):
                raise OsmError(f"{location} is there already: name another, or replace it with --force")
            yield path
    else:
        output = open_output(location, "out")
        with locked(output):
            there = output.sizes()
            staged = any((output.path / name).is_file() for name in FOLDER_FILES)
            _check_remote_folder(output.where, there, force, staged)
            yield output.path
            # A folder is a model's once it has a config: that one goes first and comes last.
            config, weights = FOLDER_FILES
            if config in there:
                output.remove(config)
            output.put(weights, config)


def _check_remote_folder(out: str, there: Mapping[str, int], force: bool, staged: bool) -> None:
    """As `check_out`. `staged`: an upload of this machine was cut off, whose weights may be there without a config."""
    config, weights = FOLDER_FILES
    if not there or (staged and config not in there and weights in there):
        return
    if not {config, weights} & there.keys():
        raise OsmError(f"{out} is there and holds no model that could be replaced: name another folder, or a .pt file")
    if not force:
        half = "" if config in there else f" (without its {config}, as an upload that was cut off leaves it)"
        raise OsmError(f"{out} is there already{half}: name another, or replace it with --force")


def check_out(out: Path, force: bool) -> None:
    """Raises OsmError where something stands at `out` that must not, or not without --force, be replaced."""
    file = out.suffix in PUBLISHED_SUFFIXES
    if not out.exists() or (not file and out.is_dir() and not any(out.iterdir())):
        return
    if file and not out.is_file():
        raise OsmError(f"{out} is a folder, and a name that ends in {out.suffix} is written as a file: name another")
    if not file and not any((out / name).is_file() for name in FOLDER_FILES):
        raise OsmError(f"{out} is there and holds no model that could be replaced: name another folder, or a .pt file")
    if not force:
        raise OsmError(f"{out} is there already: name another, or replace it with --force")


def write(out: Path, document: dict[str, Any], entries: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Writes a `.pt` file or a folder, which takes its name once it is whole. Raises OsmError where it cannot."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix in PUBLISHED_SUFFIXES:
            with replacing(out) as file:
                torch.save({"model_state_dict": entries, **rest, "config": document}, file)
        elif out.is_dir() and any(out.iterdir()):
            files.write_folder(out, document, entries)
        else:
            new = Path(os.path.abspath(out) + ".tmp")
            files.write_folder(new, document, entries)
            os.replace(new, out)
    except (OSError, SafetensorError) as error:
        raise OsmError(f"{out} cannot be written ({error})") from None


def _modes(names: Iterable[str]) -> list[str]:
    return [
        mode
        for table, _, mode in (str(name).replace("module.", "").partition(".") for name in names)
        if table == "mode_query" and mode and "." not in mode
    ]


def _told(out: str, entries: Mapping[str, Tensor], where: str) -> str:
    return f"{out}: {len(entries)} entries of {where}; modes {', '.join(_modes(entries))}"


def export_parser() -> argparse.ArgumentParser:
    """The flags of `osm export`."""
    out = argparse.ArgumentParser(
        prog="osm export",
        allow_abbrev=False,
        description="Writes a trained model as a folder (config.json, model.safetensors), or as a published .pt file.",
    )
    out.add_argument(
        "source", type=Path, help="a run's folder (its newest checkpoint), a .pt file, or a folder `final`"
    )
    out.add_argument(
        "out", help="a name that ends in .pt gives a published file, any other a folder; or a URL on s3:// or gs://"
    )
    out.add_argument(
        "--with_optimizer", action="store_true", help="all that the source's .pt holds, so that training can go on"
    )
    out.add_argument("--half", action="store_true", help="in float16: half the size, values rounded to 11 bits")
    out.add_argument("--force", action="store_true", help="replace an older model at OUT")
    return out


def import_parser() -> argparse.ArgumentParser:
    """The flags of `osm import`."""
    out = argparse.ArgumentParser(
        prog="osm import",
        allow_abbrev=False,
        description="Writes a .pt file of the published code, which does not tell its model, as a folder that does.",
    )
    out.add_argument("zoo", type=Path, metavar="ZOO.pt", help="the published file")
    out.add_argument("out", help="a folder, or a name that ends in .pt; or a URL on s3:// or gs://")
    out.add_argument("--config", default="osm", help="a config of the project, or a YAML file [%(default)s]")
    add_settings(out)
    for name, kind in MODEL_FLAGS.items():
        out.add_argument(f"--{name}", type=kind, help="default: the config's")
    for name in WIDTH_FLAGS:
        out.add_argument(f"--{name}", type=int, help="checked against the base model")
    out.add_argument("--force", action="store_true", help="replace an older model at OUT")
    return out


def export_main(argv: Sequence[str] | None = None) -> int:
    """The command `osm export`; returns the exit code."""
    args = export_parser().parse_args(argv)
    return _run(lambda: export(args.source, args.out, args.with_optimizer, args.force, args.half))


def import_main(argv: Sequence[str] | None = None) -> int:
    """The command `osm import`; returns the exit code."""
    args = import_parser().parse_args(argv)
    given = vars(args)
    overrides = {name: given[name] for name in MODEL_FLAGS if name != "base_model_name"}
    named = {flag: given[flag] for flag in ("config", *MODEL_FLAGS) if given[flag] is not None}
    base = " ".join(f"--{flag} {value}" for flag, value in named.items())

    def job() -> str:
        config = base_config(args.base_model_name or args.config, args.config, args.settings, **overrides)
        widths = {flag: given[flag] for flag in WIDTH_FLAGS}
        return import_published(args.zoo, args.out, config, widths, base, args.force)

    return _run(job)


def _run(job: Callable[[], str]) -> int:
    try:
        echo(job())
    except OsmError as error:
        echo(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    return 0
