#!/usr/bin/env python3
"""Writes the names of ImageNet-1k's classes for `--known_classes` of train.py: scripts/imagenet_classes.json.

    python3 scripts/imagenet_classes.py COCO OUT.json

COCO is a folder with COCO's panoptic.json, of which only the categories are read. OUT.json is a list with a name for
each class of a classifier that was trained on ImageNet-1k, in the order of its outputs. scripts/coco_names.yaml has
COCO's category for a class, and the name is the one that is taught for this category. It is an empty string if there is
no category. WordNet's files are needed (apt-get install wordnet-base).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timm.data import ImageNetInfo  # noqa: E402

from benchmarks.everyday_names import everyday_name  # noqa: E402
from osm.datasets.labels import load_labels  # noqa: E402
from osm.errors import run_command  # noqa: E402
from osm.evaluation.metrics.wordnet import find_wordnet  # noqa: E402
from osm.files import read_json, read_yaml, write_atomically  # noqa: E402

NAMES = Path(__file__).with_name("coco_names.yaml")


def class_names(categories: dict[str, int]) -> list[str]:
    """Return COCO's name for each class of ImageNet-1k, or an empty string.

    Args:
        categories: the id of each category of COCO.
    """
    table, labels = read_yaml(NAMES, "table of names"), load_labels("coco")
    wordnet, classes = find_wordnet(), ImageNetInfo()
    ids = [classes.index_to_label_name(index) for index in range(classes.num_classes())]
    found = [everyday_name(wordnet, table, class_id) for class_id in ids]
    return ["" if name is None else labels[categories[name]].target for name in found]


def _main(args: argparse.Namespace) -> None:
    document, _ = read_json(args.coco / "panoptic.json", "panoptic.json")
    names = class_names({row["name"]: row["id"] for row in document["categories"]})
    write_atomically(args.out, [json.dumps(names, indent=0) + "\n"])
    print(f"{sum(map(bool, names))} of {len(names)} classes have one of {len(set(names) - {''})} names")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("coco", type=Path)
    parser.add_argument("out", type=Path)
    return run_command(_main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
