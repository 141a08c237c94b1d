"""Converts trained models between file formats (the commands `osm export` and `osm import`).

A trained model is stored as a folder (config.json, model.safetensors) or as a published `.pt` file. `osm export`
converts any output of a training run to a `.pt` file or a folder. `osm import` converts a published file, which does
not contain its model config, to a folder or `.pt` file that contains the model config.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from osm.errors import OsmError
from osm.files import replacing
from osm.models import checkpoint as files
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.factory import build, check_widths
from osm.models.model_config import ModelConfig
from osm.models.sizes import blank_entries
from osm.shipped import shipped_model
from osm.storage import remote
from osm.storage.locations import is_remote, public
from osm.storage.output import check_output, locked, open_output, remote_file
from osm.training.checkpoints import readable_checkpoints
from osm.training.sharded_layout import RUN_FILE, read_run_document, read_tensors
from osm.training.train_flags import WIDTH_FLAGS

PUBLISHED_SUFFIXES = (".pt", ".pth")
FOLDER_FILES = ("config.json", "model.safetensors")
OPTIMIZER = "optimizer_state_dict"


class Source(NamedTuple):
    """A trained model read from a file or folder.

    Attributes:
        config: the model config as a document; None for a published file, which contains no config.
        state: the model's tensors by their published names.
        where: the file or folder as it is shown in messages.
        rest: all remaining entries, such as the optimizer state and the progress.
    """

    config: Any
    state: dict[str, Tensor]
    where: str
    rest: dict[str, Any]


def read_source(path: Path) -> Source:
    """Read a trained model from a run's folder, a checkpoint or a model folder.

    Args:
        path: a run's folder (its newest checkpoint is read), a checkpoint, a model folder such as `final`, or the name
            of a model that ships with this package.

    Raises:
        OsmError: `path` contains no trained model, or the model's files are broken.
    """
    path = shipped_model(path) or path
    if not path.exists():
        raise OsmError(f"{path}: no such file or folder; expected a run's folder, a .pt checkpoint or a model folder")
    if not path.is_dir():
        document = files.read_published(path)
        state = document.pop("model_state_dict")
        return Source(document.pop("config", None), state, f"checkpoint {path}", document)
    if any((path / name).exists() for name in FOLDER_FILES):
        return Source(*files.read_folder(path), f"checkpoint folder {path}", {})
    if (path / RUN_FILE).is_file():
        return _read_step_folder(path)
    newest = next(iter(readable_checkpoints(path)), None)
    if newest is None:
        hint = f"; did you mean {path / 'final'}?" if (path / "final" / "config.json").is_file() else ""
        raise OsmError(f"{path} contains no model: neither a checkpoint nor {' and '.join(FOLDER_FILES)}{hint}")
    return read_source(newest)


def _read_step_folder(path: Path) -> Source:
    """Read a trained model from a step folder (a checkpoint in the layout of `osm.training.sharded_layout`)."""
    document = read_run_document(path)
    tensors = read_tensors(path)
    named = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    if not any(name.startswith("bridge.") for name in named) or "model" not in document:
        raise OsmError(f"checkpoint {path} contains no model")
    kind: type[Bridge] = BRIDGES.get(files.model_config(document["model"], f"checkpoint {path}").bridge.kind)
    rest = {"progress": document["progress"]}
    return Source(document["model"], kind.published_names(named), f"checkpoint {path}", rest)


def export(source: Path, out: str | Path, with_optimizer: bool = False, force: bool = False, half: bool = False) -> str:
    """Write a trained model as a published `.pt` file or as a folder.

    Args:
        source: see `read_source`.
        out: a name that ends in `.pt` or `.pth` is written as a file, any other name as a folder. `out` may be a URL
            that begins with `s3://` or `gs://`. The output is then staged on this machine, and uploaded once complete.
        with_optimizer: also write the optimizer state and the progress, so that training can be resumed.
        force: replace an existing model at `out`.
        half: round the values to float16.

    Returns:
        a line that describes what was written.

    Raises:
        OsmError: the source has no model or no config, or `out` already exists and must not be replaced.
        RunStopped: the server of a remote `out` does not answer.
    """
    with target(out, force) as path:
        return _export(source, path, public(out), with_optimizer, half)


def _export(source: Path, path: Path, out: str, with_optimizer: bool, half: bool) -> str:
    """Export a model to the local `path`. Error messages name the final location `out`, which may be a URL."""
    published = path.suffix in PUBLISHED_SUFFIXES
    if half and with_optimizer:
        raise OsmError(
            "--half cannot be combined with --with_optimizer, because training cannot be resumed from half precision"
        )
    if with_optimizer and not published:
        raise OsmError(
            f"--with_optimizer: a folder ({out}) cannot store the optimizer state; choose a name that ends in .pt"
        )
    found = read_source(source)
    if found.config is None:
        raise OsmError(
            f"{found.where} is a published file, which does not contain the model config; use "
            f"osm import {source} {out} --config <the config it was trained with>"
        )
    if with_optimizer and OPTIMIZER not in found.rest:
        raise OsmError(f"--with_optimizer: {found.where} has no optimizer state (key {OPTIMIZER})")
    wanted = blank_entries(files.model_config(found.config, found.where), found.state, found.where)
    given = files.fitting(wanted, found.state, found.where)
    # Each tensor is cloned, because torch.save stores the entire underlying storage of a view.
    entries = {name: given[name].reshape(blank.shape).clone() for name, blank in wanted.items()}
    if half:
        entries = {name: _halved(value, name, found.where) for name, value in entries.items()}
    if (twice := "base_model.query_tokens") in entries:
        entries[twice] = entries["context_query"]
    try:
        document = json.loads(json.dumps(found.config))  # tuples become lists, as in a JSON file
    except (TypeError, ValueError) as error:
        raise OsmError(f"{found.where}: the config contains values that JSON does not support ({error})") from None
    write(path, document, entries, found.rest if with_optimizer else {})
    return _summary(out, entries, found.where)


def _halved(value: Tensor, name: str, where: str) -> Tensor:
    """Convert a tensor to float16. Raises OsmError if a value is outside the range of float16."""
    small = value.half()
    if not small.isfinite().all():
        raise OsmError(
            f"--half: {where}: float16 cannot represent some values of the tensor {name} (above 65504, or not finite)"
        )
    return small


def import_published(
    zoo: Path, out: str | Path, config: ModelConfig, widths: Mapping[str, int | None], base: str, force: bool = False
) -> str:
    """Convert a published file, which does not contain its model config, to a model with a config.

    The model is built from the config to check that every tensor in the published file fits.

    Args:
        zoo: the published file.
        out: see `export`.
        config: the config of the model that the file was trained with. Modes that only the file has are added to the
            written config.
        widths: see `check_widths`.
        base: the config as it is shown in messages.
        force: replace an existing model at `out`.

    Returns:
        a line that describes what was written.

    Raises:
        OsmError: the file is not a published file or does not fit the config, the base model is not found, or `out`
            already exists and must not be replaced.
        RunStopped: the server of a remote `out` does not answer.
    """
    with target(out, force) as path:
        return _import(zoo, path, public(out), config, widths, base)


def _import(zoo: Path, path: Path, out: str, config: ModelConfig, widths: Mapping[str, int | None], base: str) -> str:
    """Import a model to the local `path`. Error messages name the final location `out`, which may be a URL."""
    if zoo.is_dir():
        raise OsmError(f"{zoo} is a folder, but osm import expects a published .pt file; use osm export for folders")
    found = read_source(zoo)
    if found.config is not None:
        raise OsmError(f"{found.where} already contains its model's config; use osm export {zoo} {out}")
    model, _ = build(config.with_modes(_modes(found.state)))
    check_widths(model, *(widths.get(flag) for flag in WIDTH_FLAGS))
    try:
        files.load_published_state_dict(model, found.state, found.where)
    except OsmError as error:
        raise OsmError(
            f"{error}; the weights in this file do not fit {base}; pass the config that they were trained with"
        ) from None
    document, entries = files.config_document(model), files.published_state_dict(model)
    write(path, document, entries, {})
    return _summary(out, entries, found.where)


@contextmanager
def target(out: str | Path, force: bool) -> Iterator[Path]:
    """Yield the local path to which the body of the `with` statement must write a model.

    If `out` is a local path, `out` itself is yielded. If `out` is a URL, a local staging path is yielded. The staged
    files are uploaded when the `with` statement exits without an exception.

    Raises:
        OsmError: `out` already exists and must not be replaced (without `force`), or a different process is writing to
            `out`.
        RunStopped: the server does not answer.
    """
    location = check_output(out, "out")
    if not is_remote(location):
        check_out(Path(location), force)
        yield Path(location)
    elif location.endswith(PUBLISHED_SUFFIXES):
        with remote_file(location, "out") as path:
            if not force and remote.exists(location):
                raise OsmError(f"{location} already exists: choose a different name, or replace it with --force")
            yield path
    else:
        output = open_output(location, "out")
        with locked(output):
            there = output.sizes()
            staged = any((output.path / name).is_file() for name in FOLDER_FILES)
            _check_remote_folder(output.where, there, force, staged)
            yield output.path
            # A remote folder counts as a model only if it contains a config.
            # An interrupted upload must not look like a complete model, so the old config is removed before the upload.
            # The new config is uploaded last.
            config, weights = FOLDER_FILES
            if config in there:
                output.remove(config)
            output.put(weights, config)


def _check_remote_folder(out: str, there: Mapping[str, int], force: bool, staged: bool) -> None:
    """Raise OsmError if a model must not be written to a remote folder; see `check_out` for local paths.

    Args:
        out: the URL, for messages.
        there: file name -> size of the files in the remote folder.
        staged: whether this machine has staged files of an interrupted upload, which may have left weights without a
            config in the remote folder.
    """
    config, weights = FOLDER_FILES
    if not there or (staged and config not in there and weights in there):
        return
    if not {config, weights} & there.keys():
        raise OsmError(f"{out} already exists but contains no model, so it is not replaced; choose a different path")
    if not force:
        half = "" if config in there else f" (without its {config}, probably because an upload was interrupted)"
        raise OsmError(f"{out} already exists{half}: choose a different name, or replace it with --force")


def check_out(out: Path, force: bool) -> None:
    """Raise OsmError if a model must not be written to a local path.

    Raises:
        OsmError: `out` exists and is not a model in the same file format, or is a model and `force` is not set.
    """
    file = out.suffix in PUBLISHED_SUFFIXES
    if not out.exists() or (not file and out.is_dir() and not any(out.iterdir())):
        return
    if file and not out.is_file():
        raise OsmError(
            f"{out} is a folder, but a name ending in {out.suffix} must refer to a file; choose a different name"
        )
    if not file and not any((out / name).is_file() for name in FOLDER_FILES):
        raise OsmError(f"{out} already exists but contains no model, so it is not replaced; choose a different path")
    if not force:
        raise OsmError(f"{out} already exists: choose a different name, or replace it with --force")


def write(out: Path, document: dict[str, Any], entries: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Write a model as a `.pt` file or folder under a temporary name, and rename the output once it is complete.

    Raises:
        OsmError: the output cannot be written.
    """
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
    """Return a model's modes, given its tensor names: every mode with a tensor named `mode_query.<mode>`."""
    return [
        mode
        for table, _, mode in (str(name).replace("module.", "").partition(".") for name in names)
        if table == "mode_query" and mode and "." not in mode
    ]


def _summary(out: str, entries: Mapping[str, Tensor], where: str) -> str:
    """Return a one-line summary of a written model: its path, the number of tensors, the source file and the modes."""
    return f"{out}: {len(entries)} entries of {where}; modes {', '.join(_modes(entries))}"
