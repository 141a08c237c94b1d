"""`osm finetune`: adapts a trained model to a user's own photos, in stages that consist of ordinary `osm` commands.

The stages hold out some photos, write shards of the others, name the held-out masks with the model as it is, train it,
name the same masks again, and compare both. Finished stages are skipped, and an interrupted stage is resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from osm.command_parser import CommandParser
from osm.command_stages import MALLOC, Stage, interrupt_on_sigterm, osm_command, run_stages
from osm.datasets.table import ANY_MODE, DatasetTable
from osm.errors import OsmError, did_you_mean, run_command, shown
from osm.files import read_json, write_atomically
from osm.recognition.flags import SHIPPED
from osm.shipped import fetchable, shipped_model
from osm.storage.locations import is_remote
from osm.terminal import clock, console_command, echo

BATCH = 2  # images in a step
MASKS = 4  # masks of an image in a step
_SAME = ("name", "start_from", "epochs", "learning_rate", "held_out", "views")  # flags that are fields of the options
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class FinetuneOptions:
    """The settings of a fine-tuning.

    Attributes:
        json_file: the annotations of the photos, in COCO instance or panoptic format.
        image_dir: the folder of the photos.
        ann_dir: the folder of the panoptic PNGs; empty for the instance format.
        out: the folder of all outputs.
        name: the name of the dataset, which is also the name of its mode.
        start_from: the trained model to start from.
        epochs: how often every training photo is used.
        learning_rate: the peak learning rate.
        held_out: the share of the photos that is held out, to score the model before and after.
        views: the number of crops of each photo whose tokens are kept in the feature cache.
        device: the device of training and predictions.
    """

    json_file: str
    image_dir: str
    ann_dir: str
    out: Path
    name: str = "mine"
    start_from: str = SHIPPED
    epochs: int = 6
    learning_rate: float = 5e-4
    held_out: float = 0.2
    views: int = 2
    device: str = "auto"


def find_annotations(data: Path, image_dir: Path | None = None, ann_dir: Path | None = None) -> dict[str, str]:
    """Find the annotations and the photos of a dataset.

    Args:
        data: a COCO JSON file, or a folder with exactly one such file (in it or in its folder `annotations`).
        image_dir: the folder of the photos; None = the folder `images` beside the JSON file, or else the JSON's folder.
        ann_dir: the folder of the panoptic PNGs; None = the folder that is named like the JSON file.

    Returns:
        the fields `json_file`, `image_dir` and `ann_dir` of `FinetuneOptions`.

    Raises:
        OsmError: a file or folder is missing, there are several JSON files, or the file is not in COCO format.
    """
    if data.is_dir():
        found = sorted(data.glob("*.json")) or sorted((data / "annotations").glob("*.json"))
        if len(found) != 1:
            what = f"several json files ({', '.join(path.name for path in found)})" if found else "no json file"
            raise OsmError(f"{data} contains {what}; give the COCO json with the annotations instead of its folder")
        path = found[0]
    else:
        path = data
    document = read_annotations(path)
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    images = image_dir or next(one for one in (root / "images", root) if one.is_dir())
    if not images.is_dir():
        raise OsmError(f"--image_dir {images} is not a folder")
    panoptic = any("segments_info" in row for row in document["annotations"])
    masks = (ann_dir or path.with_suffix("")) if panoptic else None
    if masks is not None and not masks.is_dir():
        raise OsmError(f"{path} is in panoptic format, but {masks} is not a folder; give the PNGs with --ann_dir")
    return {
        "json_file": str(path.resolve()),
        "image_dir": str(images.resolve()),
        "ann_dir": "" if masks is None else str(masks.resolve()),
    }


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file. Raises OsmError if it lacks the lists `images`, `annotations` or `categories`."""
    document, _ = read_json(path, "annotations")
    for key in ("images", "annotations", "categories"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise OsmError(f"{path}: {key} is {shown(rows)}; expected COCO's list of {key}")
    found: dict[str, Any] = document
    return found


def held_out_images(document: Mapping[str, Any], share: float) -> set[str]:
    """Return the ids (as text) of the photos that are held out: a share that depends on nothing but the file names.

    Raises:
        OsmError: fewer than 2 photos are held out, or fewer than 2 are left.
    """
    ranked = sorted(
        (hashlib.sha256(str(image.get("file_name")).encode()).hexdigest(), str(image.get("id")))
        for image in document["images"]
    )
    count = round(share * len(ranked))
    if count < 2 or len(ranked) - count < 2:
        raise OsmError(
            f"--held_out {share:g} of {len(ranked)} photos is {count}; expected at least 2 photos on either side"
        )
    return {image_id for _, image_id in ranked[:count]}


def split_annotations(options: FinetuneOptions) -> None:
    """Write the annotations of the training photos and of the held-out photos, and the dataset table."""
    document = read_annotations(Path(options.json_file))
    held_out = held_out_images(document, options.held_out)
    for part, inside in (("val", True), ("train", False)):
        images = [row for row in document["images"] if (str(row.get("id")) in held_out) == inside]
        rows = [row for row in document["annotations"] if (str(row.get("image_id")) in held_out) == inside]
        text = json.dumps({**document, "images": images, "annotations": rows})
        write_atomically(options.out / f"{part}.json", [text])
    row = {
        "form": "coco_panoptic" if options.ann_dir else "coco_instances",
        "title": options.name,
        "labels": str(options.out / "train.json"),
        "image_dir": options.image_dir,
        "json_file": str(options.out / "val.json"),
        **({"mask_dir": options.ann_dir} if options.ann_dir else {}),
    }
    write_atomically(options.out / "sets.yaml", [yaml.safe_dump({"datasets": {options.name: row}}, sort_keys=False)])


def stages(options: FinetuneOptions, photos: int) -> list[Stage]:
    """Return all stages of a fine-tuning, in order. `photos` is the number of training photos."""
    out, name = options.out, options.name
    table = ["--datasets", out / "sets.yaml"]
    kind = "prepare_panoptic" if options.ann_dir else "prepare_instances"
    files = ["--image_dir", options.image_dir, "--json_file", out / "train.json"]
    files += ["--ann_dir", options.ann_dir] if options.ann_dir else []
    shards = osm_command(kind, *files, "--output_dir", out / "shards")
    naming = [*table, "--sets", name, "--device", options.device]
    report = [f"before={out / 'before'}", "--predictions", f"after={out / 'after'}", "--parts", 1, *table]
    return [
        Stage("shards", f"packing {photos} photos into shards", [shards]),
        Stage(
            "before",
            "naming the held-out masks with the model as it is",
            [osm_command("generate", 0, 1, options.start_from, out / "before", *naming, "--modes", ANY_MODE)],
        ),
        Stage("training", f"training {options.start_from} on {photos} photos", [_train(options, photos)], MALLOC),
        Stage(
            "after",
            "naming the held-out masks with the trained model",
            [osm_command("generate", 0, 1, out / "run" / "final", out / "after", *naming)],
        ),
        Stage(
            "comparison",
            "before and after, mask by mask",
            [
                osm_command(
                    *("compare", out / "before", out / "after", "--parts", 1, "--titles", "before,after", *table),
                    *("--metrics", "published", "--json", out / "comparison.json"),
                ),
                osm_command("evaluate", out / "after", 1, *table, "--json", out / "after.json"),
                osm_command("report", out / "report", "--predictions", *report, "--run", out / "run"),
            ],
        ),
    ]


def _train(options: FinetuneOptions, photos: int) -> list[str]:
    out, name = options.out, options.name
    steps = max(1, photos * options.epochs // BATCH)
    flags: dict[str, object] = {
        "start_from": options.start_from,
        "datasets": out / "sets.yaml",
        "run_name": out / "run",
        "feature_cache": out / "cache",
        "views": options.views,
        f"{name}_shards": out / "shards" / "000000000.tar",
        f"batch_size_{name}": BATCH,
        f"train_num_samples_{name}": steps * BATCH,
        "masks_per_image": MASKS,
        "learning_rate": options.learning_rate,
        "lr_scheduler": "cosine",
        "warmup_steps": max(1, steps // 10),
        "logging_steps": max(1, steps // 20),
        "checkpoint_every_steps": max(10, steps // 5),
        "workers": 0,
        # The samples are made as they were for osm-small, whose config has these values.
        "supervise": "answer",
        "resize": "always",
        "random_scale_min": 0.8,
        "random_scale_max": 1.2,
        "device": options.device,
    }
    return osm_command(
        "train", "--dataset_resampled", *(word for flag, value in flags.items() for word in (f"--{flag}", value))
    )


def summary(options: FinetuneOptions, seconds: Mapping[str, float]) -> list[str]:
    """Return the accuracy before and after with 95 % intervals, the duration, and how to use the model."""
    compared = read_json(options.out / "comparison.json", "comparison")[0]
    found = compared["sets"][options.name]["agnostic"]["rates"]["acc"]
    own = read_json(options.out / "after.json", "scores")[0][options.name]["specific"]
    before, after, difference = found["a"], found["b"], found["difference"]
    return [
        "",
        f"accuracy on {own['total']} masks of held-out photos (95 % intervals over photos):",
        f"  before, mode any:           {_rate(before)}",
        f"  after, mode any:            {_rate(after)}   difference {_rate(difference)}",
        f"  after, mode {options.name + ':':<15} {100 * own['acc']:.1f} %",
        f"  {_verdict(difference['interval'])}",
        f"minutes: {sum(seconds.values()) / 60:.1f} (" + ", ".join(f"{k} {clock(v)}" for k, v in seconds.items()) + ")",
        f"report:  {options.out / 'report' / 'report.html'}",
        f"use it:  osm name photo.jpg --auto --checkpoint {options.out / 'run' / 'final'} --mode {options.name}",
    ]


def _verdict(interval: Sequence[float] | None) -> str:
    """Say whether the interval of a difference of accuracies excludes zero."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference is shown: its interval contains zero; more held-out photos give a narrower interval"
    return "the model got better" if interval[0] > 0 else "the model got worse"


def _rate(found: Mapping[str, Any]) -> str:
    interval = found["interval"]
    spread = "" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{100 * found['value']:.1f} %{spread}"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm finetune`."""
    known = FinetuneOptions("", "", "", Path("runs/finetune"))
    out = CommandParser(
        prog="osm finetune",
        allow_abbrev=False,
        description="Adapt a trained model to your photos: shards, scores before, training, scores after, comparison. "
        "Every command that it runs is printed. An interrupted run is resumed by the same command.",
    )
    out.add_argument("data", type=Path, help="COCO json with instance or panoptic masks, or a folder with one")
    out.add_argument("out", type=Path, nargs="?", default=known.out, help="folder of all outputs [%(default)s]")
    out.add_argument("--image_dir", type=Path, help="folder of the photos [`images` beside the json, or its folder]")
    out.add_argument("--ann_dir", type=Path, help="folder of the panoptic PNGs [named like the json]")
    out.add_argument("--name", default=known.name, help="name of the dataset and of its mode [%(default)s]")
    out.add_argument("--start_from", default=known.start_from, help="trained model to start from [%(default)s]")
    out.add_argument("--epochs", type=int, default=known.epochs, help="how often each photo is used [%(default)s]")
    out.add_argument(
        "--learning_rate", type=float, default=known.learning_rate, help="peak learning rate [%(default)s]"
    )
    out.add_argument(
        "--held_out",
        type=float,
        default=known.held_out,
        help="share of the photos that is not trained on [%(default)s]",
    )
    out.add_argument("--views", type=int, default=known.views, help="crops of each photo to train on [%(default)s]")
    out.add_argument("--device", default=known.device, help="auto, cpu, cuda, ... [%(default)s]")
    return out


def _options(args: argparse.Namespace) -> FinetuneOptions:
    if not _NAME.fullmatch(args.name) or args.name in DatasetTable() or args.name == ANY_MODE:
        raise OsmError(
            f"--name {args.name!r} must be lower-case letters, digits and underscores, and not one of "
            + ", ".join([ANY_MODE, *DatasetTable()])
        )
    for flag in ("epochs", "views"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    if not args.learning_rate > 0:
        raise OsmError(f"--learning_rate {args.learning_rate:g} must be above 0")
    if not 0 < args.held_out < 1:
        raise OsmError(f"--held_out {args.held_out:g} must be between 0 and 1")
    check_start(args.start_from)
    same: dict[str, Any] = {flag: getattr(args, flag) for flag in _SAME}
    same |= find_annotations(args.data, args.image_dir, args.ann_dir)
    return FinetuneOptions(out=args.out.resolve(), device=args.device, **same)


def check_start(start_from: str) -> None:
    """Raise OsmError if `--start_from` is not a model of this package, a file, a model folder, a URL or a hub id."""
    path = shipped_model(start_from) or Path(start_from)
    if is_remote(start_from) or path.is_file() or (path / "config.json").is_file():
        return
    if path.is_dir():
        raise OsmError(
            f"--start_from {start_from}: no config.json in this folder; a run's model is in its folder `final`"
        )
    if start_from.count("/") != 1 or path.is_absolute():  # otherwise, it may be the id of a model on the hub
        raise OsmError(
            f"--start_from {start_from!r}: no such folder or file, and not a hub id (owner/name)"
            + did_you_mean(start_from, fetchable())
        )


def _finetune(args: argparse.Namespace) -> None:
    options = _options(args)
    document = read_annotations(Path(options.json_file))
    photos = len(document["images"]) - len(held_out_images(document, options.held_out))
    chosen = {key: value for key, value in asdict(options).items() if key not in ("out", "device")}
    seconds = run_stages(
        options.out, "osm finetune", chosen, stages(options, photos), lambda: split_annotations(options)
    )
    echo(*summary(options, seconds))


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm finetune` and return its exit code."""
    args = parser().parse_args(argv)
    interrupt_on_sigterm()
    return run_command(_finetune, args)
