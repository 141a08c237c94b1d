#!/usr/bin/env python3
"""Compares zoom windows of osm_small on a CPU before and after the changes that make them faster, in turns.

    python3 benchmarks/zoom_windows.py > zoom_windows.json

Three parts: resizing the squares of the masks by `roi_align` or by weighted sums (`osm.models.zoom`), the tower on the
windows, eight at a time without packed convolutions (`osm.models.packed_conv`) or 16 at a time with them, and naming in
two modes, before and after all of these changes. The names have to be the same, the probabilities within 1e-4 and the
tokens within 1e-4 of the largest, or the benchmark fails. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from fast_paired import differences  # noqa: E402
from once_per_image import fast_recognizer, in_turns  # noqa: E402
from recognition import ours, pictures  # noqa: E402
from speed_machine import process_state  # noqa: E402
from torch import Tensor  # noqa: E402

from osm.models import fast_inference, zoom  # noqa: E402
from osm.recognition import encode  # noqa: E402
from osm.recognition.recognizer import Recognizer  # noqa: E402

NAME, CLOSE = "osm_small", 1e-4
PIXELS = {False: 2**19, True: encode.ZOOM_PIXELS}  # of the windows in one pass of the tower


@contextmanager
def windows_as(faster: bool) -> Iterator[None]:
    """Inside the context, zoom windows are resized and batched as before the changes, unless `faster`."""
    if faster:
        yield
        return
    with (
        patch.object(zoom, "sampled_squares", zoom.sampled_by_roi_align),
        patch.object(encode, "ZOOM_PIXELS", PIXELS[False]),
    ):
        yield


def recognizer_without_packed_convs() -> Recognizer:
    with patch.object(fast_inference, "pack_convs", lambda *_: 0):
        return fast_recognizer(NAME)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def measure(count: int, rounds: int) -> dict[str, Any]:
    before, after = recognizer_without_packed_convs(), fast_recognizer(NAME)
    image, masks = pictures(count, 640, 480)
    processor, side = before.processor, before.model.zoom
    pixels = processor.pixel_values(processor.canvas(image)[None])
    canvases = processor.canvas_masks(masks)
    boxes = zoom.zoom_boxes(canvases, before.model.bridge.config.direct_zoom_enlarge)
    index, patch_side = torch.zeros(count, dtype=torch.long), before.model.tower.patch
    kept: dict[str, Any] = {}

    @torch.inference_mode()
    def resized(faster: bool) -> None:
        with windows_as(faster):
            kept[f"windows {faster}"] = zoom.sampled_squares(pixels, index, boxes, side)
            cells = side // patch_side
            zoom.sampled_squares(canvases, torch.arange(count), boxes, cells, patch_side)

    @torch.inference_mode()
    def encoded(faster: bool) -> None:
        model, windows = (after if faster else before).model, kept["windows True"]
        at_once = PIXELS[faster] // side**2
        kept[f"tokens {faster}"] = torch.cat([model.tower(some)[1] for some in windows.split(at_once)])

    def named(faster: bool) -> None:
        with windows_as(faster):
            kept[f"names {faster}"] = ours(after if faster else before, image, masks)[1]

    parts = {"resizing": resized, "tower": encoded, "naming": named}
    found: dict[str, Any] = {"masks": count, "side": side, "parts": {}}
    for part, run in parts.items():
        turns = in_turns(lambda run=run: run(False), lambda run=run: run(True), rounds)
        found["parts"][part] = {key: value for key, value in turns.items() if key != "equal"}
    for key in ("windows", "tokens"):
        found[f"{key}_apart"] = apart(kept[f"{key} False"], kept[f"{key} True"])
    found["names"] = len(kept["names True"])
    found |= differences(kept["names False"], kept["names True"])
    middle = found["parts"]["naming"]["median_seconds"]
    found["names_per_second"] = {key: round(found["names"] / seconds, 2) for key, seconds in middle.items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--masks", default="1,8,32", help="numbers of masks [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="of each way [%(default)s]")
    args = parser.parse_args()
    cases = [measure(int(count), args.rounds) for count in args.masks.split(",")]
    document = {
        "model": NAME,
        **process_state(),
        "cases": cases,
    }
    print(json.dumps(document, indent=1))
    far = ("windows_apart", "tokens_apart", "probabilities_apart")
    return int(any(case["other_names"] or any(case[key] > CLOSE for key in far) for case in cases))


if __name__ == "__main__":
    sys.exit(main())
