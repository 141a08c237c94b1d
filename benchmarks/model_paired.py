#!/usr/bin/env python3
"""The models of two checkouts compared in one run: CPU time of naming an image, and of a training step.

One process of each checkout stays open, and the two take turns, so that other programs on the machine slow both alike.
The result of a case is the median of new / old over all rounds, with the quartiles. Above 1, the new code is slower.

    python3 benchmarks/model_paired.py OLD_CHECKOUT NEW_CHECKOUT [--rounds 20] [--config osm_nano] > result.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loader_paired import Side, print_result, take_turns

# This program runs inside a checkout. It uses public functions that both checkouts have.
CHILD = """
import json, sys, tempfile, time
import numpy as np, torch
from PIL import Image
import osm
torch.set_num_threads(1)
torch.manual_seed(0)
model, processor = osm.create_model_and_transforms(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    recognizer = osm.load_recognizer(folder, device="cpu")
random = np.random.default_rng(0)
image = Image.fromarray(random.integers(0, 255, (480, 640, 3), dtype=np.uint8))
boxes = [[20.0 + 30 * k, 20.0 + 20 * k, 120.0 + 30 * k, 100.0 + 20 * k] for k in range(8)]
size, rows, words = processor.input_size, 8, 12
masks = torch.zeros(rows, 1, size, size)
for row in range(rows):
    masks[row, 0, row * size // 10 : row * size // 10 + size // 5, size // 4 : size // 2] = 1
ids = torch.randint(5, 200, (rows, words))
ones = torch.ones_like(ids)
pixels = torch.randn(1, 3, size, size)

def name():
    recognizer.set_image(image)
    return recognizer.name(boxes=boxes)

def step():
    image_index = torch.zeros(rows, dtype=torch.long)
    loss = model(pixels, ids, ones, ids, ones, ids, masks, masks, dataset_type="any", image_index=image_index)
    loss.backward()
    model.zero_grad()

cases = {"name": name, "step": step}
for line in sys.stdin:
    case, times = json.loads(line)
    begun = time.process_time()
    for _ in range(times):
        cases[case]()
    print((time.process_time() - begun) / times, flush=True)
"""
CASES = {"name": "naming an image with 8 boxes", "step": "forward and backward of 8 masks of an image"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, help="checkout of the old code")
    parser.add_argument("new", type=Path, help="checkout of the new code")
    parser.add_argument("--rounds", type=int, default=20, help="number of turns of each checkout (%(default)s)")
    parser.add_argument("--times", type=int, default=2, help="repetitions in a turn (%(default)s)")
    parser.add_argument("--config", default="osm_nano", help="config of the model (%(default)s)")
    args = parser.parse_args()
    sides = [Side(checkout.resolve(), args.config, CHILD) for checkout in (args.old, args.new)]
    cases = {}
    for case, title in CASES.items():
        for side in sides:
            side.seconds(case, 1)  # fills the caches
        cases[title] = take_turns(sides, (case, args.times), args.rounds)
        print(f"{title}: {cases[title]}", file=sys.stderr)
    for side in sides:
        side.close()
    print_result(args, cases, config=args.config, times=args.times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
