#!/usr/bin/env python3
"""Predictions judged by a person, and how far each metric agrees.

    python3 scripts/judged.py sample PREDICTIONS 2 --datasets sets.yaml --sets coco,camvid,clothing list.json sheets
    python3 scripts/judged.py agreement list.json

`sample` draws predictions of val masks by a seed, half of them right by the published metric, and shows them as sheets
of numbered pictures with the mask and the predicted name, but not the class; `verdict` in the list is to be filled with
`right`, `acceptable` (true, but vaguer, finer or another word) or `wrong`. `agreement` compares.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from osm.benchmark.files import prediction_path  # noqa: E402
from osm.benchmark.items import FIELD, SPLITS, Split  # noqa: E402
from osm.benchmark.metrics import is_correct  # noqa: E402
from osm.data.datasets import ANY_MODE, Dataset, DatasetTable  # noqa: E402
from osm.data.images import read_rgb  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.files import read_json, write_atomically  # noqa: E402

VERDICTS = ("right", "acceptable", "wrong")
SIDE, COLUMNS, ROWS = 300, 5, 2


def sample(args: argparse.Namespace) -> None:
    """Writes the list, its verdicts empty, and the sheets."""
    if args.out_list.exists():
        raise OsmError(f"{args.out_list} is there already: verdicts would be lost; remove it, or give another name")
    table = DatasetTable().with_yaml(args.datasets)
    drawn: list[tuple[dict[str, Any], Image.Image]] = []
    for name in args.sets.split(","):
        row = table[name]
        split = SPLITS[row.form](row)
        known = candidates(row, split, args.predictions, args.parts, args.mode)
        rng = random.Random(f"{args.seed} {name}")
        for right in (True, False):
            some = [entry for entry in known if is_correct(entry["prediction"], entry["names"]) == right]
            for entry in rng.sample(some, min(args.each, len(some))):
                drawn.append((entry, pictured(split, entry)))
    random.Random(args.seed).shuffle(drawn)  # else the order tells which are right
    for number, (entry, _) in enumerate(drawn, 1):
        entry["number"] = number
    args.sheets.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(drawn), COLUMNS * ROWS):
        sheet(drawn[start : start + COLUMNS * ROWS]).save(args.sheets / f"{start // (COLUMNS * ROWS) + 1:02}.png")
    write_atomically(args.out_list, [json.dumps([{**entry, "verdict": ""} for entry, _ in drawn], indent=1) + "\n"])


def candidates(row: Dataset, split: Split, folder: Path, parts: int, mode: str) -> list[dict[str, Any]]:
    """Every prediction of a set in one mode."""
    found, index = [], 0
    for part in range(parts):
        document, _ = read_json(prediction_path(folder, row.name, part, parts), "predictions")
        for key, entries in split.entries_in(document):
            for place, annotation in enumerate(entries):
                said = annotation.get(FIELD, {}).get(row.name if mode == "own" else mode)
                if said:
                    names = list(row.label_set[annotation[split.category_key]].names)
                    where = {"set": row.name, "image": key, "segment": annotation[split.id_key], "at": [index, place]}
                    found.append({**where, "names": names, "prediction": said["class"], "prob": said["prob"]})
            index += 1
    return found


def pictured(split: Split, entry: dict[str, Any]) -> Image.Image:
    """The mask's surroundings with its outline, SIDE pixels a side."""
    index, place = entry.pop("at")
    item = split.load(index)
    wanted = [k for k, annotation in enumerate(item.annotations) if annotation[split.id_key] == entry["segment"]]
    mask, image = item.mask(wanted[0] if wanted else place), read_rgb(item.image_path)
    ys, xs = mask.nonzero()
    half = 0.75 * max(np.ptp(ys), np.ptp(xs)) + 20
    middle = (int(xs.min() + xs.max()) / 2, int(ys.min() + ys.max()) / 2)
    box = tuple(int(c) for c in (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half))
    crop = np.asarray(image.crop(box).resize((SIDE, SIDE))).copy()
    inside = np.asarray(Image.fromarray(mask).crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    border = np.zeros_like(inside)
    for axis in (0, 1):
        for step in (1, -1, 2, -2):
            border |= inside != np.roll(inside, step, axis)
    crop[~inside & ~border] = crop[~inside & ~border] // 2 + 60
    crop[border] = (255, 0, 255)
    return Image.fromarray(crop)


def sheet(pairs: list[tuple[dict[str, Any], Image.Image]]) -> Image.Image:
    """Numbered pictures with what each mask was called."""
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), ROWS * (SIDE + 40)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for place, (entry, picture) in enumerate(pairs):
        left, top = place % COLUMNS * (SIDE + 8), place // COLUMNS * (SIDE + 40)
        page.paste(picture, (left, top + 34))
        draw.text((left + 4, top + 4), f"{entry['number']}: {entry['prediction'] or '(nothing)'}", "black", font)
    return page


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tasks = out.add_subparsers(required=True)
    one = tasks.add_parser("sample", help="draws predictions, for a person to judge")
    one.add_argument("predictions", type=Path, help="generate_pred.py's out_dir")
    one.add_argument("parts", type=int)
    one.add_argument("out_list", type=Path)
    one.add_argument("sheets", type=Path, help="folder of the pictures")
    one.add_argument("--datasets", required=True, help="a YAML with the sets' val paths")
    one.add_argument("--sets", default="coco,camvid,clothing")
    one.add_argument("--mode", default=ANY_MODE, help="own, any or another one of the predictions [%(default)s]")
    one.add_argument("--each", type=int, default=10, help="right ones, and wrong ones, of each set [%(default)s]")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=sample)
    other = tasks.add_parser("agreement", help="compares the metrics with the verdicts")
    other.add_argument("list", type=Path)
    return out


def main() -> int:
    args = parser().parse_args()
    try:
        args.run(args)
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
