"""A disk of a few MiB that a test can fill."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096  # what a tmpfs gives a file at a time


@contextmanager
def mounted(place: Path, size: str = "2m") -> Iterator[Path]:
    """Mounts a small disk at a new folder, or skips the test where there is no right to."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, pages: int = 0) -> Path:
    """Fills a disk up to so many pages; the file whose removal makes room again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * PAGE)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() // PAGE * PAGE - pages * PAGE)
    return filler
