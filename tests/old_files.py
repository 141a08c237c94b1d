"""Makes the files of a test old enough to count as abandoned."""

from __future__ import annotations

import os
from pathlib import Path

from osm.files import ABANDONED_S


def make_old(path: Path) -> None:
    """Change the time of a file's last change, so that it is more than `ABANDONED_S` seconds old."""
    stamp = path.stat().st_mtime - ABANDONED_S - 1
    os.utime(path, (stamp, stamp))
