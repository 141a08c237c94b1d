"""Command-line interface of `test/generate_pred.py` (also `osm generate`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from osm.command_parser import CommandParser
from osm.config import add_settings
from osm.datasets.labels import LabelClass
from osm.datasets.table import ANY_MODE, Dataset, DatasetTable
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_benchmark, add_datasets, dataset_table
from osm.evaluation.predict.alter import ALTERATIONS
from osm.evaluation.predict.generate import OWN_MODE, check_part, generate_predictions, resolve_modes
from osm.forms import MAX_BAD_ANNOTATIONS, Form, form_class
from osm.recognition import placement
from osm.recognition.flags import METHOD_HELP, config_options, method_of
from osm.startup import quick_loading
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote
from osm.storage.output import check_output
from osm.terminal import console_command, message_logger

logger = message_logger(__name__)

GROUND_TRUTH = "gt"
SET_NAMES = "set"
FOLDERS = ("image_dir", "mask_dir")
PATH_FIELDS = {"image_dir": "folder of the images", "json_file": "json of the annotations"}


@console_command
def generate_main(argv: Sequence[str] | None = None, load_namer: Callable[..., Any] | None = None) -> int:
    """Run `generate_pred.py i n ckpt out_dir` and return the exit code.

    Args:
        argv: the command-line arguments; None reads them from `sys.argv`.
        load_namer: the function that loads the model; None uses `osm.recognition.namer.load_namer`.
    """
    return run_command(_generate, argv, load_namer)


def _generate(argv: Sequence[str] | None, load_namer: Callable[..., Any] | None) -> None:
    # --benchmark and --datasets are parsed first: they define the table of datasets, and every dataset has flags.
    known, _ = _files_parser().parse_known_args(argv)
    table = dataset_table(known.benchmark, known.datasets)
    args = generate_parser(table).parse_args(argv)
    check_output(args.out_dir, "out_dir")  # fail before the model is loaded
    part, parts = _part(args)
    modes = [mode.strip() for mode in args.modes.split(",") if mode.strip()]
    method = method_of(args)
    if args.num_threads is not None and args.num_threads < 1:
        raise OsmError(f"--num_threads {args.num_threads}: expected 1 or more")
    rows = _rows_at_hand(args, table)
    memory = {**placement.from_flags(args), **({"images_at_once": args.batch} if args.batch > 1 else {})}
    namer = _namer(args, memory, load_namer)
    for row in rows:
        resolve_modes(row, modes, namer.modes)  # fail before hours are spent on another dataset
    options = {"modes": modes, "limit": args.limit, "alter": args.alter, "seed": args.seed, "batch": args.batch}
    options["max_bad_annotations"] = args.max_bad_annotations
    options["proposals"] = None if args.masks == GROUND_TRUTH else args.masks
    for row in rows:
        names = _names(args.vocabulary, row)
        generate_predictions(namer, row, part, parts, args.out_dir, **options, vocabulary=names, method=method)


@quick_loading()
def _namer(args: argparse.Namespace, memory: dict[str, Any], load_namer: Callable[..., Any] | None) -> Any:
    # Importing torch is slow, so torch is only imported after --help and invalid arguments have been handled.
    if args.num_threads:
        import torch

        torch.set_num_threads(args.num_threads)
    if load_namer is None:
        from osm.recognition.namer import load_namer as load

        load_namer = load
    device = _own_device(args.device) if args.part is None else args.device
    return load_namer(args.checkpoint, **config_options(args), device=device, **memory)


def _names(vocabulary: str | None, row: Dataset) -> Sequence[str | LabelClass] | None:
    """Return what is allowed: the dataset's classes, the names in a file, or None if any name is allowed."""
    if vocabulary is None:
        return None
    if vocabulary == SET_NAMES:
        return list(row.label_set.classes.values())
    from osm.recognition.vocabulary import read_names

    return read_names(vocabulary)


