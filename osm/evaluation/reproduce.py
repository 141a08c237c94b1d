"""The command `osm reproduce`, which checks that the published weights reach the published metrics on six val sets."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from osm.command_parser import CommandParser
from osm.datasets.table import DatasetTable
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_json
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.predict.generate_cli import generate_main
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import console_command, echo, json_flag

PASSED_ON = {
    "config": "model config, for a checkpoint that does not contain one; published checkpoints need: osm",
    "benchmark": "YAML file with the paths of the datasets, or its name in configs/",
    "datasets": "YAML file with other paths of the datasets",
    "sets": "comma-separated; default: all of the six datasets whose files exist",
    "limit": "maximum number of images per dataset, for a trial",
    "batch": "number of images that are named together",
    "device": "auto, cpu, cuda, cuda:1, ...",
    "num_threads": "number of CPU threads of torch",
    "max_batch_tokens": "maximum number of LLM tokens in one batch",
}
"""Flags that are passed on to `generate_pred.py` because they do not change the benchmark."""


@dataclass(frozen=True)
class Figures:
    """The metrics of one dataset in percent, and its number of masks."""

    acc_any: float
    acc_own: float
    niv_any: float
    niv_own: float
    masks: int


PUBLISHED = {
    "coco": Figures(79.47, 86.96, 8.78, 0.11, 56295),
    "ade20k": Figures(83.75, 85.19, 2.12, 0.31, 30250),
    "cityscapes": Figures(88.69, 88.65, 0.01, 0.01, 14373),
    "lvis": Figures(64.54, 72.45, 8.28, 1.18, 244645),
    "a847": Figures(76.54, 78.11, 0.81, 0.49, 20369),
    "pc459": Figures(80.57, 83.01, 3.74, 0.54, 31137),
}
"""The metrics published for the checkpoint of the model zoo, computed in float16."""
RATES = {"acc_any": "Acc any", "acc_own": "Acc own", "niv_any": "NIV any", "niv_own": "NIV own"}


def figures(result: SetResult) -> Figures:
    """Return the metrics of a dataset in percent, rounded to two decimal places like the published values."""
    modes = {"any": result.agnostic, "own": result.specific}
    for mode, score in modes.items():
        if not score.total:
            raise OsmError(
                f"dataset {result.row.name!r}: no predictions in mode {mode}; generate the predictions in both modes"
            )
    rates = {f"acc_{mode}": 100 * score.correct / score.total for mode, score in modes.items()}
    rates |= {f"niv_{mode}": 100 * score.not_in_vocabulary / score.total for mode, score in modes.items()}
    return Figures(**{key: round(value, 2) for key, value in rates.items()}, masks=result.agnostic.total)


@dataclass(frozen=True)
class Comparison:
    """The metrics of one dataset and the published values. `apart` is `ours` - `published` in percentage points."""

    name: str
    ours: Figures
    published: Figures
    apart: dict[str, float]
    tolerance: float

    @property
    def same_masks(self) -> bool:
        return self.ours.masks == self.published.masks

    @property
    def within(self) -> bool:
        return all(abs(points) <= self.tolerance for points in self.apart.values())

    def line(self) -> str:
        """Return the dataset's row in the printed Markdown table."""
        cells = [f"{getattr(self.ours, key):.2f} ({points:+.2f})" for key, points in self.apart.items()]
        masks = f"{self.ours.masks}" + ("" if self.same_masks else f" (published: {self.published.masks})")
        verdict = "reproduced" if self.within else "not reproduced"
        return f"| {self.name} | {' | '.join(cells)} | {masks} | {verdict} |"


def compare(result: SetResult, tolerance: float) -> Comparison:
    """Compare the metrics of a dataset with the published values.

    Args:
        result: the evaluation result of the dataset.
        tolerance: maximum absolute difference in percentage points.
    """
    ours, published = figures(result), PUBLISHED[result.row.name]
    apart = {key: round(getattr(ours, key) - getattr(published, key), 2) for key in RATES}
    return Comparison(result.row.name, ours, published, apart, tolerance)


