#!/usr/bin/env python3
"""Compare the metrics with the verdicts of people on sampled predictions.

    python3 scripts/judged.py sample PREDICTIONS 2 --datasets sets.yaml --sets coco,camvid,clothing list.json sheets
    python3 scripts/judged.py agreement list.json
    python3 scripts/judged.py sample PREDICTIONS 2 --datasets sets.yaml --raters ann,ben,cem key.json raters
    python3 scripts/judged.py agreement key.json raters/ann/ann.json raters/ben/ben.json raters/cem/cem.json
    python3 scripts/judged.py plan list.json --items 60,240 --raters 2,3

`sample` draws random predictions of val masks, half of them right by the published metric. It writes sheets of numbered
images with the mask and the predicted name, but without the class. The person then sets `verdict` in the list to
`right`, `acceptable` (true, but vaguer, finer or another word) or `wrong`. With `--raters`, each rater gets a folder
with a list, sheets and a page, in an order of its own, that show no classes, datasets, probabilities or models.

`agreement` compares the raters with each other, and the metrics with the raters. `plan` simulates studies to say how
wide the intervals will be. docs/judging.md has the protocol.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from judged_report import agreement  # noqa: E402
from judgements import SampleOptions, sample, sample_for_raters, titled_folders  # noqa: E402
from rater_plan import plan  # noqa: E402

from osm.datasets.table import ANY_MODE, DatasetTable  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tasks = out.add_subparsers(required=True)
    one = tasks.add_parser("sample", help="sample predictions for people to judge")
    one.add_argument("predictions", type=Path, help="generate_pred.py's out_dir")
    one.add_argument("parts", type=int, help="number of parts of the predictions")
    one.add_argument("out_list", type=Path, help="the list to write; with --raters, the key")
    one.add_argument("sheets", type=Path, help="folder of the sheets; with --raters, of the raters' folders")
    one.add_argument("--datasets", required=True, help="YAML file with the val paths of the datasets")
    one.add_argument("--sets", default="coco,camvid,clothing", help="datasets to sample from [%(default)s]")
    one.add_argument("--mode", default=ANY_MODE, help="own, any or another one of the predictions [%(default)s]")
    one.add_argument(
        "--each",
        type=int,
        default=10,
        help="number of right predictions, and of wrong ones, per dataset and model [%(default)s]",
    )
    one.add_argument("--seed", type=int, default=0, help="of the sampling, and of the raters' orders [%(default)s]")
    one.add_argument("--raters", metavar="NAME,NAME", help="names of the raters, each of whom gets a folder")
    one.add_argument("--title", help="title of the model in the key, with --raters [model]")
    one.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="TITLE=FOLDER",
        help="another model's predictions, in as many parts, with --raters; repeat the flag for further models",
    )
    one.set_defaults(task="sample")
    other = tasks.add_parser("agreement", help="compare the raters with each other, and the metrics with the raters")
    other.add_argument("list", type=Path, help="the list of one person, or the key")
    other.add_argument("files", type=Path, nargs="*", metavar="RATER.json", help="the raters' files, for a key")
    other.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a JSON file")
    other.set_defaults(task="agreement")
    third = tasks.add_parser("plan", help="say how wide the intervals of a study will be, from a pilot")
    third.add_argument("list", type=Path, help="the list of one person, or the key of a pilot")
    third.add_argument("files", type=Path, nargs="*", metavar="RATER.json", help="the raters' files, for a key")
    third.add_argument(
        "--items", type=_counts, default=[60, 120, 240, 480, 960], metavar="N,N", help="numbers of items"
    )
    third.add_argument("--raters", type=_counts, default=[1, 2, 3, 5], metavar="N,N", help="[1,2,3,5]")
    third.add_argument("--kappa", type=float, default=0.8, help="expected Cohen's kappa of two raters [%(default)s]")
    third.add_argument("--studies", type=int, default=20, help="studies to simulate for each row [%(default)s]")
    third.add_argument("--seed", type=int, default=0, help="of the simulation [%(default)s]")
    third.set_defaults(task="plan")
    return out


def main() -> int:
    args = parser().parse_args()
    return run_command(_run, args)


def _run(args: argparse.Namespace) -> None:
    if args.task == "agreement":
        agreement(args.list, args.files, args.json)
        return
    if args.task == "plan":
        plan(args.list, args.files, args.items, args.raters, args.kappa, args.studies, args.seed)
        return
    table, sets = DatasetTable().with_yaml(args.datasets), _names(args.sets)
    if args.raters is not None:
        models = titled_folders(args.title or "model", args.predictions, args.also)
        options = SampleOptions(sets, args.mode, args.each, args.seed)
        files = (args.parts, args.out_list, args.sheets)
        sample_for_raters(models, *files, table, options, _names(args.raters))
        return
    for flag, value in (("--title", args.title), ("--also", " ".join(args.also))):
        if value:
            raise OsmError(f"{flag} {value}: a list of one person has no models; expected --raters too")
    sample(args.predictions, args.parts, args.out_list, args.sheets, table, sets, args.mode, args.each, args.seed)


def _counts(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 60,240") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
