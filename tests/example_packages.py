"""Installs a package of the folder examples/ into a folder, as a user would, but without its dependencies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install_example(name: str, folder: Path) -> Path:
    """Returns the folder to put on PYTHONPATH. pip builds in a copy, because it writes beside the sources."""
    source, target = folder / "source", folder / "installed"
    shutil.copytree(ROOT / "examples" / name, source)
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(source)], check=True)
    return target
