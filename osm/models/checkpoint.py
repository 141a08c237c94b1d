"""Reads and writes a model's trained parameters, as published `.pt` checkpoints or as safetensors folders."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from osm.config import as_dict
from osm.datasets.table import ANY_MODE
from osm.errors import OsmError, shown
from osm.files import read_json
from osm.models.bridges.bridge import Bridge
from osm.models.file_hashes import installed_version, remembered_hash
from osm.models.lora import lora_parameters, without_lora
from osm.models.model_config import ModelConfig, stored_model_config
from osm.models.probability_calibration import ProbabilityCalibration
from osm.models.towers.tower import Tower
from osm.models.weights import (
    check_finite,
    fingerprint,
    fingerprint_tensors,
    load_safetensors,
    load_torch,
)
from osm.shipped import shipped_model
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, join, public, suffix_of

FORMAT = 1
FILES = (".pt", ".pth")
"""The file suffixes of single-file checkpoints."""
_LISTED = 100  # a message lists at most this many entries, because a wrong config may have thousands of layers
_FROZEN = ("tower", "llm")
# Ignore buffers that old versions of transformers saved in checkpoints, because they are not trained.
IGNORED_SUFFIXES = ("embeddings.position_ids", "rotary_emb.inv_freq")
_TWICE = ("base_model.query_tokens", "context_query")  # published files store this tensor under both names


class CheckpointedModel(Protocol):
    """The attributes that a model must have so that its checkpoints can be saved and loaded.

    Attributes:
        window_pos_embed: the trained window position embedding.
        bridge: the trained bridge. LoRA in the LLM is the only other trained part.
        tower: the frozen tower. A checkpoint stores its hash.
        llm: the frozen LLM. A checkpoint stores its hash.
        frozen_hashes: the hashes of the frozen parts; empty until the hashes are first needed.
        calibration: the calibration of the model's probabilities, or None if the model is not calibrated.
    """

    config: ModelConfig
    window_pos_embed: nn.Parameter
    bridge: Bridge
    tower: Tower
    llm: nn.Module
    frozen_hashes: dict[str, str]
    calibration: ProbabilityCalibration | None


def without_ignored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the buffers whose names end with one of `IGNORED_SUFFIXES`."""
    return {key: value for key, value in state.items() if not key.endswith(IGNORED_SUFFIXES)}


def published_state_dict(model: CheckpointedModel) -> dict[str, Tensor]:
    """Return a model's trained tensors, keyed by their checkpoint names. The names depend on the bridge."""
    state = published_entries(model.window_pos_embed, model.bridge)
    return state | {f"lora.{name}": value.detach() for name, value in lora_parameters(model.llm).items()}


def published_entries(window_pos_embed: Tensor, bridge: Bridge) -> dict[str, Tensor]:
    """Return the entries of `published_state_dict` except LoRA's. No complete model is needed."""
    named = {f"bridge.{key}": value.detach() for key, value in bridge.state_dict().items()}
    return bridge.published_names({"window_pos_embed": window_pos_embed.detach(), **named})


def load_published_state_dict(
    model: CheckpointedModel,
    state: Mapping[str, Tensor],
    where: str,
    laid_out: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value,
) -> None:
    """Copy the entries of a published state dict into a model.

    Args:
        where: the name of the file, for messages.
        laid_out: a function that converts a value to the layout of its parameter before the copy (to shards if the
            model is sharded).

    Raises:
        OsmError: entries are missing, unexpected or have a different shape. The message lists these entries, and the
            model is unchanged.
    """
    wanted = published_state_dict(model)
    given = fitting(wanted, state, where)
    with torch.no_grad():
        for key, value in wanted.items():
            if key == _TWICE[0]:
                continue  # the entry shares its storage with `context_query`
            value.copy_(laid_out(given[key].reshape(value.shape), value))


