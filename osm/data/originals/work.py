"""What the helpers have in common: files written whole, panoptic PNGs and jsons, a count of what went wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from osm.data.labels import load_labels
from osm.data.pool import Progress, in_order, say
from osm.data.sources.base import about
from osm.data.sources.semantic import categories
from osm.errors import OsmError, SampleError

_SHOWN = 5  # messages of each reason
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Faults:
    """What could not be made: counts by reason."""

    counts: Counter[str]


def run(function: Callable[[T], R], jobs: Sequence[T], workers: int, faults: Counter[str]) -> list[R]:
    """The results of the jobs that went well, in order; the others are told of and counted."""
    progress, results = Progress(len(jobs), 0), []
    for result in in_order(partial(_try, function), jobs, workers):
        if isinstance(result, SampleError):
            faults[result.reason] += 1
            if faults[result.reason] <= _SHOWN:
                say(f"left out ({result.reason})", str(result))
        else:
            results.append(result)
        progress.step()
    progress.show(end="\n")
    return results


def _try(function: Callable[[T], R], job: T) -> R | SampleError:
    try:
        return function(job)
    except SampleError as error:
        return error
