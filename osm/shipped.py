"""The models that ship with this package: folders in osm/weights, which are found by their names."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

FROZEN_PARTS = "requirements.txt"
"""The file in a model's folder that lists the pip packages of its frozen parts, with their versions and hashes."""


def shipped_folder() -> Path:
    """Return the folder of the weights that ship with this package."""
    return Path(str(resources.files("osm"))) / "weights"


def shipped_model(name: str | Path) -> Path | None:
    """Return the folder of a model that ships with this package, or None if `name` is unknown or is a local path."""
    folder = shipped_folder() / str(name)
    plain = str(name).isidentifier() and not Path(name).exists()
    return folder if plain and (folder / "model.safetensors").is_file() else None


def fetchable() -> list[str]:
    """Return the names of the shipped models whose frozen parts come from pip packages."""
    return sorted(path.parent.name for path in shipped_folder().glob(f"*/{FROZEN_PARTS}"))
