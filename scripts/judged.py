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
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from judgements import agreement, sample  # noqa: E402

from osm.datasets.table import ANY_MODE, DatasetTable  # noqa: E402
from osm.errors import OsmError  # noqa: E402


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
    one.set_defaults(task="sample")
    other = tasks.add_parser("agreement", help="compares the metrics with the verdicts")
    other.add_argument("list", type=Path)
    other.set_defaults(task="agreement")
    return out


def main() -> int:
    args = parser().parse_args()
    try:
        if args.task == "agreement":
            agreement(args.list)
        else:
            table, sets = (
                DatasetTable().with_yaml(args.datasets),
                [name.strip() for name in args.sets.split(",") if name.strip()],
            )
            files = (args.predictions, args.parts, args.out_list, args.sheets)
            sample(*files, table, sets, args.mode, args.each, args.seed)
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
