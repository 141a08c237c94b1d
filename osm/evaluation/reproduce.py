"""`osm reproduce`: names the six published val sets with the published weights, and compares the figures."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.evaluation.commands import run_command
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.predict.generate_cli import generate_main
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import echo

PASSED_ON = {
    "config": "of a checkpoint that does not tell its own, as the published ones: osm",
    "benchmark": "YAML with the sets' paths, or its name in configs/",
    "datasets": "YAML with other paths of the sets",
    "sets": "comma-separated; default: those six whose files are there",
    "limit": "the first so many images of each set alone, to try it",
    "batch": "images that are named together",
    "device": "auto, cpu, cuda, cuda:1, ...",
    "num_threads": "CPU threads of torch",
    "max_batch_tokens": "LLM positions decoded together",
}
"""Flags of `generate_pred.py` that do not change what is asked."""


@dataclass(frozen=True)
class Figures:
    """Of one set, in percent, and of how many masks."""

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
"""The figures published with the model zoo's checkpoint, in float16."""
RATES = {"acc_any": "Acc any", "acc_own": "Acc own", "niv_any": "NIV any", "niv_own": "NIV own"}


def figures(result: SetResult) -> Figures:
    """What evaluation found, as the published figures are."""
    modes = {"any": result.agnostic, "own": result.specific}
    for mode, score in modes.items():
        if not score.total:
            raise OsmError(f"set {result.row.name!r}: no prediction in mode {mode}; generate it in both modes")
    rates = {f"acc_{mode}": 100 * score.correct / score.total for mode, score in modes.items()}
    rates |= {f"niv_{mode}": 100 * score.not_in_vocabulary / score.total for mode, score in modes.items()}
    return Figures(**{key: round(value, 2) for key, value in rates.items()}, masks=result.agnostic.total)


@dataclass(frozen=True)
class Comparison:
    """One set beside its published figures; `apart` by rate, in points."""

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
        """A row of the table."""
        cells = [f"{getattr(self.ours, key):.2f} ({points:+.2f})" for key, points in self.apart.items()]
        masks = f"{self.ours.masks}" + ("" if self.same_masks else f" (published: {self.published.masks})")
        verdict = "reproduced" if self.within else "not reproduced"
        return f"| {self.name} | {' | '.join(cells)} | {masks} | {verdict} |"


def compare(result: SetResult, tolerance: float) -> Comparison:
    """A set's figures beside those of the table."""
    ours, published = figures(result), PUBLISHED[result.row.name]
    apart = {key: round(getattr(ours, key) - getattr(published, key), 2) for key in RATES}
    return Comparison(result.row.name, ours, published, apart, tolerance)


def main(argv: Sequence[str] | None = None, generate: Callable[[Sequence[str]], int] = generate_main) -> int:
    """Returns 0 where all six sets are within the tolerance, 1 where not, 2 where nothing could be compared."""
    return run_command(_reproduce, argv, generate)


def _reproduce(argv: Sequence[str] | None, generate: Callable[[Sequence[str]], int]) -> int:
    args = parser().parse_args(argv)
    if args.processes < 1 or not 0 <= args.tolerance < math.inf:
        raise OsmError(f"--processes {args.processes}, --tolerance {args.tolerance}: 1 or more, and 0 or more, needed")
    if status := _generate(args, generate):
        return status
    results, notes = evaluate_folder(localize(args.out_dir, "out_dir", folder=True), args.processes, DatasetTable())
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
    command = [sys.executable, *start, "-m", "osm", "generate", "auto", "auto", *common]
    # Not torchrun's own status, which is 1 for every failure: that says here that the figures are others.
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
    """The flags of `osm reproduce`."""
    out = argparse.ArgumentParser(
        prog="osm reproduce",
        allow_abbrev=False,
        description="Names the published benchmark's six val sets and compares the figures with the published ones; in "
        "brackets, the difference in points. A run that was killed goes on.",
    )
    out.add_argument("checkpoint", metavar="ckpt", help="the model zoo's file, or another model")
    out.add_argument("out_dir", help="folder of the predictions, or its URL on s3:// or gs://")
    out.add_argument("--processes", type=int, default=1, help="one a GPU [%(default)s]")
    out.add_argument("--tolerance", type=float, default=0.5, help="in points, of every figure [%(default)s]")
    out.add_argument("--json", help="also write the figures to this file, here or at a URL on s3:// or gs://")
    group = out.add_argument_group("as of generate_pred.py")
    for name, what in PASSED_ON.items():
        group.add_argument(f"--{name}", help=what)
    return out
