"""The command `osm plan`: memory, hours and disk space of a run, without weights and without GPUs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from osm.datasets.table import DatasetTable
from osm.errors import OsmError, run_command
from osm.planning.gpus import GPUS, gpu_of
from osm.quiet import quiet_command, quiet_libraries
from osm.startup import quick_loading
from osm.terminal import console_command, echo, message_logger
from osm.training.train_flags import datasets_of, set_flags, train_parser

logger = message_logger(__name__)

_PLAN_FLAGS = (
    *("config_name", "gpus", "nodes", "gpu", "gpu_memory", "mfu", "hours", "sample_ms", "sample_kb"),
    *("masks", "batch", "modes", "no_search", "json"),
)
_ASSUMED = {"coco": {"batch_size": 8, "train_num_samples": 100_000}}
"""The training mix of a plan whose flags and config name no dataset."""


def parser(table: DatasetTable | None = None) -> argparse.ArgumentParser:
    """Return the parser of `osm plan`: the flags of `osm train`, and those that describe the machines."""
    out = train_parser(table)
    out.prog = "osm plan"
    out.usage = "%(prog)s CONFIG --gpus N --gpu_memory GIB [--nodes N] [flags of osm train]"
    out.description = (
        "Says what a training run and the naming of masks need: memory by part, hours, loader cores and disk space. "
        "Nothing is downloaded, and no GPU is used. All flags of osm train are accepted."
    )
    group = out.add_argument_group("plan")
    group.add_argument("config_name", nargs="?", metavar="CONFIG", help="a config of the project or a YAML file [osm]")
    for flag, kind, default, text in (
        ("gpus", int, 1, "GPUs of each node, with one process each"),
        ("nodes", int, 1, "number of nodes"),
        ("gpu", str, "A100", f"the kind of GPU: {', '.join(GPUS)}"),
        ("gpu_memory", float, None, "memory of a GPU in GiB, if it differs from that of --gpu"),
        ("mfu", float, 0.35, "the share of the peak FLOP/s that is assumed to be reached"),
        ("hours", float, None, "hours of a known run: also print the MFU that they imply"),
        (
            "sample_ms",
            float,
            10.0,
            "CPU milliseconds of a loader worker for a sample (benchmarks/loader.py measures it)",
        ),
        ("sample_kb", float, 200.0, "kilobytes of an image and its annotations in shards that are not on this machine"),
        ("masks", int, 10, "masks of an image, for the plan of naming"),
        ("batch", int, 1, "images that are named together (--batch of generate_pred.py)"),
        ("modes", int, 2, "modes in which each mask is named"),
    ):
        shown = "none" if default is None else f"{default:g}" if isinstance(default, float) else default
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(f"--{flag}", type=kind, default=default, metavar=metavar, help=f"{text} [{shown}]")
    group.add_argument(
        "--no_search", action="store_true", default=False, help="do not look for flags that make the run fit [off]"
    )
    group.add_argument("--json", action="store_true", default=False, help="print one JSON document [off]")
    return out


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm plan` and return the exit code: 0, or 2 for a user error."""
    return run_command(lambda: echo(*_lines(argv)), interrupted="interrupted")


def _lines(argv: Sequence[str] | None) -> list[str]:
    table = datasets_of(argv)
    args = vars(parser(table).parse_args(argv))
    asked = {name: args.pop(name, None) for name in _PLAN_FLAGS}
    _take_config(args, asked["config_name"])
    gpu = gpu_of(asked["gpu"], asked["gpu_memory"], args.get("peak_tflops", 0.0))
    if asked["hours"] is not None and not asked["hours"] > 0:
        raise OsmError(f"--hours {asked['hours']:g} must be greater than 0")
    with quick_loading(), quiet_libraries():
        from osm.planning.naming_plan import plan_naming
        from osm.planning.plan_text import naming_lines, naming_record, training_lines, training_record
        from osm.planning.training_plan import Cluster, plan_training
        from osm.training.run_config import resolve

    cluster = Cluster(gpu, asked["gpus"], asked["nodes"], asked["mfu"], asked["sample_ms"], asked["sample_kb"])
    run = resolve(_with_datasets(args, table), table)
    with quiet_libraries():
        training = plan_training(run, cluster, search=not asked["no_search"])
        numbers = (asked["batch"], asked["masks"], asked["modes"])
        naming = plan_naming(run.model, gpu, cluster.mfu, *numbers) if training.request.gpu else None
    if asked["json"]:
        document = {"training": training_record(training, asked["hours"])}
        document |= {} if naming is None else {"naming": naming_record(naming)}
        return json.dumps(document, indent=1).split("\n")
    return [*training_lines(training, asked["hours"]), *(["", *naming_lines(naming)] if naming else [])]


def _take_config(args: dict[str, Any], name: str | None) -> None:
    """Move the positional CONFIG to the flag `--config`."""
    if name is None:
        return
    if args.get("config", name) != name:
        raise OsmError(f"{name} and --config {args['config']} name two configs; give one of them")
    args["config"] = name


def _with_datasets(args: dict[str, Any], table: DatasetTable) -> dict[str, Any]:
    """Fill in what a plan does not need: the locations of shards, and a training mix if none is given."""
    from osm.config import load_yaml

    section = load_yaml(args.get("config", "osm"), args.get("settings", [])).get("training", {})
    sets = section.get("sets") or {}
    flags = {name: set_flags(name) for name in table}
    named = [name for name in table if any(flag in args for flag in flags[name]) or name in sets]
    found = dict(args)
    if not named:
        for name, values in _ASSUMED.items():
            found |= {flag: values[field] for flag, field in flags[name].items() if field in values}
            words = ", ".join(f"{field} {value}" for field, value in values.items())
            logger.info(f"no dataset is given, so the plan is for {name}: {words}")
        named = list(_ASSUMED)
    for name in named:
        given = isinstance(sets.get(name), dict) and sets[name].get("shards")
        if f"{name}_shards" not in found and not given:
            found[f"{name}_shards"] = f"{name}/000000000.tar"
    return found