def fitting(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Check that a state dict has the expected entries, and return it with the prefix `module.` removed from its keys.

    Tensors may have extra or missing leading dimensions of size 1.

    Raises:
        OsmError: entries are missing, unexpected or have a different shape (the message lists these entries), or
            contain NaN or infinite values (the message names the first entry).
    """
    given = without_ignored({str(key).replace("module.", ""): value for key, value in state.items()})
    twice = Counter(str(key).replace("module.", "") for key in state)
    problems = [f"given twice, with and without 'module.': {key}" for key, count in twice.items() if count > 1]
    problems += [f"missing: {key}" for key in wanted if key not in given]
    problems += [f"unexpected: {key}" for key in given if key not in wanted]
    for key in wanted.keys() & given.keys():
        value = given[key]
        if not _plain(value):
            problems.append(f"{key} is not a dense tensor of real numbers: {_kind(value)}")
        elif not _fits(value.shape, wanted[key].shape):
            shape = tuple(value.shape)
            problems.append(f"shape of {key}: {shape} in the file, {tuple(wanted[key].shape)} in the model")
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n  ".join(sorted(problems)[:_LISTED] + more)
        raise OsmError(f"{where} does not fit this model ({len(problems)} entries differ):\n  {listed}")
    check_finite(((key, given[key]) for key in sorted(wanted)), where)
    if _TWICE[0] in wanted and not torch.equal(*(given[key].flatten() for key in _TWICE)):
        warnings.warn(f"{where}: {_TWICE[0]} differs from {_TWICE[1]}, which is used", stacklevel=3)
    return given


def localized(location: str | Path, what: str) -> str | Path:
    """Return the local path of a checkpoint. A remote `.pt` file or model folder is downloaded first.

    Args:
        what: the beginning of error messages, such as "checkpoint".

    Raises:
        OsmError: the file does not exist.
        RunStopped: the file cannot be downloaded.
    """
    if not is_remote(location):
        return location
    url = check_location(location, what)
    if suffix_of(url) in FILES:
        return localize(url, what)
    for name in ("config.json", "model.safetensors"):
        folder = localize(join(url, name), what).parent
    return folder


def _trained(path: str | Path) -> tuple[Any, dict[str, Tensor], str]:
    """Return a checkpoint's config document (None if missing), its tensors, and its file name for use in messages."""
    path = shipped_model(path) or localized(path, "--start_from")
    if Path(path).is_dir():
        return *read_folder(Path(path)), str(path)
    published = read_published(path)
    return published.get("config"), published["model_state_dict"], f"checkpoint {path}"


def config_and_modes(path: str | Path) -> tuple[ModelConfig | None, list[str]]:
    """Return a checkpoint's model config (None if missing) and the names of its modes."""
    document, state, where = _trained(path)
    config = None if document is None else model_config(document, where)
    names = (str(key).replace("module.", "") for key in state)
    return config, [name.removeprefix("mode_query.") for name in names if name.startswith("mode_query.")]


def start_from(model: CheckpointedModel, path: str | Path) -> list[str]:
    """Load trained weights (a `.pt` file or a folder written by `save_folder`) into a model for further training.

    Modes that are missing from the checkpoint are initialized with the checkpoint's embedding of the mode `any`. If the
    checkpoint has no LoRA weights, LoRA's updates start at zero. Known names that the checkpoint lacks keep their
    initial values.

    Returns:
        the modes that the file lacks.

    Raises:
        OsmError: the file cannot be read, or does not fit the model.
    """
    document, given, where = _trained(path)
    if document is not None:
        check_frozen(model, document, where)
    path = public(path)
    state = {str(key): value for key, value in given.items()}
    there = {name.replace("module.", ""): value for name, value in state.items()}
    tables = ("mode_query", "qformer_mode_query")
    new = [m for m in model.config.modes if not any(f"{table}.{m}" in there for table in tables)]
    for mode in new:
        state |= {f"{table}.{mode}": there[f"{table}.{ANY_MODE}"] for table in tables if f"{table}.{ANY_MODE}" in there}
    if not any(name.startswith("lora.") for name in there):  # the file was trained without LoRA, so LoRA starts at zero
        state |= {name: value for name, value in published_state_dict(model).items() if name.startswith("lora.")}
    if document is not None:
        then = getattr(model_config(document, where).bridge, "direct_names", ())
        now = getattr(model.config.bridge, "direct_names", ())
        if then and now != then:
            state |= _matched_names(published_state_dict(model), now, state, then)
    load_published_state_dict(model, state, f"--start_from {path}")
    check_meaning(model, document, f"--start_from {path}", "dropout direct_names direct_mode_names")
    return new


def _matched_names(
    initial: Mapping[str, Tensor], now: Sequence[str], given: Mapping[str, Tensor], then: Sequence[str]
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors of its known names, with the rows of a model that has others.

    Each tensor has one row for each name. All but the embeddings have another row for the class *other* at the end
    (`osm.models.bridges.known_names`).

    Args:
        initial: the model's tensors, in which new names have their initial values.
        now: the known names of the model.
        given: the checkpoint's tensors.
        then: the known names of the checkpoint.
    """
    row_then = {name: row for row, name in enumerate(then)}
    row_now = {row: row_then[name] for row, name in enumerate(now) if name in row_then}
    matched = {}
    for key, value in given.items():
        plain = key.replace("module.", "")
        if not plain.startswith("direct.known.") or plain not in initial:
            continue
        rows = initial[plain].detach().clone()
        if value.shape != (len(then) + len(rows) - len(now), *rows.shape[1:]):
            continue  # reported when the tensors are loaded
        rows[list(row_now)] = value[list(row_now.values())].to(rows)
        rows[len(now) :] = value[len(then) :]
        matched[key] = rows
    return matched


def _plain(value: Any) -> bool:
    """Return whether a value can be copied into a parameter (not sparse, quantized, nested or on the meta device)."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.is_floating_point()
        and not (value.is_quantized or value.is_nested)
    )


def _kind(value: Any) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__


def _fits(given: torch.Size, wanted: torch.Size) -> bool:
    """Return whether two shapes are equal, ignoring leading dimensions of size 1."""

    def strip(shape: torch.Size) -> tuple[int, ...]:
        sizes = tuple(shape)
        while sizes and sizes[0] == 1:
            sizes = sizes[1:]
        return sizes

    return strip(given) == strip(wanted)


def read_published(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Read a `.pt` checkpoint without executing any code in it. If `device` is `meta`, no tensor values are read.

    Raises:
        OsmError: the file is missing, is broken, is an unsafe pickle, or has no `model_state_dict`.
    """
    path = localized(path, "checkpoint")
    try:
        document = load_torch(path, device)
    except ValueError as error:
        raise OsmError(f"checkpoint {path} {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("model_state_dict"), dict):
        raise OsmError(f"checkpoint {path} has no 'model_state_dict'")
    return document


def load_published(model: CheckpointedModel, path: str | Path) -> dict[str, Any]:
    """Load a published checkpoint file into a model; see `OmniScientModel.load_checkpoint`."""
    document = read_published(path)
    load_published_state_dict(model, document.pop("model_state_dict"), f"checkpoint {path}")
    return document


def frozen_hashes(model: CheckpointedModel, just_loaded: bool = False) -> dict[str, str]:
    """Return the hashes of the frozen tower and LLM, computed once per model. A quantized LLM has no hash.

    Args:
        just_loaded: whether the frozen parts still have the values of their files. A hash is then taken from the cache
            folder if the files are the same as when it was computed.
    """
    if not model.frozen_hashes:
        parts: dict[str, Callable[[], str]] = {"tower": lambda: fingerprint(model.tower)}
        if not model.config.llm.quantization:  # quantized values differ between packages and machines
            parts["llm"] = lambda: fingerprint_tensors(without_lora(model.llm.state_dict()))
        for part, compute in parts.items():
            files = getattr(getattr(model, part), "weight_files", ()) if just_loaded else ()
            what = json.dumps([part, as_dict(getattr(model.config, part)), _versions()], sort_keys=True)
            model.frozen_hashes[part] = remembered_hash(files, what, compute) if files else compute()
    return dict(model.frozen_hashes)


def _versions() -> list[str]:
    """Return the versions of the libraries that turn weight files into tensors."""
    return [
        f"{name} {installed_version(name)}" for name in ("torch", "transformers", "timm", "open_clip_torch", "gguf")
    ]


def config_document(model: CheckpointedModel) -> dict[str, Any]:
    """Return the contents of config.json, which `train.py` also stores in its checkpoints under the key `config`."""
    document = {"format": FORMAT, "model": as_dict(model.config), "frozen": frozen_hashes(model)}
    return document if model.calibration is None else {**document, "calibration": model.calibration.as_document()}


def model_config(document: Any, where: str) -> ModelConfig:
    """Return the model config from a config document, or raise OsmError if the document is invalid."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or "model" not in document:
        raise OsmError(f"{where}: not an OmniScientModel config (expected format {FORMAT})")
    try:
        return stored_model_config(document["model"], f"{where}: model")
    except OsmError as error:  # the checks of config sections do not know the file name
        raise error if where in str(error) else OsmError(f"{where}: {error}") from None


def check_frozen(model: CheckpointedModel, document: Mapping[str, Any], where: str) -> None:
    """Raise OsmError if the tower or the LLM differs from the one that the bridge was trained with."""
    found = frozen_hashes(model, just_loaded=True)
    hashes = document.get("frozen", {}) if isinstance(document, Mapping) else None
    if not isinstance(hashes, Mapping) or not set(hashes) <= set(_FROZEN):
        raise OsmError(f"{where}: 'frozen' may only contain hashes of {', '.join(_FROZEN)}; found {shown(hashes)}")
    for part, expected in hashes.items():
        if not isinstance(expected, str):
            raise OsmError(f"{where}: the hash of {part!r} must be a string; found {shown(expected)}")
        if part not in found:
            quantization = model.config.llm.quantization
            warnings.warn(
                f"{where}: because of model.llm.quantization {quantization!r}, the LLM is not checked against the one "
                "that the bridge was trained with",
                stacklevel=2,
            )
            continue
        if found.get(part) != expected:
            name = getattr(model.config, part).name or model.config.base_model_name
            raise OsmError(
                f"{where}: the {part} ({name!r}) is not the one that the bridge was trained with "
                f"(expected hash {expected[:12]}..., found {str(found.get(part))[:12]}...); provide the original "
                f"weights (source: {getattr(model.config, part).source!r})"
            )


def check_meaning(model: CheckpointedModel, document: Any, where: str, free: str = "dropout direct_mode_names") -> None:
    """Raise OsmError if settings that do not affect shapes (prompt, heads, ...) differ from those used in training.

    Args:
        free: the fields of the bridge and of LoRA that may differ, separated by spaces.
    """
    if not isinstance(document, Mapping) or "model" not in document:
        return
    then, now = model_config(document, where), model.config
    different = []
    if then.prompt != now.prompt:
        different.append(f"model.prompt was {then.prompt!r}, and is {now.prompt!r}")
    if then.prompt_first != now.prompt_first:
        different.append(f"model.prompt_first was {then.prompt_first}, and is {now.prompt_first}")
    for section in ("bridge", "lora"):
        one, other = getattr(then, section), getattr(now, section)
        if section == "lora" and not one.rank:  # the checkpoint has no LoRA, so LoRA is newly initialized
            continue
        for each in dataclasses.fields(one):
            values = getattr(one, each.name), getattr(other, each.name, None)
            if each.name not in free.split() and values[0] != values[1]:
                different.append(f"model.{section}.{each.name} was {shown(values[0])}, and is {shown(values[1])}")
    if different:
        raise OsmError(
            f"{where} was trained with different settings, so its weights are not compatible: {'; '.join(different)}"
        )


def save_folder(model: CheckpointedModel, folder: Path) -> None:
    """Write a model's config.json and model.safetensors to a folder."""
    write_folder(folder, config_document(model), published_state_dict(model))


def write_folder(folder: Path, document: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors via temporary files, so that a crash leaves no partial files behind."""
    folder.mkdir(parents=True, exist_ok=True)
    apart = {key: value.cpu().contiguous().clone() for key, value in state.items()}
    save_file(apart, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "config.json.tmp").write_text(json.dumps(document, indent=2) + "\n")
    # safetensors creates files that only the owner can read, so we set the usual permissions.
    shutil.copymode(folder / "config.json.tmp", folder / "model.safetensors.tmp")
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.tmp", folder / name)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config document and the trained tensors from a folder written by `save_folder`."""
    try:
        document = read_json(folder / "config.json", "checkpoint config")[0]
    except OsmError as error:
        inside = folder / "final"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise OsmError(f"{error}{hint}") from None
    try:
        return document, load_safetensors(folder / "model.safetensors")
    except ValueError as error:
        raise OsmError(f"checkpoint {folder / 'model.safetensors'} {error}") from None
