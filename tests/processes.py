"""Waiting for processes, ports for them, and ending one with all that it started.

torchrun puts each of its workers into a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Only a process that hangs is waited for this long. A machine that other programs use can be several times slower.
PATIENCE_S = 900.0


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[Any] | None = None, message: str = "it did not happen"
) -> None:
    """Waits until a condition is true. It fails if `process` ends first, or after `PATIENCE_S` seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        # Read before the condition is tested, because a process that ends may have made the condition true.
        ended = process is not None and process.poll() is not None
        if condition():
            return
        assert not ended, f"{message}: the process has ended"
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have started (Linux)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended by now
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, last = [pid], [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found[1:]


def kill_tree(pid: int) -> None:
    """Sends SIGKILL to a process and all its descendants, as a machine that goes down would end them."""
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
