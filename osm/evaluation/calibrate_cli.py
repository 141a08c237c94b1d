"""The command `osm calibrate`, which fits a calibration to predictions and stores it in a model folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_json, dataset_table
from osm.evaluation.evaluate_cli import json_text
from osm.evaluation.metrics.calibration import calibrate_by_mass, cross_fitted, ece_if_calibrated, fit_calibration
from osm.evaluation.metrics.scores import Accuracy, score_masks
from osm.evaluation.predict.prediction_files import list_predictions
from osm.evaluation.predict.records import read_set
from osm.evaluation.report.reliability_diagram import check_plot, draw_reliability
from osm.files import read_json, write_atomically
from osm.models.probability_calibration import UNSURE, ProbabilityCalibration
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import console_command, echo


@dataclass(frozen=True)
class PredictedNames:
    """Predicted names of all datasets and modes.

    Attributes:
        probs: float (names,), the probability of each name.
        correct: bool (names,), whether the name is correct.
        images: int (names,), the image of each name.
        masks: the number of masks. A mask has one name in each mode.
    """

    probs: np.ndarray
    correct: np.ndarray
    images: np.ndarray
    masks: int


def read_names(folders: Sequence[Path], tables: Sequence[str]) -> PredictedNames:
    """Read the names in prediction folders.

    Args:
        folders: the folders.
        tables: for each folder, the YAML file of its datasets.

    Raises:
        OsmError: a folder has no predictions, a file is invalid, or the names come from a vocabulary.
    """
    probs: list[np.ndarray] = []
    correct: list[np.ndarray] = []
    images: list[np.ndarray] = []
    image_count = masks = 0
    for folder, table in zip(folders, tables, strict=True):
        rows, present = dataset_table(None, table), sorted(set(list_predictions(folder)))
        if not present:
            raise OsmError(f"--predictions {folder}: contains no prediction files of generate_pred.py")
        for name, parts in present:
            if name not in rows:
                raise OsmError(f"--predictions {folder}: the dataset {name!r} is not in --datasets {table}")
            records = read_set(rows[name], folder, parts)
            if records.meta.get("vocabulary"):
                raise OsmError(f"--predictions {folder}: {name} was named with --vocabulary; expected free names")
            counted = [mask for _, mask in records.counted()]
            masks += len(counted)
            for mode in dict.fromkeys(mode for mask in counted for mode in mask.predictions):
                scores = score_masks(records, mode, metrics=[Accuracy()])
                there = ~np.isnan(scores.probs)
                probs.append(scores.probs[there].clip(max=1))
                correct.append(scores.columns["acc"][there] > 0)
                images.append(image_count + scores.images[there])
            image_count += records.image_count
    if not probs:
        raise OsmError(f"--predictions {folders[0]}: contains no named masks")
    return PredictedNames(np.concatenate(probs), np.concatenate(correct), np.concatenate(images), masks)


def figures(names: PredictedNames, calibrated: np.ndarray, unsure: float, kind: str) -> dict[str, Any]:
    """Return the reliability of the raw and of the calibrated probabilities as JSON-compatible values.

    Args:
        calibrated: float (names,), the calibrated probability of each name.
        unsure: the threshold.
        kind: the name of the calibrated probabilities: `cross_fitted` or `stored`.
    """
    mean, high = ece_if_calibrated(calibrated)
    above = calibrated >= unsure
    counts = {
        side: {"names": int(inside.sum()), "wrong": int((inside & ~names.correct).sum())}
        for side, inside in (("sure", above), ("unsure", ~above))
    }
    return {
        "masks": names.masks,
        "names": len(names.probs),
        "images": len(np.unique(names.images)),
        "accuracy": float(names.correct.mean()),
        "raw": calibrate_by_mass(names.probs, names.correct).as_json(),
        kind: calibrate_by_mass(calibrated, names.correct).as_json(),
        "ece_if_perfectly_calibrated": {"mean": mean, "up_to": high},
        "threshold": unsure,
        **counts,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the lines that `osm calibrate` prints."""
    chance = found["ece_if_perfectly_calibrated"]
    kind = "stored" if "stored" in found else "cross_fitted"
    sure, unsure = found["sure"], found["unsure"]
    return [
        f"{found['names']} names of {found['masks']} masks in {found['images']} images: {found['accuracy']:.1%} "
        "correct",
        f"expected calibration error (10 bins of equal mass): {found['raw']['ece']:.1%} before, "
        f"{found[kind]['ece']:.1%} after ({kind.replace('_', '-')}); perfectly calibrated probabilities would show "
        f"{chance['mean']:.1%} on average, up to {chance['up_to']:.1%}",
        f"at or above the threshold {found['threshold']:g}: {sure['wrong']} of {sure['names']} wrong; below: "
        f"{unsure['wrong']} of {unsure['names']} wrong",
    ]


