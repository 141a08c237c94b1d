"""The machine and the state of the code that a measurement belongs to."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine_state() -> dict[str, Any]:
    """Return the facts of the machine that figures depend on. `omp_threads` is how many threads a command has that sets
    no OMP_NUM_THREADS."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "omp_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu_model(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def process_state() -> dict[str, Any]:
    """Return what the speed of this process depends on: its threads, the cores, their load and the version of torch."""
    import torch

    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return {"threads": threads, "cores": os.cpu_count(), "load": load, "torch": torch.__version__}


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # other systems than Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def gpu_model() -> str | None:
    """Return the name and memory of the GPUs, or None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().replace("\n", "; ") or None if done.returncode == 0 else None


def code_state(root: Path, out: Path) -> dict[str, Any]:
    """Return the commit of a checkout, whether its files differ from the commit, and a hash of the differing code.

    Args:
        root: the checkout.
        out: the folder of the results, which is no code if it is inside of the checkout.
    """
    commit = git(root, "rev-parse", "HEAD").decode().strip()
    if not commit:  # an unpacked archive
        return {"commit": "unknown", "dirty": False, "changes": ""}
    ignored = [":(exclude)docs"]
    if out.is_relative_to(root):
        ignored.append(f":(exclude){out.relative_to(root).as_posix()}")
    pathspec = ("--", ".", *ignored)
    changes = git(root, "diff", "HEAD", "--binary", *pathspec)
    for name in git(root, "ls-files", "--others", "--exclude-standard", "-z", *pathspec).split(b"\0"):
        path = root / os.fsdecode(name)
        if name and path.is_file():
            changes += name + hashlib.sha256(path.read_bytes()).digest()
    dirty = bool(changes) or bool(git(root, "status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "dirty": dirty, "changes": hashlib.sha256(changes).hexdigest()[:12] if changes else ""}


def git(root: Path, *words: str) -> bytes:
    """Return the output of a command of git, or nothing if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True)
    except FileNotFoundError:
        return b""
    return done.stdout if done.returncode == 0 else b""
