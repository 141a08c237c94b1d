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
from osm.files import check_regular_file
from osm.io.paths import check_local

_MAGIC = b"\x93NUMPY\1\0"  # of the version that we write: another one's header may claim 4 GB


class FeatureCache:
    """Reads and writes the tokens of views.

    Args:
        folder: shared by all runs. fingerprint: of everything that the tokens depend on (tower, sizes, views).
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        check_local(str(folder), "--feature_cache")
        self.folder = Path(folder) / fingerprint

    def path(self, dataset: str, key: str, view: int) -> Path:
        # Keys come from tar members: what could leave the folder is replaced, and the hash keeps the names apart.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", key)[-80:]
        return self.folder / dataset / f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.{view}.npy"

    def has(self, dataset: str, key: str, view: int) -> bool:
        return self.path(dataset, key, view).is_file()

    def load(self, dataset: str, key: str, view: int | None) -> Tensor:
        """float16 (L, C). Raises OsmError where it is missing, broken, or holds something else."""
        assert view is not None
        path = self.path(dataset, key, view)
        try:
            check_regular_file(path, "file")
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError(f"it does not begin with {_MAGIC!r}")
            # Mapped first: the file has to be as long as its header claims before memory is taken for it.
            tokens = np.lib.format.open_memmap(path, mode="r")
            if tokens.dtype != np.float16 or tokens.ndim != 2:
                raise ValueError(f"float16 of shape (L, C) needed, found {tokens.dtype} of shape {tokens.shape}")
            return torch.from_numpy(np.array(tokens))
        except Exception as error:  # a broken header raises about anything
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
