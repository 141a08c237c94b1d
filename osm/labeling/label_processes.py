"""Starts the processes of a labeling run on this machine, each with its own model."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from osm.errors import RunStopped
from osm.labeling.label_options import LabelOptions

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
    workers = [context.Process(target=work, args=call, daemon=True) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes:
        raise RunStopped(f"--processes {len(calls)}: a process ended with exit code {codes[0]}; {AGAIN}")


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
