"""Makes the package gguf read a file in less time, for transformers, which reads a GGUF file three times.

transformers reads the file for the config, for the weights and for the tokenizer. The reader of gguf makes several
`numpy.memmap` slices for each of the tokenizer's 100,000 entries, and slices of a memmap take long to create. For each
module of the model, transformers also has gguf build the table of tensor names again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np


class _PlainNumpy:
    """The module numpy, except that `memmap` returns a plain array that views the mapped file."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def memmap(*args: Any, **options: Any) -> np.ndarray:
        return np.memmap(*args, **options).view(np.ndarray)


@contextlib.contextmanager
def quick_gguf() -> Iterator[None]:
    """Within this context, a GGUF file is read once, without memmap slices, and each table of names is built once.

    The values that are read are the same. The file must not change in the meantime. Other threads that use the package
    gguf are affected as well.
    """
    import gguf
    from gguf import gguf_reader

    replaced = [
        (gguf, "GGUFReader", lru_cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
        (gguf_reader, "np", _PlainNumpy()),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(replaced, before, strict=True):
            setattr(module, name, value)
