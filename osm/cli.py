"""The command `osm`: what the scripts do, under one name, wherever the package is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import osm
from osm.quiet import quiet_command
from osm.terminal import JSON_FLAG, console_command, echo, message_logger

logger = message_logger(__name__)


@dataclass(frozen=True)
class Command:
    """A function `module.function(*arguments, argv)` that returns the exit code, and what it is for."""

    what: str
    module: str
    function: str = "main"
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "quickstart": Command("the whole system in minutes, on drawn scenes", "osm.quickstart"),
    "scenes": Command("draws scenes with masks and names", "osm.synthetic.scenes.write"),
    "collages": Command("a set made of cut-outs pasted on photos", "osm.synthetic.collages"),
    "prepare": Command("shards of any set of the table, or of your own", "osm.prepare.convert", "prepare"),
    "prepare_original": Command(
        "what `prepare` reads, from four sets' original releases", "osm.prepare.originals.originals_cli", "prepare"
    ),
    "prepare_panoptic": Command(
        "shards of a set in COCO-panoptic form", "osm.prepare.convert", arguments=("coco_panoptic",)
    ),
    "prepare_instances": Command(
        "shards of a set in COCO-instances form", "osm.prepare.convert", arguments=("coco_instances",)
    ),
    "train": Command("trains a bridge (train/train.py)", "osm.training.train_cli"),
    "schema": Command("the JSON schema of the config files", "osm.training.schema"),
    "export": Command("a trained model as a folder, or as a published .pt", "osm.training.export", "export_main"),
    "import": Command("a published .pt as a folder with its config", "osm.training.export", "import_main"),
    "name": Command("names masks, boxes or points of a picture, or all in it", "osm.labeling.name_cli"),
    "folder": Command("finds and names all in the pictures of a folder (demo_with_sam.py)", "osm.labeling.folder_cli"),
    "demo": Command("a page in the browser: click, and read what it is", "osm.serving.web"),
    "generate": Command(
        "names the masks of val sets (test/generate_pred.py)", "osm.evaluation.predict.generate_cli", "generate_main"
    ),
    "evaluate": Command("scores predictions (test/evaluate_pred.py)", "osm.evaluation.evaluate_cli", "evaluate_main"),
    "reproduce": Command(
        "the published benchmark with the published weights, and its figures beside", "osm.evaluation.reproduce"
    ),
    "compare": Command("two folders of predictions, mask by mask", "osm.evaluation.report.report_cli", "compare_main"),
    "evaluate_proposals": Command(
        "PQ, mask AP and mIoU of named proposals (test/evaluate_proposals.py)", "osm.evaluation.scoring.proposals_cli"
    ),
    "report": Command("an HTML page of predictions and scores", "osm.evaluation.report.report_cli", "report_main"),
    "picture": Command("a picture of predictions", "osm.evaluation.report.report_cli", "picture_main"),
}


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. A command's modules are loaded when it is called."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [JSON_FLAG]:  # it is also a flag of every command
        arguments = [*arguments[1:], JSON_FLAG]
    if arguments in (["--version"], ["-V"]):
        echo(f"osm {osm.__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        echo(*usage().split("\n"))
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        logger.error(f"osm {arguments[0]}: no such command; they are {', '.join(COMMANDS)}")
        return 2
    function = getattr(importlib.import_module(command.module), command.function)
    return function(*command.arguments, arguments[1:])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: osm COMMAND ... (osm COMMAND --help)", "", *lines])
