#!/usr/bin/env python3
"""Compares changes of osm-small by cross-validation over training photos: the table of docs/experiments.md.

    python3 scripts/experiments.py DATA OUT [--only direct,direct_lora]

DATA contains coco_mini/, coco_panoptic/, camvid/ and clothing/ in COCO panoptic format, and for some experiments
imagenet_samples/. Only the `train` folders are read. The photos are divided into two folds by a hash of their names.
CamVid's frames of one video are in the same fold. For each experiment of scripts/experiments.yaml, one model is trained
on each fold, and names the photos of the other fold (of CamVid and Clothing, the first 25 photos). The two models are
trained at the same time, in one process of one thread each. A finished part is not run again when the command is
repeated. The last line of the output is a JSON document; `--table` prints only the table of what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from benchmarks.page_tables import percent, with_interval  # noqa: E402
from benchmarks.photo_folds import FOLDS, fold_of  # noqa: E402
from osm.command_stages import MALLOC  # noqa: E402
from osm.datasets.table import ANY_MODE, DatasetTable  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402
from osm.evaluation.metrics.scores import Accuracy, score_masks  # noqa: E402
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, differences  # noqa: E402
from osm.evaluation.predict.prediction_files import prediction_path  # noqa: E402
from osm.evaluation.predict.records import read_files  # noqa: E402
from osm.files import read_json, read_yaml, write_atomically  # noqa: E402

SOURCES = {"coco": ("coco_panoptic", "coco_mini"), "camvid": ("camvid",), "clothing": ("clothing",)}
IMAGES = {"coco": 2, "camvid": 1, "clothing": 1, "imagenet": 1}  # images of each set in a step
SCORED = {"coco": None, "camvid": 25, "clothing": 25}  # photos of each set and fold that are named
BASELINE = "baseline"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **MALLOC}


def write_fold(folder: Path, out: Path, keep: set[Any]) -> None:
    document, _ = read_json(folder / "panoptic.json", "panoptic.json")
    images = [image for image in document["images"] if image["id"] in keep]
    annotations = [row for row in document["annotations"] if row["image_id"] in keep]
    write_atomically(out, [json.dumps({**document, "images": images, "annotations": annotations})])


class Experiments:
    """The folds in a folder, and the experiments that were run on them."""

    def __init__(self, data: Path, out: Path, steps: int, cache: Path, sets: Sequence[str] = tuple(SOURCES)) -> None:
        self.data, self.out, self.steps, self.cache, self.sets = data, out, steps, cache, tuple(sets)

    def predictions(self, name: str, fold: int) -> list[Path]:
        """Return the paths of an experiment's prediction files."""
        return [prediction_path(self.out / name / str(fold), one, 0, 1) for one in self.sets]

    def prepare(self, imagenet: bool, mosaics: bool) -> None:
        if imagenet or mosaics:
            regions = self.out / "imagenet"
            if not (regions / "regions.json").exists():
                _run([ROOT / "scripts/imagenet_regions.py", self.data / "imagenet_samples", regions], self.out / "log")
            shards = self.out / "shards" / "imagenet"
            self._convert("regions", shards, "--image_dir", regions / "images", "--json_file", regions / "regions.json")
        if mosaics:
            self._prepare_mosaics()
        for name in self.sets:
            sources, merged = SOURCES[name], self.out / "sets" / name
            if not (merged / "panoptic.json").exists():
                places = [self.data / source / "train" for source in sources]
                _run([ROOT / "scripts/merge_panoptic.py", merged, *places], self.out / "log")
            document, _ = read_json(merged / "panoptic.json", "panoptic.json")
            for fold in range(FOLDS):
                inside = [image["id"] for image in document["images"] if fold_of(image["file_name"]) == fold]
                outside = {image["id"] for image in document["images"]} - set(inside)
                write_fold(merged, self.out / f"{name}_{fold}_train.json", outside)
                write_fold(merged, self.out / f"{name}_{fold}_scored.json", set(inside[: SCORED[name]]))
                self._convert(
                    "coco_panoptic",
                    self.out / "shards" / f"{name}_{fold}",
                    *("--image_dir", merged / "images", "--ann_dir", merged / "panoptic"),
                    *("--json_file", self.out / f"{name}_{fold}_train.json"),
                )
        for fold in range(FOLDS):
            write_atomically(self.out / f"sets_{fold}.yaml", [yaml.safe_dump({"datasets": self._rows(fold)})])

    def _prepare_mosaics(self) -> None:
        """Write the shards `mosaics_coco_FOLD`: COCO's training photos of a fold, and ImageNet's mosaics."""
        place = self.data / "coco_panoptic" / "train"
        mosaics, merged = self.out / "mosaics", self.out / "sets" / "mosaics"
        if not (mosaics / "panoptic.json").exists():
            _run([ROOT / "scripts/imagenet_mosaics.py", self.out / "imagenet", place, mosaics], self.out / "log")
        if not (merged / "panoptic.json").exists():
            photos = [self.data / source / "train" for source in SOURCES["coco"]]
            _run([ROOT / "scripts/merge_panoptic.py", merged, *photos, mosaics], self.out / "log")
        drawn = {path.name for path in (mosaics / "images").iterdir()}
        document, _ = read_json(merged / "panoptic.json", "panoptic.json")
        for fold in range(FOLDS):
            names = {image["id"]: image["file_name"] for image in document["images"]}
            keep = {number for number, name in names.items() if name in drawn or fold_of(name) != fold}
            listed = self.out / f"mosaics_{fold}_train.json"
            write_fold(merged, listed, keep)
            flags = ("--image_dir", merged / "images", "--ann_dir", merged / "panoptic", "--json_file", listed)
            self._convert("coco_panoptic", self.out / "shards" / f"mosaics_coco_{fold}", *flags)

    def _convert(self, form: str, out: Path, *flags: Any) -> None:
        if not (out / "000000000.tar").exists():
            shutil.rmtree(out, ignore_errors=True)
            _run(["-m", "osm", "prepare", form, "--output_dir", out, *flags], self.out / "log")

    def _rows(self, fold: int) -> dict[str, Any]:
        rows: dict[str, Any] = {"imagenet": {"form": "regions", "title": "imagenet"}}
        for name in self.sets:
            merged = self.out / "sets" / name
            paths = {"image_dir": merged / "images", "mask_dir": merged / "panoptic"}
            paths["json_file"] = self.out / f"{name}_{fold}_scored.json"
            new = {} if name in DatasetTable() else {"form": "coco_panoptic", "title": name}
            rows[name] = {**new, **{field: str(path) for field, path in paths.items()}}
        return rows

    def run(self, name: str, experiment: dict[str, Any]) -> None:
        """Train and score the two models of an experiment at the same time.

        Raises:
            OsmError: a command failed; the message names its log.
        """
        started = time.monotonic()
        runs = [self._start(name, experiment, fold) for fold in range(FOLDS)]
        for fold, process in enumerate(runs):
            if process is not None and process.wait():
                raise OsmError(f"{name}, fold {fold}: a command failed; see {self.out / name / f'{fold}.log'}")
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    def _start(self, name: str, experiment: dict[str, Any], fold: int) -> subprocess.Popen[bytes] | None:
        out = self.out / name
        out.mkdir(parents=True, exist_ok=True)
        if all(path.exists() for path in self.predictions(name, fold)):
            return None
        run, sets = out / f"run_{fold}", self.out / f"sets_{fold}.yaml"
        commands = [self._train(experiment, fold, run)]
        model = run / "final"
        if experiment.get("refit"):
            model = run / "refitted"
            commands.append(self._refit(experiment, fold, run))
        commands += [self._predict(model, out / str(fold), sets), f"rm -r {run}"]
        command = " && ".join(commands)
        with (out / f"{fold}.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", command], stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **ENVIRONMENT}
            )

    def _train(self, experiment: dict[str, Any], fold: int, run: Path) -> str:
        flags: dict[str, Any] = {
            **{
                "config": experiment.get("config", "osm_small_queries"),
                "datasets": self.out / f"sets_{fold}.yaml",
                "run_name": run,
                "num_threads": 1,
            },
            **{"num_epochs": 1, "views": 2, "feature_cache": self.cache, "warmup_steps": 20},
        }
        for name, shard in self._shards(experiment, fold).items():
            images = experiment.get("images", {}).get(name, IMAGES[name])
            flags[f"{name}_shards"] = shard
            flags[f"batch_size_{name}"], flags[f"train_num_samples_{name}"] = images, images * self.steps
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        words += [word for setting in experiment.get("set", ()) for word in ("--set", setting)]
        words += list(map(str, experiment.get("train", ())))
        return _shell([sys.executable, "train/train.py", *words])

    def _shards(self, experiment: dict[str, Any], fold: int) -> dict[str, Path]:
        """Return the shard of each dataset that the model of a fold is trained on."""
        found = {}
        for name in IMAGES:
            if name in self.sets or (name == "imagenet" and experiment.get("imagenet")):
                shard = f"{name}_{fold}" if name in SOURCES else name
                shard = f"mosaics_{shard}" if name == "coco" and experiment.get("mosaics") else shard
                found[name] = self.out / "shards" / shard / "000000000.tar"
        return found

    def _refit(self, experiment: dict[str, Any], fold: int, run: Path) -> str:
        words: list[Any] = [sys.executable, "-m", "osm", "refit_names", run / "final", run / "refitted", "--force"]
        words += ["--datasets", self.out / f"sets_{fold}.yaml", *experiment["refit"]]
        for name, shard in self._shards(experiment, fold).items():
            words += ["--shards", f"{name}={shard}"]
        return _shell(words)

    def _predict(self, model: Path, out: Path, sets: Path) -> str:
        words = [sys.executable, "test/generate_pred.py", 0, 1, model, out, "--datasets", sets]
        return _shell([*words, "--sets", ",".join(self.sets), "--num_threads", 1])

    def sums(self, name: str) -> ImageSums:
        """Return the per-image sums of an experiment's correct names, of every set and mode."""
        images: list[np.ndarray] = []
        columns: dict[str, list[np.ndarray]] = {f"{one} {mode}": [] for one in self.sets for mode in ("own", ANY_MODE)}
        count = 0
        for fold in range(FOLDS):
            table = DatasetTable().with_yaml(self.out / f"sets_{fold}.yaml")
            for one, path in zip(self.sets, self.predictions(name, fold), strict=True):
                records = read_files(table[one], [path])
                scores = {mode: score_masks(records, mode, metrics=[Accuracy()]) for mode in (one, ANY_MODE)}
                right = {f"{one} own": scores[one].columns["acc"], f"{one} {ANY_MODE}": scores[ANY_MODE].columns["acc"]}
                images.append(count + scores[one].images)
                for column, values in columns.items():
                    values.append(right.get(column, np.full(len(images[-1]), np.nan)))
                count += records.image_count
        joined = {key: np.concatenate(values) for key, values in columns.items()}
        return ImageSums(np.concatenate(images), count, joined)


