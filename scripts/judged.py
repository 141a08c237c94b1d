#!/usr/bin/env python3
"""Compare the metrics with the verdicts of a person on sampled predictions.

    python3 scripts/judged.py sample PREDICTIONS 2 --datasets sets.yaml --sets coco,camvid,clothing list.json sheets
    python3 scripts/judged.py agreement list.json

`sample` draws random predictions of val masks, half of them right by the published metric. It writes sheets of numbered
images with the mask and the predicted name, but without the class. The person then sets `verdict` in the list to
`right`, `acceptable` (true, but vaguer, finer or another word) or `wrong`. `agreement` compares the metrics with the
verdicts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from judgements import agreement, sample  # noqa: E402

from osm.datasets.table import ANY_MODE, DatasetTable  # noqa: E402
from osm.errors import run_command  # noqa: E402


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tasks = out.add_subparsers(required=True)
    one = tasks.add_parser("sample", help="sample predictions for a person to judge")
    one.add_argument("predictions", type=Path, help="generate_pred.py's out_dir")
    one.add_argument("parts", type=int)
    one.add_argument("out_list", type=Path)
    one.add_argument("sheets", type=Path, help="folder of the sheets")
    one.add_argument("--datasets", required=True, help="YAML file with the val paths of the datasets")
    one.add_argument("--sets", default="coco,camvid,clothing")
    one.add_argument("--mode", default=ANY_MODE, help="own, any or another one of the predictions [%(default)s]")
    one.add_argument(
        "--each", type=int, default=10, help="number of right predictions, and of wrong ones, per dataset [%(default)s]"
    )
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(task="sample")
    other = tasks.add_parser("agreement", help="compare the metrics with the verdicts")
    other.add_argument("list", type=Path)
    other.set_defaults(task="agreement")
    return out


def main() -> int:
    args = parser().parse_args()
    return run_command(_run, args)


def _run(args: argparse.Namespace) -> None:
    if args.task == "agreement":
        agreement(args.list)
    else:
        table, sets = (
            DatasetTable().with_yaml(args.datasets),
            [name.strip() for name in args.sets.split(",") if name.strip()],
        )
        files = (args.predictions, args.parts, args.out_list, args.sheets)
        sample(*files, table, sets, args.mode, args.each, args.seed)


if __name__ == "__main__":
    sys.exit(main())