@console_command
def main(argv: Sequence[str] | None = None, generate: Callable[[Sequence[str]], int] = generate_main) -> int:
    """Run `osm reproduce` and return the exit code.

    The exit code is 0 if all six datasets are within the tolerance, 1 if not, and 2 if no dataset could be compared.

    Args:
        argv: the command-line arguments; None reads them from `sys.argv`.
        generate: the function that runs the command line of `generate_pred.py`.
    """
    return run_command(_reproduce, argv, generate)


def _reproduce(argv: Sequence[str] | None, generate: Callable[[Sequence[str]], int]) -> int:
    args = parser().parse_args(argv)
    if args.processes < 1 or not 0 <= args.tolerance < math.inf:
        raise OsmError(
            f"--processes {args.processes}, --tolerance {args.tolerance}: expected at least 1 process and a finite, "
            "non-negative tolerance"
        )
    if status := _generate(args, generate):
        return status
    out_dir = localize(args.out_dir, "out_dir", folder=True)
    results, notes = evaluate_folder(out_dir, args.processes, DatasetTable(), PUBLISHED)
    compared = [compare(result, args.tolerance) for result in results if result.row.name in PUBLISHED]
    _show(compared, notes, args)
    return int(len(compared) < len(PUBLISHED) or not all(one.within and one.same_masks for one in compared))


def _generate(args: argparse.Namespace, generate: Callable[[Sequence[str]], int]) -> int:
    asked = {**{name: getattr(args, name) for name in PASSED_ON}, "sets": args.sets or ",".join(PUBLISHED)}
    given = [(name, value) for name, value in asked.items() if value is not None]
    common = [args.checkpoint, args.out_dir, *(word for name, value in given for word in (f"--{name}", value))]
    if args.processes == 1:
        return generate(["0", "1", *common])
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(args.processes)]
    command = [sys.executable, *start, "-m", "osm", "generate", "auto", "auto", *common, *json_flag()]
    # torchrun exits with code 1 for every failure, but `osm reproduce` reserves 1 for differing metrics.
    return 2 if subprocess.run(command).returncode else 0


def _show(compared: list[Comparison], notes: list[str], args: argparse.Namespace) -> None:
    echo(f"| set | {' | '.join(RATES.values())} | masks | within {args.tolerance} points |")
    echo("|" + "---|" * (len(RATES) + 3))
    for one in compared:
        echo(one.line())
    missing = [name for name in PUBLISHED if name not in {one.name for one in compared}]
    for note in [note for note in notes if note.partition(":")[0] in missing]:
        echo(note)
    if args.json:
        document: dict[str, Any] = {
            one.name: {**asdict(one), "within": one.within, "same_masks": one.same_masks} for one in compared
        }
        whole = {"sets": document, "missing": missing}
        write_text(args.json, "--json", [json.dumps(whole, indent=1, allow_nan=False) + "\n"])


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm reproduce`."""
    out = CommandParser(
        prog="osm reproduce",
        allow_abbrev=False,
        description="Name the six val sets of the published benchmark and compare the metrics with the published "
        "values. The brackets contain the differences in percentage points. A killed run can be resumed.",
    )
    out.add_argument("checkpoint", metavar="ckpt", help="checkpoint of the model zoo, or another model")
    out.add_argument("out_dir", help="folder of the predictions, or its URL on s3:// or gs://")
    out.add_argument("--processes", type=int, default=1, help="number of processes, one per GPU [%(default)s]")
    out.add_argument(
        "--tolerance",
        type=float,
        default=0.5,
        help="maximum difference of every metric from the published value, in percentage points [%(default)s]",
    )
    add_json(out)
    group = out.add_argument_group("flags of generate_pred.py")
    for name, what in PASSED_ON.items():
        group.add_argument(f"--{name}", help=what)
    return out
