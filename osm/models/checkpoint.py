"""Files of trained parts: the published `.pt` layout, and our folder with safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
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
from osm.models.lora import lora_parameters, without_lora
from osm.models.model_config import ModelConfig, stored_model_config
from osm.models.towers.tower import Tower
from osm.models.weights import check_finite, fingerprint, fingerprint_tensors, load_safetensors, load_torch
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, join, public, suffix_of

FORMAT = 1
FILES = (".pt", ".pth")
"""What the name of a checkpoint of one file ends with."""
_LISTED = 100  # entries that a message lists: a config may claim thousands of layers
_FROZEN = ("tower", "llm")
# Buffers that old transformers versions wrote into checkpoints; they carry nothing.
IGNORED_SUFFIXES = ("embeddings.position_ids", "rotary_emb.inv_freq")
_TWICE = ("base_model.query_tokens", "context_query")  # one tensor under two names, in published files


class CheckpointedModel(Protocol):
    """The attributes of a model that its checkpoint files depend on.

    Attributes:
        window_pos_embed, bridge: the trained parts, besides LoRA in the LLM.
        tower, llm: the frozen parts, of which a checkpoint holds hashes.
        frozen_hashes: the hashes of the frozen parts, empty until they are first needed.
    """

    config: ModelConfig
    window_pos_embed: nn.Parameter
    bridge: Bridge
    tower: Tower
    llm: nn.Module
    frozen_hashes: dict[str, str]


def without_ignored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(IGNORED_SUFFIXES)}


def published_state_dict(model: CheckpointedModel) -> dict[str, Tensor]:
    """The trained parts under the names of a checkpoint, which the bridge decides."""
    state = published_entries(model.window_pos_embed, model.bridge)
    return state | {f"lora.{name}": value.detach() for name, value in lora_parameters(model.llm).items()}


def published_entries(window_pos_embed: Tensor, bridge: Bridge) -> dict[str, Tensor]:
    """The same of parts that are in no model."""
    named = {f"bridge.{key}": value.detach() for key, value in bridge.state_dict().items()}
    return bridge.published_names({"window_pos_embed": window_pos_embed.detach(), **named})


def load_published_state_dict(
    model: CheckpointedModel,
    state: Mapping[str, Tensor],
    where: str,
    laid_out: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value,
) -> None:
    """Copies published entries into the model.

    Args:
        laid_out: makes of a value and its parameter what can be copied there (shards, where the model is in shards).

    Raises:
        OsmError: lists the entries that are missing, unexpected or of another shape; the model is then unchanged.
    """
    wanted = published_state_dict(model)
    given = fitting(wanted, state, where)
    with torch.no_grad():
        for key, value in wanted.items():
            if key == _TWICE[0]:
                continue  # the storage of the other
            value.copy_(laid_out(given[key].reshape(value.shape), value))


def fitting(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The entries of a state that are wanted, without `module.`; their shapes fit but for leading axes of 1.

    Raises:
        OsmError: lists the entries that are missing, unexpected or of another shape, or names the first whose values
            are nan or infinite.
    """
    given = without_ignored({str(key).replace("module.", ""): value for key, value in state.items()})
    twice = Counter(str(key).replace("module.", "") for key in state)
    problems = [f"given twice, with and without 'module.': {key}" for key, count in twice.items() if count > 1]
    problems += [f"missing: {key}" for key in wanted if key not in given]
    problems += [f"unexpected: {key}" for key in given if key not in wanted]
    for key in wanted.keys() & given.keys():
        value = given[key]
        if not _plain(value):
            problems.append(f"{key} is no dense tensor of real numbers: {_kind(value)}")
        elif not _fits(value.shape, wanted[key].shape):
            shape = tuple(value.shape)
            problems.append(f"shape of {key}: {shape} in the file, {tuple(wanted[key].shape)} in the model")
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n  ".join(sorted(problems)[:_LISTED] + more)
        raise OsmError(f"{where} does not fit this model ({len(problems)} entries):\n  {listed}")
    check_finite(((key, given[key]) for key in sorted(wanted)), where)
    if _TWICE[0] in wanted and not torch.equal(*(given[key].flatten() for key in _TWICE)):
        warnings.warn(f"{where}: {_TWICE[0]} differs from {_TWICE[1]}, which is used", stacklevel=3)
    return given


def localized(location: str | Path, what: str) -> str | Path:
    """A checkpoint as it is, or the local copy of a remote one: of a `.pt` file, or of a folder of `save_folder`.

    Args:
        what: begins the message, such as "checkpoint".

    Raises:
        OsmError: there is no such file. RunStopped: it cannot be fetched.
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
    """The config document (None where a `.pt` has none), the entries, and how to name the file in a message."""
    path = localized(path, "--start_from")
    if Path(path).is_dir():
        return *read_folder(Path(path)), str(path)
    published = read_published(path)
    return published.get("config"), published["model_state_dict"], f"checkpoint {path}"


def config_and_modes(path: str | Path) -> tuple[ModelConfig | None, list[str]]:
    """The model config that trained weights were saved with, if they tell, and the modes they have."""
    document, state, where = _trained(path)
    config = None if document is None else model_config(document, where)
    names = (str(key).replace("module.", "") for key in state)
    return config, [name.removeprefix("mode_query.") for name in names if name.startswith("mode_query.")]


def start_from(model: CheckpointedModel, path: str | Path) -> list[str]:
    """Copies trained weights (a `.pt` file or a folder of `save_folder`) into a model that is to be trained further.

    Modes that the file does not have start as its `any`.

    Returns:
        those modes.

    Raises:
        OsmError: it cannot be read, or does not fit otherwise.
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
    if not any(name.startswith("lora.") for name in there):  # trained without: it starts as no change
        state |= {name: value for name, value in published_state_dict(model).items() if name.startswith("lora.")}
    load_published_state_dict(model, state, f"--start_from {path}")
    check_meaning(model, document, f"--start_from {path}")
    return new


