"""Command-line interface of `test/evaluate_proposals.py`, which scores mask proposals with predicted names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osm.command_parser import CommandParser
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_benchmark, add_datasets, add_json, add_predictions, dataset_table
from osm.evaluation.predict.generate import OWN_MODE
from osm.evaluation.predict.prediction_files import made_with, prediction_path
from osm.evaluation.scoring.class_names import EXACT, NEAREST, ClassNames, Encoder
from osm.evaluation.scoring.named_proposals import KIND
from osm.evaluation.scoring.score_proposals import Scores, ScoringOptions, score_set
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

# Descriptions of the proposal counts shown in the log.
# The counts `exact` and `nearest` are reported even if they are 0.
_PROPOSALS = {
    "exact": "with the name of a class, or a form of it",
    "nearest": "assigned to the class nearest in meaning",
    "without_class": "without a class",
    "unnamed": "without a name",
    "of_ignored_class": "of an ignored class, left out",
    "empty": "without a pixel",
    "below_min_score": "below --min_score, not painted",
    "hidden": "not painted (--overlap)",
}
_TITLES = {"miou": "mIoU"}
_OTHERS = {
    "images_without_proposals": "images without a proposal, whose segments are all missed",
    "images_beyond_limit": "images left out: the proposals were named with --limit",
    "images_without_truth": "images with proposals and no ground truth, left out",
    "truth_ignored": "ground-truth masks of ignored classes, void",
    "truth_missing_in_mask": "segments of the json without a pixel, left out",
    "truth_unknown_in_mask": "segments of the PNGs that are not in the json, void",
    "truth_unknown_ids": "ids of label maps, and parts of .mat files, that the labels do not define, void",
    "truth_unusable": "invalid annotations, left out",
    "truth_crowd_without_class": "crowd annotations without a class of the dataset, left out",
}


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate_proposals.py out_dir n` and return the exit code."""
    return run_command(_evaluate, argv, interrupted="interrupted")


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm evaluate_proposals`."""
    flags = CommandParser(
        prog="evaluate_proposals.py",
        allow_abbrev=False,
        description="Print panoptic quality, mask or box AP and mean IoU of named proposals.",
    )
    add_predictions(flags, "<set>_proposals_<i>_of_<n>.json")
    flags.add_argument("--sets", help="comma-separated; default: all datasets with proposals in out_dir")
    add_benchmark(flags)
    add_datasets(flags)
    flags.add_argument(
        "--mode",
        default=OWN_MODE,
        help=f"mode whose names are scored; {OWN_MODE}: the mode of the dataset [%(default)s]",
    )
    flags.add_argument(
        "--map",
        choices=(EXACT, NEAREST),
        default=NEAREST,
        help="what happens to names that no class has: nearest assigns the class nearest in meaning, exact assigns "
        "none [%(default)s]",
    )
    flags.add_argument(
        "--overlap",
        type=float,
        default=0.8,
        help="minimum share of a mask's pixels that must be free for the mask to be painted [%(default)s]",
    )
    flags.add_argument(
        "--min_score", type=float, default=0.0, help="minimum score for a mask to be painted [%(default)s]"
    )
    flags.add_argument("--without_ap", action="store_true", help="do not compute mask or box AP")
    flags.add_argument("--device", default="cpu", help="device of --map nearest: cpu, cuda, ... [%(default)s]")
    add_json(flags)
    return flags


def _evaluate(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    if args.parts < 1:
        raise OsmError(
            f"number of parts {args.parts}: expected at least 1; use the n that was passed to generate_pred.py"
        )
    args.out_dir = localize(args.out_dir, "out_dir", folder=True)
    options = ScoringOptions(args.overlap, args.min_score, not args.without_ap)
    rows = _rows(args, dataset_table(args.benchmark, args.datasets))
    encoder = _encoder(args.device) if args.map == NEAREST else None
    document = {}
    for row in rows:
        mode = row.name if args.mode == OWN_MODE else args.mode
        names = ClassNames(row.label_set, row.rules.ignored_ids, encoder)
        scores = score_set(row, _paths(args, row), mode, names, options)
        document[row.name] = {**scores.as_json(), "map": args.map, "overlap": args.overlap, "min_score": args.min_score}
        echo(*_figures(scores, document[row.name]))
        for note in _notes(scores):
            logger.info(f"{row.name}: {note}")
    if args.json:
        write_text(args.json, "--json", [json.dumps(document, indent=1, allow_nan=False) + "\n"])


def _paths(args: argparse.Namespace, row: Dataset) -> list[Path]:
    return [prediction_path(args.out_dir, row.name, part, args.parts, KIND) for part in range(args.parts)]


def _rows(args: argparse.Namespace, table: DatasetTable) -> list[Dataset]:
    """Return the datasets to score: those in --sets, or by default all datasets with proposal files in the folder."""
    if not args.out_dir.is_dir():
        raise OsmError(f"{args.out_dir} is not a folder; expected the out_dir that was passed to generate_pred.py")
    if args.sets is None:
        asked = [name for name, row in table.items() if any(path.exists() for path in _paths(args, row))]
    else:
        asked = list(dict.fromkeys(name.strip() for name in args.sets.split(",") if name.strip()))
    for name in asked:
        table.require(name, "--sets")
    if not asked:
        raise OsmError(
            f"{args.out_dir}: no file named <set>_{KIND}_<i>_of_{args.parts}.json belongs to a known dataset "
            f"({', '.join(table)}; add your own with --datasets)"
        )
    return [table[name] for name in asked]


def _encoder(device: str) -> Encoder:
    import torch

    from osm.recognition.similarity import SentenceEncoder

    try:
        return SentenceEncoder(torch.device(device))
    except RuntimeError as error:
        raise OsmError(f"--device {device}: {str(error).splitlines()[0]}") from None


def _figures(scores: Scores, document: Mapping[str, Any]) -> list[str]:
    """Return the available metrics as lines of text, in percent. Undefined metrics are omitted."""
    lines = [f"{scores.row.title} proposals, mode {scores.mode}, percent:"]
    for group, figures in document.get("panoptic", {}).items():
        if group != "by_class":
            lines.append(f"Panoptic, {group}: {_shown(figures, 'pq', 'sq', 'rq')}")
    for key, what in (("mask_ap", "Masks"), ("box_ap", "Boxes")):
        if key in document:
            protocol = document[key]["protocol"].upper()
            lines.append(f"{what} ({protocol}'s protocol): {_shown(document[key], 'ap', 'ap50', 'ap75')}")
    if "semantic" in document:
        lines.append(f"Semantic: {_shown(document['semantic'], 'miou')}")
    return lines


def _shown(figures: Mapping[str, Any], *keys: str) -> str:
    shown = (f"{_TITLES.get(key, key.upper())} {_percent(figures[key])}" for key in keys)
    return f"{', '.join(shown)} (classes: {figures['classes']})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _notes(scores: Scores) -> list[str]:
    """Return notes on which proposals and images were counted or skipped, and which metrics are undefined."""
    counts, meta = scores.counts, scores.meta
    parts = [f"{counts[key]} {what}" for key, what in _PROPOSALS.items() if counts[key] or key in (EXACT, NEAREST)]
    notes = [f"{counts['images']} images, {counts['proposals']} proposals: {', '.join(parts)}"]
    notes += [f"{counts[key]} {what}" for key, what in _OTHERS.items() if counts[key]]
    if scores.shared:
        names = ", ".join(sorted(scores.shared)[:3])
        notes.append(f"{len(scores.shared)} names belong to several classes (the lowest id is used), such as {names}")
    if scores.split.why_not:
        notes.append(f"only {', '.join(scores.split.scores)} is defined: {scores.split.why_not}")
    if not meta:
        notes.append("the proposals have no meta file; they are assumed to cover the whole dataset")
    return notes + made_with(meta)