def table_of(experiments: Experiments, wanted: dict[str, dict[str, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Return every finished experiment's accuracy, and its paired difference from the one that it is compared with."""
    finished: dict[str, ImageSums] = {}
    for name in wanted:
        paths = [path for fold in range(FOLDS) for path in experiments.predictions(name, fold)]
        if all(path.exists() for path in paths):
            finished[name] = experiments.sums(name)
    found: dict[str, Any] = {}
    for name, sums in finished.items():
        rates = {key: rate.as_json() for key, rate in sums.rates(bootstrap).items()}
        base = finished.get(wanted[name].get("versus", BASELINE))
        versus = {} if base is None else {key: d.as_json() for key, d in differences(base, sums, bootstrap).items()}
        found[name] = {**wanted[name], "rates": rates, "differences": versus}
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    keys = list(dict.fromkeys(key for row in found.values() for key in row["rates"]))
    lines = [f"| experiment | {' | '.join(keys)} | coco own, difference |", f"|---{'|---' * (len(keys) + 1)}|"]
    for name, row in found.items():
        cells = [percent(row["rates"][key]["value"]) for key in keys]
        cells[0] = with_interval(row["rates"]["coco own"])
        difference = row["differences"].get("coco own")
        cells.append("" if name == BASELINE or difference is None else with_interval(difference, "+"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _shell(words: Sequence[Any]) -> str:
    return shlex.join(map(str, words))


def _run(words: Sequence[Any], log: Path) -> None:
    with log.open("ab") as file:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT}, cwd=ROOT)
    if done.returncode:
        raise OsmError(f"{_shell(command)} ended with {done.returncode}; see {log}")


def _main(args: argparse.Namespace) -> None:
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = read_yaml(ROOT / "scripts/experiments.yaml", "table of experiments")
    chosen = args.only.split(",") if args.only else list(wanted)
    unknown = [name for name in chosen if name not in wanted]
    if unknown:
        raise OsmError(f"--only {unknown[0]!r}: the experiments are {', '.join(wanted)}")
    sets = args.sets.split(",")
    if "coco" not in sets or not set(sets) <= set(SOURCES):
        raise OsmError(f"--sets {args.sets}: expected coco, and optionally {', '.join(list(SOURCES)[1:])}")
    cache = (args.cache or args.out / "cache").resolve()
    experiments = Experiments(args.data.resolve(), args.out, args.steps, cache, sets)
    if not args.table:
        experiments.prepare(*(any(wanted[name].get(key) for name in chosen) for key in ("imagenet", "mosaics")))
        for name in chosen:
            experiments.run(name, wanted[name])
    found = table_of(experiments, wanted, Bootstrap())
    print("\n".join(lines_of(found)))
    print(json.dumps({"steps": args.steps, "folds": FOLDS, "sets": sets, "experiments": found}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="comma-separated names from scripts/experiments.yaml; default: all")
    parser.add_argument("--sets", default="coco", help="sets to train on and to score, comma-separated [%(default)s]")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each model [%(default)s]")
    parser.add_argument("--cache", type=Path, help="folder of the tower's tokens [OUT/cache]")
    parser.add_argument("--table", action="store_true", help="print the table of the finished experiments, run nothing")
    return run_command(_main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
