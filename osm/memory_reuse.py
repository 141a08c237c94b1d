"""Keeps freed memory in the process, so that large arrays do not have to be mapped and zeroed again.

glibc returns every freed block above 32 MiB to the kernel. A program that needs blocks of the same sizes again and
again, such as the activations of each image, then spends several percent of its time on page faults.
"""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_KEPT = (1 << 30, 1 << 30)
_DEFAULT = (32 << 20, 64 << 20)  # what glibc's thresholds become after the first large blocks


def keep_freed_memory(keep: bool = True) -> bool:
    """Let glibc keep up to 1 GiB of freed memory in the process, or let it return freed memory as it does by default.

    The setting holds for the whole process. It has no effect if the environment variable MALLOC_TRIM_THRESHOLD_ or
    MALLOC_MMAP_THRESHOLD_ is set.

    Returns:
        whether the C library has these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    mapped, trimmed = _KEPT if keep else _DEFAULT
    return bool(mallopt(_MMAP_THRESHOLD, mapped) and mallopt(_TRIM_THRESHOLD, trimmed))
