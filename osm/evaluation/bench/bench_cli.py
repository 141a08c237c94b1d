"""The command `osm bench`, which runs a benchmark of another project and shows what others published."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.errors import run_command
from osm.evaluation.bench import BENCHES
from osm.quiet import quiet_command
from osm.recognition.flags import check_modes, config_options
from osm.terminal import console_command, echo

_INTERRUPTED = "interrupted: the same command continues with the masks that are not named yet"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm bench`."""
    out = CommandParser(
        prog="osm bench",
        allow_abbrev=False,
        description="Name the masks of a benchmark of another project, score the names by its rules, and show the "
        "scores beside the published ones. A killed run continues.",
    )
    out.add_argument("name", metavar="NAME", help=f"the benchmark: {', '.join(BENCHES.names())}")
    out.add_argument("checkpoint", help="the model: a folder, a .pt file, a hub id, or an included model")
    out.add_argument("out", type=Path, help="folder of the names and of scores.json")
    out.add_argument(
        "--data", type=Path, required=True, help="folder of the benchmark's files, or the file of its masks"
    )
    out.add_argument("--image_dir", help="folder of the images [the benchmark's usual one]")
    out.add_argument("--config", help="the model config of .pt files that do not have their own")
    out.add_argument(
        "--set", action="append", dest="settings", metavar="PATH=VALUE", help="a value that overrides the config"
    )
    out.add_argument("--mode", default="any", help="mode in which the model answers [%(default)s]")
    out.add_argument("--max_new_tokens", type=int, default=16, help="maximum number of tokens per name [%(default)s]")
    out.add_argument(
        "--processes", type=int, default=1, help="processes that name, each with its own model [%(default)s]"
    )
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    return out


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm bench` and return the exit code."""
    return run_command(_run, parser().parse_args(argv), interrupted=_INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    from osm.evaluation.bench.benchmark import as_text, table
    from osm.files import write_output
    from osm.labeling.label_options import LabelOptions

    bench = BENCHES.get(args.name)()
    check_modes(args.checkpoint, [args.mode])
    options = LabelOptions(
        images="",
        out=args.out,
        checkpoint=args.checkpoint,
        model_options=config_options(args),
        device=args.device,
        mode=args.mode,
        max_new_tokens=args.max_new_tokens,
        processes=args.processes,
    )
    result = bench.run(args.data, args.image_dir, options)
    write_output(args.out / "scores.json", "out", [as_text(result)])
    echo(*table(bench, result))
    for reason, count in sorted(result.unnamed.items()):
        echo(f"{count} masks without a name, scored as an empty one: {reason}")
    return 0
