#!/usr/bin/env python3
"""Prints the unedited names that osm_small gives on photos that it has not seen, as tables for docs/results.md.

    python3 scripts/shipped_names.py OUT --datasets sets.yaml

The first table has all segments of five photos of scikit-image that `demo_with_sam.py` finds without SAM and keeps in
its map. Their predictions and pictures are written to OUT. The second table has 30 random val masks of a dataset.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import skimage.data  # noqa: E402
from PIL import Image  # noqa: E402

from osm.datasets.table import ANY_MODE, Dataset, DatasetTable  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402
from osm.forms import split_of  # noqa: E402
from osm.labeling.folder_cli import main as name_folder  # noqa: E402
from osm.recognition.flags import SHIPPED  # noqa: E402
from osm.recognition.recognizer import load_recognizer  # noqa: E402

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")  # scikit-image brings them along
MASKS, SEED = 30, 0


def photos(out: Path, checkpoint: str) -> None:
    """Names five photos whole, and prints what stays in their maps."""
    (out / "photos").mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        photo = getattr(skimage.data, name)()
        left = photo[0] if isinstance(photo, tuple) else photo  # of a pair for two eyes
        Image.fromarray(left).save(out / "photos" / f"{name}.png")
    with contextlib.redirect_stdout(sys.stderr):  # what it says is no part of the tables
        status = name_folder([str(out / "photos"), "--checkpoint", checkpoint, "--output_dir", str(out / "named")])
    if status:
        raise OsmError(f"naming {out / 'photos'} ended with {status}")
    print("| photo | segments named | names in the map, the largest first (probability in percent) |\n|---|---|---|")
    for name in PHOTOS:
        found = json.loads((out / "named" / f"{name}.json").read_text())["segments"]
        kept = [f"{one['name'] or '(nothing)'} {100 * one['prob']:.0f}" for one in found if "id" in one]
        print(f"| {name} | {len(found)} | {', '.join(kept)} |")


def masks(row: Dataset, checkpoint: str) -> None:
    """Names some val masks of a set, and prints them beside their classes."""
    split, rng = split_of(row), random.Random(SEED)
    recognizer = load_recognizer(checkpoint)
    print("\n| image | class | own mode | `any` |\n|---|---|---|---|")
    for index in sorted(rng.sample(range(len(split)), min(MASKS, len(split)))):
        item = split.load(index)
        there = [k for k in range(len(item.annotations)) if item.mask(k).any()]
        if not there:
            continue
        k = rng.choice(there)
        asked = {"modes": [row.name, ANY_MODE], "boxed": split.form.boxed}
        own, anyone = recognizer.name_batch([item.image()], [[item.mask(k)]], **asked)[0][0]
        target = row.label_set[item.annotations[k][split.form.category_key]].target
        said = [f"{a.skipped or a.text or '(nothing)'} {100 * a.prob:.0f}" for a in (own, anyone)]
        print(f"| {item.image_path.name} | {target} | {said[0]} | {said[1]} |")


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("out", type=Path)
    out.add_argument("--datasets", required=True, help="a YAML with the set's val paths")
    out.add_argument("--set", default="coco", help="[%(default)s]")
    out.add_argument("--checkpoint", default=SHIPPED, help="[%(default)s]")
    args = out.parse_args()
    return run_command(_run, args)


def _run(args: argparse.Namespace) -> None:
    table = DatasetTable().with_yaml(args.datasets)
    if args.set not in table:
        raise OsmError(f"--set {args.set!r}: unknown; the sets are {', '.join(table)}")
    photos(args.out, args.checkpoint)
    masks(table[args.set], args.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
