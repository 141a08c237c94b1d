"""A namer without a model. Run as a module, it generates a part and ends the process in the middle of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class FakeName:
    text: str
    prob: float


class FakeNamer:
    """Names a mask by its area and the image's red; a single pixel "vanishes when resized"."""

    def __init__(self, die_at: int | None = None, fingerprint: str = "fake-1") -> None:
        self.fingerprint = fingerprint
        self.modes = ("pets", "coco", "any")
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []
        self.boxed: list[bool] = []  # of each call of `name_images`
        self._die_at = die_at

    def name_image(
        self, image: Image.Image, masks: np.ndarray, modes: Sequence[str]
    ) -> list[dict[str, FakeName] | None]:
        assert image.mode == "RGB" and masks.dtype == bool and masks.shape[1:] == (image.height, image.width)
        if len(self.calls) == self._die_at:
            os._exit(9)
        self.calls.append((np.asarray(image), masks))
        red = int(np.asarray(image)[0, 0, 0])
        return [
            {mode: FakeName(f" {mode} {mask.sum()} of {red}\n", 1 / (3 + red)) for mode in modes}
            if mask.sum() > 1
            else None
            for mask in masks
        ]

    def name_images(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray],
        *arguments: Any,
        boxed: bool = False,
        **options: Any,
    ) -> Any:
        self.boxed.append(boxed)
        return [self.name_image(*one, *arguments, **options) for one in zip(images, masks, strict=True)]


if __name__ == "__main__":
    from osm.datasets.table import DatasetTable
    from osm.evaluation.predict.generate import generate_predictions

    yaml_file, out_dir, die = sys.argv[1:]
    row = DatasetTable().with_yaml(Path(yaml_file))["pets"]
    generate_predictions(FakeNamer(die_at=int(die)), row, 0, 1, out_dir)
