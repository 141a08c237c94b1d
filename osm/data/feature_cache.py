"""An on-disk cache of vision-tower outputs, which makes it feasible to train for many epochs on a CPU.

`DIR/<fingerprint>/<dataset>/<key>.<hash>.<view>.npy` holds the frozen tower's tokens for one fixed view (scale, flip
and crop) of an image. The tokens have dtype float16 and shape (L, C), for L tokens and C channels. The cached tokens do
not include the window position embedding, which the model adds later.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osm.errors import OsmError
from osm.files import check_regular_file, remove_abandoned, replacing
from osm.io.paths import check_local

# The magic bytes of version 1.0 of the .npy format, the only version that this cache writes and accepts.
# Versions 2.0 and later of the .npy format are rejected, because they allow headers of up to 4 GB.
_MAGIC = b"\x93NUMPY\1\0"


class FeatureCache:
    """Reads and writes cached vision-tower tokens, one file per image view.

    Args:
        folder: cache folder, which several runs can share.
        fingerprint: hash of all settings that the tokens depend on (tower, sizes, views).

    Raises:
        OsmError: `folder` is a remote location.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        check_local(str(folder), "--feature_cache")
        self.folder = Path(folder) / fingerprint

    def path(self, dataset: str, key: str, view: int) -> Path:
        """Return the path of the file that holds the cached tokens for one image view."""
        # Sample keys come from untrusted tar members, so a key could be a path that points outside the cache folder.
        # Unsafe characters in a sample key are replaced, and a hash of the key keeps the file names unique.
        name = re.sub(r"[^A-Za-z0-9_-]", "_", key)[-80:]
        return self.folder / dataset / f"{name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.{view}.npy"

    def has(self, dataset: str, key: str, view: int) -> bool:
        """Return whether the vision-tower tokens for an image view are cached."""
        return self.path(dataset, key, view).is_file()

    def load(self, dataset: str, key: str, view: int | None) -> Tensor:
        """Load the cached vision-tower tokens for an image view, as a float16 tensor (L, C).

        Raises:
            OsmError: the file is missing or damaged, or holds an array with a different dtype or number of dimensions.
        """
        assert view is not None
        path = self.path(dataset, key, view)
        try:
            check_regular_file(path, "file")
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError(f"it does not begin with {_MAGIC!r}")
            # If the file is shorter than its header claims, memory-mapping fails before any memory is allocated.
            tokens = np.lib.format.open_memmap(path, mode="r")
            if tokens.dtype != np.float16 or tokens.ndim != 2:
                raise ValueError(f"expected float16 with shape (L, C), found {tokens.dtype} with shape {tokens.shape}")
            return torch.from_numpy(np.array(tokens))
        except Exception as error:  # a damaged header can raise almost any exception
            raise OsmError(
                f"--feature_cache: {path} cannot be read ({error}); delete the file and start again"
            ) from None

    def save(self, dataset: str, key: str, view: int, tokens: Tensor) -> None:
        """Write the tokens for an image view as float16.

        The file is written atomically, so a crash never leaves a partial file behind.
        """
        path = self.path(dataset, key, view)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, shared=True) as file:
            np.save(file, tokens.to(torch.float16).cpu().numpy())

    def remove_abandoned(self, dataset: str) -> None:
        """Remove the temporary files that killed runs left in the folder of a dataset."""
        remove_abandoned(self.folder / dataset)
