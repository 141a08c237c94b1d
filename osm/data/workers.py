"""The processes of a DataLoader: how they meet signals, and how their errors reach the process that trains."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import torch

from osm.errors import OsmError

_GRACE = 60.0  # seconds that a worker goes on after a SIGTERM


@dataclass(frozen=True)
class WorkerFailed:
    """Takes the place of a batch that a worker could not make; the process that trains raises the error."""

    error: OsmError


def quiet_worker(_: int) -> None:
    """The `worker_init_fn`: one thread, and a signal to the whole group is not for the worker."""
    torch.set_num_threads(1)
    # A signal to the whole group is for the process that trains: it still needs its workers for this step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(*_: Any) -> None:
    timer = threading.Timer(_GRACE, os._exit, (0,))
    timer.daemon = True  # a worker that is done does not wait for it
    timer.start()