def stored(folder: Path) -> ProbabilityCalibration:
    """Return the calibration of a model folder. Raises OsmError if it has none."""
    path = folder / "config.json"
    found = ProbabilityCalibration.from_document(read_json(path, "checkpoint config")[0], str(path))
    if found is None:
        raise OsmError(f"--check: {path} has no calibration; run the command without --check to fit one")
    return found


def store(folder: Path, calibration: ProbabilityCalibration) -> None:
    """Write a calibration into the config of a model folder.

    Raises:
        OsmError: the folder has no `config.json`.
    """
    path = folder / "config.json"
    document, _ = read_json(path, "checkpoint config")
    if not isinstance(document, dict) or "model" not in document:
        raise OsmError(f"{path}: not the config of a model folder")
    write_atomically(path, [json.dumps({**document, "calibration": calibration.as_document()}, indent=2), "\n"])


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm calibrate`."""
    out = CommandParser(
        prog="osm calibrate",
        allow_abbrev=False,
        description="Fit a calibration of the probabilities of free names, and store it in a model folder. The "
        "predictions must be of images that the predicting model was not trained on.",
    )
    out.add_argument("checkpoint", type=Path, help="model folder, such as `final` (see osm export for a .pt file)")
    out.add_argument(
        "--predictions", action="append", required=True, metavar="FOLDER", help="output of generate_pred.py; repeatable"
    )
    out.add_argument(
        "--datasets", action="append", required=True, metavar="YAML", help="datasets of each --predictions, in order"
    )
    out.add_argument(
        "--unsure", type=float, default=UNSURE, help="calibrated probability below which a name is unsure [%(default)s]"
    )
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw a reliability diagram, as .png or .svg")
    out.add_argument("--dry_run", action="store_true", help="print the figures, but do not change the model folder")
    out.add_argument(
        "--check", action="store_true", help="measure the stored calibration on the predictions instead of fitting one"
    )
    add_json(out)
    return out


def _calibrate(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    if len(args.datasets) != len(args.predictions):
        raise OsmError(
            f"--predictions has {len(args.predictions)} values, but --datasets has {len(args.datasets)}; give one "
            "--datasets value for each --predictions value"
        )
    if args.plot is not None:
        check_plot(args.plot)
    if not 0 <= args.unsure <= 1:
        raise OsmError(f"--unsure {args.unsure} is not between 0 and 1")
    if not (args.checkpoint / "config.json").is_file():
        raise OsmError(f"{args.checkpoint}: not a model folder, because it has no config.json")
    names = read_names([localize(one, "--predictions", folder=True) for one in args.predictions], args.datasets)
    if args.check:
        calibration = stored(args.checkpoint)
        calibrated = np.array([calibration(prob) for prob in names.probs])
    else:
        calibration = fit_calibration(names.probs, names.correct, args.unsure)
        calibrated = cross_fitted(names.probs, names.correct, names.images)
    found = figures(names, calibrated, calibration.unsure, "stored" if args.check else "cross_fitted")
    echo(*lines(found))
    if args.json:
        write_text(args.json, "--json", [json_text({**found, "calibration": calibration.as_document()})])
    if args.plot is not None:
        tables = [calibrate_by_mass(probs, names.correct) for probs in (names.probs, calibrated)]
        draw_reliability(args.plot, tables[0], tables[1], calibration.unsure)
    if not args.dry_run and not args.check:
        store(args.checkpoint, calibration)
        echo(
            f"stored in {args.checkpoint / 'config.json'}: slope {calibration.slope:.3f}, intercept "
            f"{calibration.intercept:.3f}"
        )


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm calibrate`. Return the exit code."""
    return run_command(_calibrate, argv)
