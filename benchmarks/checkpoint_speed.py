#!/usr/bin/env python3
"""Measures how many names per second a trained model gives, in turns with an earlier version of the model.

    python3 benchmarks/checkpoint_speed.py osm_small --earlier OLD/osm/weights/osm_small > checkpoint_speed.json

The image is scikit-image's coffee, and the masks are ellipses. All masks are named in two modes, with the image
encoded anew each time. `slow` is the model without `osm.models.fast_inference`. Its names have to be those of the
fast model and the probabilities within 1e-4, or the benchmark fails. `share_of_plain_peak` is the time that the FLOPs
would take at the speed of a large matrix product as PyTorch computes it, as a share of the measured time. Prints one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import skimage.data  # noqa: E402
import torch  # noqa: E402
from fast_paired import differences  # noqa: E402
from PIL import Image  # noqa: E402
from recognition import NEW_TOKENS, matmul_rate, ours, pictures, work_of  # noqa: E402
from speed_machine import process_state  # noqa: E402

import osm  # noqa: E402
from osm.memory_reuse import keep_freed_memory  # noqa: E402
from osm.models.fast_inference import speed_up  # noqa: E402
from osm.recognition.recognizer import Recognizer  # noqa: E402

NOW = "now"


def recognizer_of(checkpoint: str) -> Recognizer:
    model, processor, _ = osm.load_model(checkpoint)
    return Recognizer(model.eval(), processor, NEW_TOKENS)


def measure(checkpoints: dict[str, str], counts: list[int], rounds: int) -> list[dict[str, Any]]:
    _, masks = pictures(max(counts), 640, 480)
    image = Image.fromarray(skimage.data.coffee()).resize((640, 480))
    slow = recognizer_of(checkpoints[NOW])
    fast = {key: recognizer_of(checkpoint) for key, checkpoint in checkpoints.items()}
    gflop = {key: [work_of(one, image, masks[:count])["gflop"] for count in counts] for key, one in fast.items()}
    for recognizer in fast.values():
        speed_up(recognizer.model)
    turns = {**fast, "slow": slow}
    cases = []
    for place, count in enumerate(counts):
        seconds: dict[str, list[float]] = {key: [] for key in turns}
        names, peaks = {}, []
        for number in range(-1, rounds):  # the first round warms up
            for key in list(turns) if number % 2 == 0 else reversed(turns):
                keep_freed_memory(key != "slow")
                taken, names[key] = ours(turns[key], image, masks[:count])
                if number >= 0:
                    seconds[key].append(taken)
            peaks.append(matmul_rate(torch.device("cpu")))
        middle = {key: statistics.median(taken) for key, taken in seconds.items()}
        peak = statistics.median(peaks)
        case = {
            "masks": count,
            "names": 2 * count,
            "seconds": {key: [round(one, 4) for one in taken] for key, taken in seconds.items()},
            "names_per_second": {key: round(2 * count / one, 2) for key, one in middle.items()},
            **differences(names["slow"], names[NOW]),
            "gflop": {key: work[place] for key, work in gflop.items()},
            "peak_gflop_per_s": round(peak, 1),
            "share_of_plain_peak": {key: round(work[place] / peak / middle[key], 3) for key, work in gflop.items()},
        }
        print(json.dumps(case), file=sys.stderr)
        cases.append(case)
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a trained model")
    parser.add_argument("--earlier", help="an earlier version of the model")
    parser.add_argument("--masks", default="1,8,32", help="numbers of masks [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="of each model [%(default)s]")
    args = parser.parse_args()
    checkpoints = {NOW: args.checkpoint} | ({"earlier": args.earlier} if args.earlier else {})
    cases = measure(checkpoints, [int(count) for count in args.masks.split(",")], args.rounds)
    print(json.dumps({**process_state(), "checkpoint": args.checkpoint, "cases": cases}, indent=1))
    return int(any(case["other_names"] or case["probabilities_apart"] > 1e-4 for case in cases))


if __name__ == "__main__":
    sys.exit(main())
