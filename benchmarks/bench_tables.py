#!/usr/bin/env python3
"""Writes the tables of docs/benches.md from the scores in docs/benchmarks/benches.

python3 benchmarks/bench_tables.py docs/benchmarks/benches docs/benches.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from page_tables import with_interval, write_tables  # noqa: E402

from osm.evaluation.bench import BENCHES  # noqa: E402

PHOTOS = {
    "coco_mini": "49 COCO photos, things",
    "coco_mini_12": "12 COCO photos, things of LVIS",
    "coco_panoptic": "20 COCO photos, classes of ADE20K",
    "camvid": "101 driving scenes (CamVid), classes of Cityscapes",
}


def tables(folder: Path) -> dict[str, str]:
    """The table of scores on photos, by its mark in the page. A file is called BENCHMARK-PHOTOS.json."""
    lines = ["| benchmark | photos | masks | scores |", "|---|---|---|---|"]
    for name in BENCHES.names():
        for path in sorted(folder.glob(f"{name}-*.json")):
            lines.append(row(name, path.stem.removeprefix(f"{name}-"), json.loads(path.read_text(encoding="utf-8"))))
    return {"photos": "\n".join(lines) + "\n"}


def row(name: str, photos: str, document: dict[str, Any]) -> str:
    titles, parts = BENCHES.get(name).titles, []
    for key, rate in document["rates"].items():
        parts.append(f"{titles[key]} {with_interval(rate)}")
    return f"| `{name}` | {PHOTOS[photos]} | {document['masks']} | {', '.join(parts)} |"


if __name__ == "__main__":
    sys.exit(write_tables((__doc__ or "").splitlines()[0], tables))
