"""What an interrupted pre-training left in its `--work` folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osm.errors import OsmError
from osm.models.weights import load_torch


def read_state(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The state of a training with the same `config`.

    Raises:
        OsmError: it is broken, or of another one.
    """
    try:
        document = load_torch(path)
    except ValueError as error:
        raise OsmError(f"{path} {error}; choose another --work folder, or remove it") from None
    if not isinstance(document, dict) or document.get("config") != config:
        raise OsmError(f"{path} was made with other settings; choose another --work folder, or remove it")
    return document
