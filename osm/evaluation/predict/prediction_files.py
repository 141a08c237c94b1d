"""The files of a benchmark folder: predictions, their meta files, and the unfinished part a run can go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PREDICTIONS = re.compile(r"(?P<set>[a-z][a-z0-9_]*)_pred_(?P<part>\d+)_of_(?P<parts>\d+)\.json")


def prediction_path(out_dir: Path, name: str, part: int, parts: int, kind: str = "pred") -> Path:
    """Where the predictions of one part of a set are (`kind`: `pred`, or `proposals`)."""
    return out_dir / f"{name}_{kind}_{part}_of_{parts}.json"


def meta_path(predictions: Path, kind: str = "pred") -> Path:
    """The file beside the predictions that says what made them."""
    name, _, part = predictions.name.rpartition(f"_{kind}_")
    return predictions.with_name(f"{name}_meta_{part}" if kind == "pred" else f"{name}_meta_{kind}_{part}")


def partial_path(predictions: Path) -> Path:
    """The file that holds the finished images of an unfinished part."""
    return predictions.with_suffix(".partial.jsonl")


def list_predictions(out_dir: Path) -> Iterator[tuple[str, int]]:
    """(set, number of parts) of every prediction file in the folder."""
    for path in sorted(out_dir.iterdir()):
        if match := _PREDICTIONS.fullmatch(path.name):
            yield match["set"], int(match["parts"])
