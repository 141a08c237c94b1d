"""Keeps freed memory in the process, so that large arrays do not have to be mapped and zeroed again.

glibc returns every freed block above 32 MiB to the kernel. A program that needs blocks of the same sizes again and
again, such as the activations of each image, then spends several percent of its time on page faults. A process that
keeps freed memory stays near its peak of resident memory.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_DEFAULT, _KEPT = 32 << 20, 1 << 30  # the largest threshold that glibc chooses itself, and ours
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(keep: bool = True) -> bool:
    """Let glibc keep blocks of up to 1 GiB that the main thread frees, or return them as it does by default.

    The setting holds for the process and for processes that are forked later. It is left as it is if an environment
    variable of glibc sets it.

    Returns:
        whether the setting was made. Other C libraries and older versions of glibc do not allow it.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    mapped, trimmed = (_KEPT, _KEPT) if keep else (_DEFAULT, 2 * _DEFAULT)
    return bool(mallopt(_MMAP_THRESHOLD, mapped) and mallopt(_TRIM_THRESHOLD, trimmed))
