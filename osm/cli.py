"""The `osm` command-line program, with subcommands such as `osm train` and `osm demo`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import osm
from osm.command_parser import called_as
from osm.errors import did_you_mean
from osm.quiet import quiet_command
from osm.terminal import JSON_FLAG, console_command, echo, message_logger

logger = message_logger(__name__)


@dataclass(frozen=True)
class Command:
    """A subcommand of `osm`.

    Running the subcommand calls `module.function(*arguments, argv)`, which returns the exit code.

    Attributes:
        what: a one-line description for the help text.
        module: the module that defines the functions.
        function: the name of the function to call.
        parser: the name of the function that returns the argument parser.
        arguments: the arguments that precede `argv` in the call, and that the parser's function gets.
    """

    what: str
    module: str
    function: str = "main"
    parser: str = "parser"
    arguments: tuple[str, ...] = ()

    def run(self, argv: Sequence[str]) -> int:
        """Run the subcommand and return its exit code."""
        function = getattr(importlib.import_module(self.module), self.function)
        return function(*self.arguments, argv)

    def build_parser(self) -> argparse.ArgumentParser:
        """Return the subcommand's argument parser, without flags that depend on other arguments."""
        found: argparse.ArgumentParser = getattr(importlib.import_module(self.module), self.parser)(*self.arguments)
        return found


COMMANDS = {
    "quickstart": Command("trains and evaluates a small model on drawn scenes, in minutes", "osm.quickstart"),
    "scenes": Command("draws synthetic scenes with masks and names", "osm.synthetic.scenes.write"),
    "collages": Command("makes a dataset of cut-out objects pasted on photos", "osm.synthetic.collages"),
    "prepare": Command("converts a dataset to shards", "osm.prepare.convert", "prepare"),
    "prepare_original": Command(
        "converts the original releases of four datasets to the files that `prepare` reads",
        "osm.prepare.originals.originals_cli",
        "prepare",
    ),
    "prepare_panoptic": Command(
        "converts a dataset in COCO panoptic format to shards", "osm.prepare.convert", arguments=("coco_panoptic",)
    ),
    "prepare_instances": Command(
        "converts a dataset in COCO instance format to shards", "osm.prepare.convert", arguments=("coco_instances",)
    ),
    "train": Command("trains a bridge (train/train.py)", "osm.training.train_cli", parser="train_parser"),
    "plan": Command(
        "says what memory, time and disk space a run needs, before it is paid for", "osm.planning.plan_cli"
    ),
    "refit_names": Command(
        "trains the classifier of a model's known names again, without the LLM", "osm.training.names_refit_cli"
    ),
    "schema": Command("prints the JSON schema of the config files", "osm.training.schema_cli"),
    "finetune": Command("adapts a trained model to your photos, in one command", "osm.finetune"),
    "export": Command(
        "writes a trained model as a folder, or as a .pt in the published format",
        "osm.sharing.export_cli",
        "export_main",
        "export_parser",
    ),
    "import": Command(
        "converts a published .pt to a folder with its config",
        "osm.sharing.export_cli",
        "import_main",
        "import_parser",
    ),
    "sample": Command("names things in photos that come with the package", "osm.labeling.sample_photos"),
    "name": Command("names masks, boxes or points of an image, or all segments in it", "osm.labeling.name_cli"),
    "folder": Command(
        "finds and names all segments in the images of a folder (demo_with_sam.py)", "osm.labeling.folder_cli"
    ),
    "label": Command("names masks from annotation tools, and writes the names for them", "osm.labeling.label_cli"),
    "review": Command("writes a page for checking the names of osm label", "osm.labeling.review_cli"),
    "demo": Command(
        "serves a page that names what is clicked in an image", "osm.serving.serve_cli", "demo_main", "demo_parser"
    ),
    "serve": Command("serves models over HTTP, for programs and annotation tools", "osm.serving.serve_cli"),
    "generate": Command(
        "names the masks of validation sets (test/generate_pred.py)",
        "osm.evaluation.predict.generate_cli",
        "generate_main",
        "generate_parser",
    ),
    "evaluate": Command(
        "scores predictions (test/evaluate_pred.py)", "osm.evaluation.evaluate_cli", "evaluate_main", "evaluate_parser"
    ),
    "bench": Command("names and scores the masks of another project's benchmark", "osm.evaluation.bench.bench_cli"),
    "calibrate": Command(
        "calibrates a model's probabilities on predictions of new images", "osm.evaluation.calibrate_cli"
    ),
    "reproduce": Command(
        "runs the published benchmark with the published weights and compares the figures", "osm.evaluation.reproduce"
    ),
    "compare": Command(
        "compares two folders of predictions, mask by mask",
        "osm.evaluation.report.report_cli",
        "compare_main",
        "compare_parser",
    ),
    "evaluate_proposals": Command(
        "computes PQ, mask AP and mIoU of named proposals (test/evaluate_proposals.py)",
        "osm.evaluation.scoring.proposals_cli",
    ),
    "report": Command(
        "writes an HTML page of predictions and metrics",
        "osm.evaluation.report.report_cli",
        "report_main",
        "report_parser",
    ),
    "picture": Command(
        "draws predictions on images", "osm.evaluation.report.report_cli", "picture_main", "picture_parser"
    ),
    "completion": Command("prints a script for completion by a shell's Tab key", "osm.completion"),
    "fetch": Command("installs the frozen parts of an included model", "osm.fetch"),
    "list": Command(
        "lists towers, LLMs, bridges, segmenters, metrics, forms, datasets or configs",
        "osm.listing",
        parser="list_parser",
    ),
}


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code. The subcommand's module is imported lazily."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [JSON_FLAG]:  # every command accepts this flag itself
        arguments = [*arguments[1:], JSON_FLAG]
    if arguments in (["--version"], ["-V"]):
        echo(f"osm {osm.__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        echo(*usage().split("\n"))
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        meant = did_you_mean(arguments[0], COMMANDS)
        logger.error(f"osm {arguments[0]}: no such command; the commands are {', '.join(COMMANDS)}{meant}")
        return 2
    with called_as(f"osm {arguments[0]}"):
        return command.run(arguments[1:])


def usage() -> str:
    """Return the help text for `osm`, which lists all subcommands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: osm COMMAND ... (osm COMMAND --help)", "", *lines])