def _number_or_auto(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _part(args: argparse.Namespace) -> tuple[int, int]:
    """Return the part index and the number of parts.

    The arguments `auto auto` stand for torchrun's rank and world size.
    """
    if args.part is not None and args.parts is not None:
        check_part(args.part, args.parts)
        return args.part, args.parts
    if args.part is not None or args.parts is not None:
        words = ["auto" if word is None else str(word) for word in (args.part, args.parts)]
        raise OsmError(f"arguments `i` and `n` are '{' '.join(words)}': expected two numbers, or 'auto auto'")
    part, parts = _environment("RANK"), _environment("WORLD_SIZE")
    check_part(part, parts)
    return part, parts


def _environment(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isascii() or not text.isdigit():
        found = repr(text) if text else "not set"
        raise OsmError(
            f"arguments `i` and `n` are 'auto': the environment variable {name} is {found}; start the command with "
            "torchrun, or pass two numbers"
        )
    return int(text)


def _own_device(device: str) -> str:
    """Return the device of this process. Under torchrun, the device `auto` resolves to the GPU of the local rank."""
    if device != "auto" or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    number, count = _environment("LOCAL_RANK"), torch.cuda.device_count()
    if number >= count:
        raise OsmError(
            f"--device auto: no GPU is left for local rank {number}, because the number of available GPUs is {count}; "
            f"start torchrun with --nproc_per_node {count}, or select one --device for all processes"
        )
    return f"cuda:{number}"


def _files_parser() -> argparse.ArgumentParser:
    files = CommandParser(add_help=False, allow_abbrev=False)
    add_benchmark(files)
    add_datasets(files)
    return files


def generate_parser(table: DatasetTable | None = None) -> argparse.ArgumentParser:
    """Return the argument parser of `generate_pred.py`, with flags for each dataset (None = the built-in datasets)."""
    table = DatasetTable() if table is None else table
    parser = CommandParser(
        prog="generate_pred.py",
        parents=[_files_parser()],
        allow_abbrev=False,
        description="Name every ground-truth mask of the val sets and write <set>_pred_<i>_of_<n>.json.",
    )
    parser.add_argument(
        "part", metavar="i", type=_number_or_auto, help="index of the part, from 0 (auto: the rank under torchrun)"
    )
    parser.add_argument(
        "parts", metavar="n", type=_number_or_auto, help="number of parts (auto: the world size under torchrun)"
    )
    parser.add_argument("checkpoint", metavar="ckpt", help="checkpoint file")
    parser.add_argument("out_dir", help="folder of the predictions, or its URL on s3:// or gs://")
    parser.add_argument(
        "--sets", help=f"comma-separated, from {', '.join(table)}; default: all datasets whose files exist"
    )
    parser.add_argument(
        "--masks",
        default=GROUND_TRUTH,
        metavar=f"{GROUND_TRUTH}|FILE",
        help="masks to name: the ground truth of the dataset, or the masks in a JSON file in COCO's results format "
        "([{image_id or file_name, segmentation: {size, counts}}]), which are written to "
        "<set>_proposals_<i>_of_<n>.json and require exactly one dataset in --sets",
    )
    parser.add_argument(
        "--vocabulary",
        metavar=f"{SET_NAMES}|FILE",
        help="what to choose from: the classes of the dataset, or the names in a file",
    )
    parser.add_argument("--way", help=METHOD_HELP)
    parser.add_argument("--config", help="the model config for a .pt file that does not contain one")
    add_settings(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    placement.add_flags(parser)
    parser.add_argument("--batch", type=int, default=1, help="number of images that are named together [%(default)s]")
    parser.add_argument(
        "--modes",
        default=f"{OWN_MODE},{ANY_MODE}",
        help=f"comma-separated; {OWN_MODE}: the mode of the dataset [%(default)s]",
    )
    parser.add_argument("--limit", type=int, help="maximum number of images per dataset, from its start")
    parser.add_argument(
        "--alter",
        choices=ALTERATIONS,
        default="none",
        help="deliberately wrong inputs, to test that the model uses mask and image",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of --alter shuffle_masks")
    parser.add_argument(
        "--max_bad_annotations",
        type=float,
        default=MAX_BAD_ANNOTATIONS,
        help="maximum share of unusable annotations of a dataset [%(default)s; above 0, one is always allowed]",
    )
    parser.add_argument("--num_threads", type=int, help="number of CPU threads of torch")
    for row in table.values():
        form = form_class(row.form)
        group = parser.add_argument_group(f"paths of {row.name}")
        for field in form.needs:
            what = PATH_FIELDS.get(field) or f"folder of the {form.masks}"
            group.add_argument(f"--{row.name}_{field}", help=f"{what} [{getattr(row, field) or 'none'}]")
    return parser


def _rows_at_hand(args: argparse.Namespace, table: DatasetTable) -> list[Dataset]:
    """Return the datasets whose masks are named: those in --sets, or by default all datasets whose files exist."""
    asked = None if args.sets is None else [name.strip() for name in args.sets.split(",") if name.strip()]
    for name in asked or ():
        table.require(name, "--sets")
    if args.masks != GROUND_TRUTH and len(asked or ()) != 1:
        raise OsmError(
            f"--masks {args.masks}: a file of proposals belongs to a single dataset; select that dataset with --sets"
        )
    rows, notes, silent = [], [], set()
    for name in table if asked is None else dict.fromkeys(asked):
        row = _with_flags(args, table[name])
        missing = _missing_path(row, form_class(row.form), args.masks == GROUND_TRUTH)
        if missing is None:
            rows.append(row)
        else:
            notes.append(f"{name}: left out, {missing}")
            if asked is None and row.image_dir is None and row.json_file is None:  # nothing was configured for it
                silent.add(notes[-1])
    if not rows:
        raise OsmError("; ".join(["no dataset has its files", *notes]))
    for note in notes:
        if note not in silent:
            logger.info(note)
    return rows


def _with_flags(args: argparse.Namespace, row: Dataset) -> Dataset:
    given = {field: getattr(args, f"{row.name}_{field}") for field in form_class(row.form).needs}
    changes = {field: value for field, value in given.items() if value is not None}
    changes = {field: check_location(value, f"--{row.name}_{field}") for field, value in changes.items()}
    if "json_file" in changes and row.labels == row.json_file:
        changes["labels"] = changes["json_file"]
    return replace(row, **changes)


def _missing_path(row: Dataset, form: type[Form], with_masks: bool) -> str | None:
    for field in form.needs if with_masks else form.image_needs:
        path = getattr(row, field)
        if path is None:
            return f"no {field} given (--{row.name}_{field})"
        if is_remote(path):  # an error instead of a skipped dataset, because a user wrote the URL
            if field not in FOLDERS:
                localize(path, f"--{row.name}_{field}")
        elif not Path(path).exists():
            return f"{field} {path} does not exist (--{row.name}_{field})"
    return None
