"""Finds the mask on which the project's value and the recomputed value of a metric differ."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from verify.checks import Checks
from verify.files import Mask, read_masks, with_only
from verify.predictions import Judge

Evaluate = Callable[[Path, int], Mapping[str, Any]]
"""Returns the project's values, given the folder of the predictions and the number of parts."""


class Locator:
    """Evaluates ever fewer masks of a dataset until a single mask is left on which the values differ.

    Args:
        judge: recomputes the metrics.
        evaluate: the project's command, without bootstrap.
        row: the dataset.
        paths: its prediction files.
        frequencies: class id -> rare, common or frequent.
    """

    def __init__(
        self, judge: Judge, evaluate: Evaluate, row: Dataset, paths: list[Path], frequencies: Mapping[int, str]
    ) -> None:
        self.judge = judge
        self.evaluate = evaluate
        self.row = row
        self.paths = paths
        self.frequencies = frequencies

    def find(self) -> Mask | None:
        """Return a mask on which the values differ, or None if the values agree on all masks or on every half."""
        masks = [mask for mask in read_masks(self.row, self.paths) if mask.predictions]
        if not masks or not self._differ(masks):
            return None
        while len(masks) > 1:
            halves = masks[: len(masks) // 2], masks[len(masks) // 2 :]
            wrong = next((half for half in halves if self._differ(half)), None)
            if wrong is None:
                return None
            masks = wrong
        return masks[0]

    def _differ(self, masks: list[Mask]) -> bool:
        kept, checks = {mask.place for mask in masks}, Checks()
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / path.name for path in self.paths]
            for number, (source, target) in enumerate(zip(self.paths, paths, strict=True)):
                target.write_text(json.dumps(with_only(self.row, source, number, kept)), encoding="utf-8")
            found = self.evaluate(Path(folder), len(paths))[self.row.name]
            self.judge.check_set(checks, self.row, paths, found, self.frequencies)
        return bool(checks.differences)
