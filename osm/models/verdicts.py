"""The verdicts of the self-check: found when an LLM is first used with a bridge, then kept in the cache folder.

A large LLM is so checked once, and not at every start. Only verdicts are kept by which the LLM may be used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from osm.config import as_dict
from osm.documents import parse_json
from osm.models import kv_cache, llm, llm_inputs, self_check
from osm.models.bridges import gated
from osm.models.llm_inputs import LlmSupport, set_llm_support
from osm.models.lora import without_lora
from osm.models.self_check import name_of_llm
from osm.models.weights import cache_folder

if TYPE_CHECKING:
    from osm.models.osm import OmniScientModel

_SAMPLED = 1024  # values of each tensor that are in a key
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")


def check_model(model: OmniScientModel) -> None:
    """Checks a model that was just built, and notes what its LLM supports (`llm_support`).

    The check runs on the first use of an LLM with a bridge of these sizes; later its verdict is read. Nothing random is
    drawn from torch's generator, and no weight changes.

    Raises:
        OsmError: the LLM is not right with embeddings, padding or gradients, or the bridge does not reach it.
    """
    path = cache_folder() / "checks" / f"{check_key(model)}.json"
    support = _read(path)
    if support is None:
        support = self_check.examine(model)
        _write(path, support)
    set_llm_support(model.llm, support)
    slow = [] if support.cache else ["its cache is missing or wrong, so that each step reads all that came before"]
    slow += [] if support.chunks else ["its cache takes one token at a time"]
    slow += [] if support.generate else ["transformers' generate is wrong for it, and a greedy loop stands in"]
    if slow:
        warnings.warn(f"{name_of_llm(model)}: {'; '.join(slow)}: right, but slow", stacklevel=3)


def check_key(model: OmniScientModel) -> str:
    """A digest of all that a verdict depends on.

    That is: the LLM's config, name, shape and 1024 evenly spaced values of each of its tensors, the bridge's sizes,
    LoRA, the versions of the libraries, and the code of the check. It reads a few MB of a 7B model, not all.
    """
    config = model.config
    sizes = {name: as_dict(getattr(config, name)) for name in ("bridge", "lora")}
    digest = hashlib.sha256(json.dumps([config.llm.quantization, sizes], sort_keys=True).encode())
    digest.update(str(model.llm.config.to_json_string()).encode())
    for name in _LIBRARIES:
        digest.update(f"{name} {_version(name)}".encode())
    for module in (gated, kv_cache, llm, llm_inputs, self_check):
        digest.update(Path(str(module.__file__)).read_bytes())
    for name, value in sorted(without_lora(model.llm.state_dict()).items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(_sampled(value))
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sampled(value: Any) -> bytes:
    """Some values of a tensor, evenly spaced."""
    if type(value) not in (Tensor, nn.Parameter):
        return b""  # packed by a library; its shape and the LLM's config are in the key
    flat = value.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    return flat[::step][:_SAMPLED].cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _read(path: Path) -> LlmSupport | None:
    try:
        found = parse_json(path.read_bytes())
        if set(found) == set(asdict(LlmSupport())) and all(isinstance(value, bool) for value in found.values()):
            return LlmSupport(**found)
    except (OSError, ValueError, TypeError):
        pass
    return None


def _write(path: Path, support: LlmSupport) -> None:
    """A folder that cannot be written to costs another check, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(support), file)
        os.replace(temporary, path)
    except OSError:
        pass
