#!/usr/bin/env python3
"""Compares work that is done once per image with the same work done for each batch of masks, in turns.

    python3 benchmarks/once_per_image.py > once_per_image.json

`mean`: the mean of the image's tokens, which both bridges use. One image, several batches of masks, the bridge alone.
`decoding`: `generate_pred.py` on photos whose masks need two batches, with a namer that needs no time, and with
osm_small. The results of both ways have to be equal, or the benchmark fails. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fast_paired import recognizer_of  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from recognition import pictures  # noqa: E402
from speed_machine import process_state  # noqa: E402

from osm.datasets.table import Dataset, DatasetTable  # noqa: E402
from osm.evaluation.predict import generate  # noqa: E402
from osm.models.bridges.bridge import Instruction  # noqa: E402
from osm.models.fast_inference import speed_up  # noqa: E402
from osm.recognition.encode import stack_masks  # noqa: E402
from osm.recognition.namer import Name, Namer  # noqa: E402
from osm.recognition.recognizer import Recognizer  # noqa: E402
from osm.recognition.regions import regions_of  # noqa: E402

BATCHES, ROWS = 8, 8


def in_turns(before: Callable[[], Any], after: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Run two functions alternately. Return the seconds of each run and the median ratio, without the first round."""
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        turns = [("before", before), ("after", after)]
        for key, run in turns if number % 2 == 0 else reversed(turns):
            begun = time.perf_counter()
            results[key] = run()
            seconds[key].append(time.perf_counter() - begun)
    taken = {key: values[1:] for key, values in seconds.items()}
    return {
        "seconds": {key: [round(value, 5) for value in values] for key, values in taken.items()},
        "median_seconds": {key: round(statistics.median(values), 5) for key, values in taken.items()},
        "gain": round(statistics.median(b / a for b, a in zip(*taken.values(), strict=True)), 3),
        "equal": results["before"] == results["after"],
    }


def fast_recognizer(name: str) -> Recognizer:
    recognizer = recognizer_of(name, tiny=False)
    speed_up(recognizer.model)
    return recognizer


def mean(name: str, rounds: int) -> dict[str, Any]:
    recognizer = fast_recognizer(name)
    bridge, image_and_masks = recognizer.model.bridge, pictures(BATCHES * ROWS, 640, 480)
    [image] = recognizer.encode_images([image_and_masks[0]])
    masks = list(recognizer.mask_encoder.encode(regions_of(image.size, image_and_masks[1]), image))
    batches = [stack_masks(masks[start : start + ROWS]) for start in range(0, len(masks), ROWS)]
    text = recognizer.processor.prompts([recognizer.processor.naming_prompt()])
    instruction = Instruction(text.qformer_ids.expand(ROWS, -1), text.qformer_mask.expand(ROWS, -1))
    index, modes = torch.zeros(ROWS, dtype=torch.long), ["any"] * ROWS

    @torch.inference_mode()
    def run(again: bool) -> list[float]:
        found = []
        for batch in batches:
            state = image.state
            if again:
                assert state[-1] is not None
                state = [*state[:-1], (state[-1][0], state[-1][0].mean(1))]
            condition = bridge(state, index, batch, instruction, modes)
            read = condition.gated_kv.keys_values[0][0] if condition.gated_kv else condition.prefix_RPW
            found.append(read.double().sum().item())
        return found

    return {"model": name, "batches": BATCHES, **in_turns(lambda: run(True), lambda: run(False), rounds)}


class NoModel:
    """A namer that needs no time, so that reading the photos and masks remains."""

    fingerprint, modes = "none", ("any",)

    def name_images(self, images: Any, masks: Any, *_: Any, **__: Any) -> list[list[dict[str, Name]]]:
        pairs = zip(images, masks, strict=True)
        return [[{"any": Name(f"{image.size[0]}", 0.5)} for _ in of_image] for image, of_image in pairs]


def drawn(folder: Path, photos: int, width: int, height: int, count: int) -> Dataset:
    """A dataset of drawn photos."""
    (folder / "images").mkdir()
    image, masks = pictures(count, width, height)
    rng = np.random.default_rng(0)
    noise = np.asarray(image).astype(int) + rng.integers(-9, 10, (height, width, 3))
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.astype(np.uint8)]
    rles = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]
    rows, images = [], []
    for number in range(1, photos + 1):
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for rle in rles:
            row = {"id": len(rows) + 1, "image_id": number, "category_id": 1, "segmentation": rle, "iscrowd": 0}
            rows.append({**row, "area": 1, "bbox": [0, 0, width, height]})
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "masks.json").write_text(json.dumps(document))
    paths = {"image_dir": str(folder / "images"), "json_file": str(folder / "masks.json")}
    row = {"form": "coco_instances", "title": "drawn", **paths}
    (folder / "sets.yaml").write_text(json.dumps({"datasets": {"drawn": row}}))
    return DatasetTable().with_yaml(folder / "sets.yaml")["drawn"]


def decoding(name: str, rounds: int, tiny: bool) -> dict[str, Any]:
    size, photos, count = ((64, 48), 2, 4) if tiny else ((4000, 3000), 2, 48)
    namer: Any = NoModel() if name == "none" else Namer.of(fast_recognizer(name))
    at_once = size[0] * size[1] * (count - 1)  # the masks of a photo need two batches
    with tempfile.TemporaryDirectory() as work:
        row = drawn(Path(work), photos, *size, count)
        numbers = iter(range(1000))

        def run(cached: bool) -> str:
            without: AbstractContextManager[Any] = patch.object(generate, "cache", lambda function: function)
            out = Path(work) / str(next(numbers))
            with nullcontext() if cached else without, patch.object(generate, "_MASK_PIXELS", at_once):
                return Path(generate.generate_predictions(namer, row, 0, 1, out, modes=("any",))).read_text()

        case = in_turns(lambda: run(False), lambda: run(True), rounds)
    return {"namer": name, "photos": photos, "megapixels": size[0] * size[1] / 1e6, "masks_per_photo": count, **case}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each way [%(default)s]")
    parser.add_argument("--tiny", action="store_true", help="small photos and no osm_small, to try the script")
    args = parser.parse_args()
    namers = ["none"] if args.tiny else ["none", "osm_small"]
    document = {
        **process_state(),
        "mean": [mean(name, args.rounds) for name in ("osm_small", "osm_flamingo_small")],
        "decoding": [decoding(name, args.rounds, args.tiny) for name in namers],
    }
    print(json.dumps(document, indent=1))
    return int(not all(case["equal"] for case in (*document["mean"], *document["decoding"])))


if __name__ == "__main__":
    sys.exit(main())
