"""Starts the processes of a labeling run on this machine, each with its own model."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from osm.errors import RunStopped, run_command
from osm.labeling.label_options import LabelOptions
from osm.terminal import console_messages, logs_json

AGAIN = "the same command continues with the images that are not labeled yet"


def run_processes(work: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
    """Call a function once in each of several new processes, and wait for all of them.

    Args:
        work: a function of a module, which the processes import.
        calls: the arguments of each call.

    Raises:
        RunStopped: a process was killed, or its call raised an error.
    """
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_supervised, args=(work, call, logs_json()), daemon=True) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes:
        raise RunStopped(f"--processes {len(calls)}: a process ended with exit code {codes[0]}; {AGAIN}")


def _supervised(work: Callable[..., Any], call: tuple[Any, ...], as_json: bool) -> None:
    """Call a function in a new process, show its messages and its error, and end if the parent has been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with console_messages(as_json), ending_on_sigterm():
        sys.exit(run_command(lambda: work(*call)))


def _end_with(sentinel: int) -> None:
    """Wait for the end of the parent. Without it, nobody would see what this process does, or continue its work."""
    wait([sentinel])
    os._exit(1)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside the context, SIGTERM raises SystemExit, so that the attempt at an unfinished part is not counted."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def for_process(options: LabelOptions, process: int, count: int) -> LabelOptions:
    """Limit the threads of this process, and return the options with its GPU.

    Args:
        options: the options of the run.
        process: the number of this process, from 0.
        count: the number of processes on this machine.
    """
    import torch

    threads = options.cpus_per_process or (max(1, (os.cpu_count() or 1) // count) if count > 1 else 0)
    if threads:
        torch.set_num_threads(threads)
    if count > 1 and options.device == "auto" and torch.cuda.device_count() > 1:
        return replace(options, device=f"cuda:{process % torch.cuda.device_count()}")
    return options
