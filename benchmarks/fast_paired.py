#!/usr/bin/env python3
"""Measures naming with and without `osm.models.fast_inference`, alternating between two copies of a model.

    python3 benchmarks/fast_paired.py random osm_small osm_small_queries > fast_paired.json

`random` is the random model of `benchmarks/recognition.py`: the published Q-Former at 1120, and a 135M-class LLM. The
names have to be the same, the probabilities within 1e-4, or the benchmark fails. `peak_gflop_per_s` is the speed of a
large matrix product as PyTorch computes it, and of the same product with packed weights. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import train_step_models as models  # noqa: E402
from recognition import (  # noqa: E402
    NEW_TOKENS,
    SIDE,
    lead,
    matmul_rate,
    ours,
    pictures,
    product_rate,
    random_cpu_model,
    work_of,
)
from speed_machine import process_state  # noqa: E402

from osm.memory_reuse import keep_freed_memory  # noqa: E402
from osm.models.fast_inference import speed_up  # noqa: E402
from osm.models.packed_linear import PackedLinear  # noqa: E402
from osm.recognition.recognizer import Recognizer  # noqa: E402


def recognizer_of(name: str, tiny: bool) -> Recognizer:
    torch.manual_seed(0)
    model, processor = random_cpu_model(tiny) if name == "random" else models.pretrained(name)
    lead(model.eval())
    return Recognizer(model, processor, NEW_TOKENS)


def packed_rate() -> float:
    """GFLOP/s of a large float32 product with packed weights."""
    linear, rows = PackedLinear(torch.nn.Linear(SIDE, SIDE, bias=False)), torch.randn(SIDE, SIDE)
    with torch.inference_mode():
        return product_rate(lambda: linear(rows), torch.device("cpu"))


def differences(before: list[tuple[str, float]], after: list[tuple[str, float]]) -> dict[str, Any]:
    """Compare (name, probability) pairs: how many names differ, and the largest difference of a probability."""
    pairs = list(zip(before, after, strict=True))
    return {
        "other_names": sum(a[0] != b[0] for a, b in pairs),
        "probabilities_apart": max(abs(a[1] - b[1]) for a, b in pairs),
    }


def measure(name: str, counts: list[int], rounds: int, tiny: bool) -> list[dict[str, Any]]:
    plain, fast = (recognizer_of(name, tiny) for _ in range(2))
    image, masks = pictures(max(counts), 640, 480)
    work = {count: work_of(plain, image, masks[:count]) for count in counts}
    speed_up(fast.model)
    cases = []
    for count in counts:
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        names: dict[str, list[tuple[str, float]]] = {}
        for recognizer in (plain, fast):
            ours(recognizer, image, masks[:count])
        peaks = []
        for number in range(rounds):
            turns = [("before", plain), ("after", fast)]
            for key, recognizer in turns if number % 2 == 0 else reversed(turns):
                keep_freed_memory(key == "after")
                taken, names[key] = ours(recognizer, image, masks[:count])
                seconds[key].append(taken)
            peaks.append((matmul_rate(torch.device("cpu")), packed_rate()))
        middle = {key: statistics.median(taken) for key, taken in seconds.items()}
        peak, packed = (statistics.median(values) for values in zip(*peaks, strict=True))
        case = {
            "masks": count,
            "names": len(names["after"]),
            "seconds": {key: [round(one, 4) for one in taken] for key, taken in seconds.items()},
            "names_per_second": {key: round(len(names["after"]) / one, 2) for key, one in middle.items()},
            "gain": round(statistics.median(b / a for b, a in zip(*seconds.values(), strict=True)), 3),
            **differences(names["before"], names["after"]),
            "gflop": work[count]["gflop"],
            "peak_gflop_per_s": {"plain": round(peak, 1), "packed": round(packed, 1)},
            "share_of_plain_peak": {key: round(work[count]["gflop"] / peak / one, 3) for key, one in middle.items()},
        }
        print(json.dumps(case), file=sys.stderr)
        cases.append(case)
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="random, or the names of configs")
    parser.add_argument("--masks", default="1,8,32", help="numbers of masks [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="of each way [%(default)s]")
    parser.add_argument("--tiny", action="store_true", help="shrinks the random model, to try the script")
    args = parser.parse_args()
    counts = [int(count) for count in args.masks.split(",")]
    found = {name: measure(name, counts, args.rounds, args.tiny) for name in args.models}
    document = {
        **process_state(),
        "models": found,
    }
    print(json.dumps(document, indent=1))
    wrong = [case for cases in found.values() for case in cases if case["other_names"]]
    far = [case for cases in found.values() for case in cases if case["probabilities_apart"] > 1e-4]
    return int(bool(wrong or far))


if __name__ == "__main__":
    sys.exit(main())
