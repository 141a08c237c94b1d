"""The config.json of a Hugging Face folder, looked at before a model of its sizes is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import read_json

_MOST_LAYERS = 1024
_LARGEST_LLM_FIELD = {"hidden_size": 1 << 17, "intermediate_size": 1 << 20, "vocab_size": 1 << 24}
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "d_ff"),
    "vocab_size": ("vocab_size",),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_MARGIN = 8
"""The files may hold so many times fewer bytes than parameters are counted: 4-bit values, layers that share weights."""


def check_hub_folder(folder: Path) -> None:
    """Compares the sizes of a Hugging Face folder's config.json with its weight files, before a model is built.

    Raises:
        OsmError: no model is that large, or the weight files are far smaller than such a model.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    document, _ = read_json(path, "config")
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _WEIGHTS)
    for section in _sections(document):
        sizes = {what: _number(section, names) for what, names in _NAMES.items()}
        for what, most in (*_LARGEST_LLM_FIELD.items(), ("layers", _MOST_LAYERS)):
            if sizes[what] > most:
                raise OsmError(f"{path}: {_NAMES[what][0]} {shown(sizes[what])} is over {most}")
        width = sizes["hidden_size"]
        least = width * (sizes["vocab_size"] + sizes["layers"] * sizes["intermediate_size"])
        if stored and least > _MARGIN * stored:
            raise OsmError(
                f"{path}: a model of its sizes has at least {least / 1e6:.1f} million parameters, but the weight files "
                f"beside it have {stored} bytes"
            )


def _sections(document: Any) -> Iterator[Mapping[str, Any]]:
    """A config, and the configs of its parts within it."""
    if isinstance(document, Mapping):
        yield document
        for value in document.values():
            yield from _sections(value)


def _number(section: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((section[name] for name in names if type(section.get(name)) is int), 0)
