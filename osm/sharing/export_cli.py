"""The commands `osm export` and `osm import`. This module does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.config import add_settings
from osm.errors import OsmError, run_command
from osm.terminal import console_command, echo
from osm.training.train_flags import MODEL_FLAGS, WIDTH_FLAGS, add_model_flags


def export_parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm export`."""
    out = CommandParser(
        prog="osm export",
        allow_abbrev=False,
        description="Write a trained model as a folder (config.json, model.safetensors) or as a published .pt file.",
    )
    out.add_argument(
        "source", type=Path, help="a run's folder (its newest checkpoint), a .pt file, or a folder such as `final`"
    )
    out.add_argument(
        "out", help="a name that ends in .pt for a published file, any other for a folder; or a URL on s3:// or gs://"
    )
    out.add_argument(
        "--with_optimizer", action="store_true", help="also write the optimizer state and progress, to resume training"
    )
    out.add_argument(
        "--format",
        choices=("osm", "hf"),
        default="osm",
        help="osm: files of this project; hf: a folder that also works with transformers' AutoModel, with a model card "
        "[%(default)s]",
    )
    out.add_argument("--push_to_hub", metavar="OWNER/NAME", help="with --format hf: also upload the folder to the hub")
    out.add_argument("--private", action="store_true", help="with --push_to_hub: create a private repository")
    out.add_argument("--half", action="store_true", help="write float16: half the size, values rounded to 11 bits")
    out.add_argument("--force", action="store_true", help="replace an older model at OUT")
    return out


def import_parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm import`."""
    out = CommandParser(
        prog="osm import",
        allow_abbrev=False,
        description="Write a .pt file of the published code, which has no model config, as a model that has one.",
    )
    out.add_argument("zoo", type=Path, metavar="ZOO.pt", help="the published file")
    out.add_argument("out", help="a folder, or a name that ends in .pt; or a URL on s3:// or gs://")
    out.add_argument("--config", default="osm", help="a config of the project, or a YAML file [%(default)s]")
    add_settings(out)
    add_model_flags(out)
    out.add_argument("--force", action="store_true", help="replace an older model at OUT")
    return out


@console_command
def export_main(argv: Sequence[str] | None = None) -> int:
    """Run `osm export` and return its exit code."""
    args = export_parser().parse_args(argv)

    def job() -> str:
        if args.format == "osm" and (args.push_to_hub or args.private):
            raise OsmError("--push_to_hub and --private need --format hf")
        if args.private and not args.push_to_hub:
            raise OsmError("--private has no effect without --push_to_hub")
        from osm.training.export import export

        if args.format == "osm":
            return export(args.source, args.out, args.with_optimizer, args.force, args.half)
        from osm.sharing.hf_export import export_hf

        if args.with_optimizer:
            raise OsmError("--with_optimizer cannot be combined with --format hf, which only holds a trained model")
        return export_hf(args.source, args.out, args.force, args.half, args.push_to_hub, args.private)

    return _run(job)


@console_command
def import_main(argv: Sequence[str] | None = None) -> int:
    """Run `osm import` and return its exit code."""
    args = import_parser().parse_args(argv)
    given = vars(args)
    overrides = {name: given[name] for name in MODEL_FLAGS if name != "base_model_name"}
    named = {flag: given[flag] for flag in ("config", *MODEL_FLAGS) if given[flag] is not None}
    base = " ".join(f"--{flag} {value}" for flag, value in named.items())

    def job() -> str:
        from osm.models.factory import base_config
        from osm.training.export import import_published

        config = base_config(args.base_model_name or args.config, args.config, args.settings, **overrides)
        widths = {flag: given[flag] for flag in WIDTH_FLAGS}
        return import_published(args.zoo, args.out, config, widths, base, args.force)

    return _run(job)


def _run(job: Callable[[], str]) -> int:
    return run_command(lambda: echo(job()), interrupted="interrupted")