def _plain(value: Any) -> bool:
    """Whether a value can be copied into a parameter; a sparse, quantised, nested or meta tensor cannot."""
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
    """Leading axes of 1 carry nothing."""

    def strip(shape: torch.Size) -> tuple[int, ...]:
        sizes = tuple(shape)
        while sizes and sizes[0] == 1:
            sizes = sizes[1:]
        return sizes

    return strip(given) == strip(wanted)


def read_published(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Reads a `.pt` checkpoint without running any code in it; on the device `meta` without its tensors' values.

    Raises:
        OsmError: missing, broken, an unsafe pickle, or without `model_state_dict`.
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
    """See `OmniScientModel.load_checkpoint`."""
    document = read_published(path)
    load_published_state_dict(model, document.pop("model_state_dict"), f"checkpoint {path}")
    return document


def frozen_hashes(model: CheckpointedModel) -> dict[str, str]:
    """Fingerprints of the frozen parts, computed once a model; an LLM in 8 or 4 bits has none."""
    if not model.frozen_hashes:
        model.frozen_hashes = {"tower": fingerprint(model.tower)}
        if not model.config.llm.quantization:  # quantised values differ between packages and machines
            model.frozen_hashes["llm"] = fingerprint_tensors(without_lora(model.llm.state_dict()))
    return dict(model.frozen_hashes)


def config_document(model: CheckpointedModel) -> dict[str, Any]:
    """What config.json holds, and train.py's checkpoints beside the published entries."""
    return {"format": FORMAT, "model": as_dict(model.config), "frozen": frozen_hashes(model)}


def model_config(document: Any, where: str) -> ModelConfig:
    """The model config of a config document. Raises OsmError where it is not one."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or "model" not in document:
        raise OsmError(f"{where}: not a config of an OmniScientModel (format {FORMAT})")
    try:
        return stored_model_config(document["model"], f"{where}: model")
    except OsmError as error:  # of the sections' own checks, which do not know the file
        raise error if where in str(error) else OsmError(f"{where}: {error}") from None


def check_frozen(model: CheckpointedModel, document: Mapping[str, Any], where: str) -> None:
    """Raises OsmError where the frozen parts are not those the bridge was trained with."""
    found = frozen_hashes(model)
    hashes = document.get("frozen", {}) if isinstance(document, Mapping) else None
    if not isinstance(hashes, Mapping) or not set(hashes) <= set(_FROZEN):
        raise OsmError(f"{where}: 'frozen' has to hold the hashes of {', '.join(_FROZEN)}, found {shown(hashes)}")
    for part, expected in hashes.items():
        if not isinstance(expected, str):
            raise OsmError(f"{where}: the hash of {part!r} is a text, found {shown(expected)}")
        if part not in found:
            quantization = model.config.llm.quantization
            warnings.warn(
                f"{where}: with model.llm.quantization {quantization!r} it is not checked that the LLM is the one that "
                "the bridge was trained with",
                stacklevel=2,
            )
            continue
        if found.get(part) != expected:
            name = getattr(model.config, part).name or model.config.base_model_name
            raise OsmError(
                f"{where}: its {part} {name!r} had the hash {expected[:12]}..., the one found here has "
                f"{str(found.get(part))[:12]}...: the bridge would be fed by another model. Provide the {part} it was "
                f"trained with (source {getattr(model.config, part).source!r})"
            )


def check_meaning(model: CheckpointedModel, document: Any, where: str) -> None:
    """Raises OsmError where settings that no shape tells (heads, gains, ...) are not those of the trained weights."""
    if not isinstance(document, Mapping) or "model" not in document:
        return
    then, now = model_config(document, where), model.config
    different = []
    for section in ("bridge", "lora"):
        one, other = getattr(then, section), getattr(now, section)
        if section == "lora" and not one.rank:  # it starts anew
            continue
        for each in dataclasses.fields(one):
            values = getattr(one, each.name), getattr(other, each.name, None)
            if each.name != "dropout" and values[0] != values[1]:
                different.append(f"model.{section}.{each.name} was {values[0]}, and is {values[1]}")
    if different:
        raise OsmError(
            f"{where} was trained with other settings, under which its weights mean something else: "
            f"{'; '.join(different)}"
        )


def save_folder(model: CheckpointedModel, folder: Path) -> None:
    """Writes config.json and model.safetensors."""
    write_folder(folder, config_document(model), published_state_dict(model))


def write_folder(folder: Path, document: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes both files under temporary names first, so that a crash leaves no half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    apart = {key: value.cpu().contiguous().clone() for key, value in state.items()}
    save_file(apart, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "config.json.tmp").write_text(json.dumps(document, indent=2) + "\n")
    # safetensors makes files that nobody else may read; a model is shared as any other file is.
    shutil.copymode(folder / "config.json.tmp", folder / "model.safetensors.tmp")
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.tmp", folder / name)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config document and the trained parts of a folder of `save_folder`."""
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
