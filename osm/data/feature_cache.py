"""Tower tokens of fixed views on disk, so that a CPU can train many epochs.

`DIR/<fingerprint>/<set>/<key>.<hash>.<view>.npy` holds the frozen tower's tokens of one view (L, C) as float16, before
the window position embedding is added.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osm.errors import OsmError


class FeatureCache:
    """Reads and writes the tokens of views.

    Args:
        folder: shared by all runs. fingerprint: of everything that the tokens depend on (tower, sizes, views).
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(folder) / fingerprint

    def path(self, dataset: str, key: str, view: int) -> Path:
        # Keys come from tar members: what could leave the folder is replaced, and the hash keeps the names apart.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", key)[-80:]
        return self.folder / dataset / f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.{view}.npy"

    def has(self, dataset: str, key: str, view: int) -> bool:
        return self.path(dataset, key, view).is_file()

    def load(self, dataset: str, key: str, view: int | None) -> Tensor:
        """float16 (L, C). Raises OsmError where it is missing or broken."""
        assert view is not None
        path = self.path(dataset, key, view)
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise OsmError(f"--feature_cache: {path} cannot be read ({error}); delete it and start again") from None

    def save(self, dataset: str, key: str, view: int, tokens: Tensor) -> None:
        """Writes under a temporary name first: a crash leaves no half of a file."""
        path = self.path(dataset, key, view)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, tokens.to(torch.float16).cpu().numpy())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
