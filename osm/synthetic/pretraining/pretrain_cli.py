"""The command `scripts/pretrain_nano.py`: pre-trains osm-nano's frozen parts and writes them into the package."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from osm.errors import OsmError, exit_code
from osm.files import read_json, write_atomically
from osm.models.model_config import load_model_config
from osm.models.weights import shipped_folder
from osm.synthetic.pretraining.card import model_card
from osm.synthetic.pretraining.llm import LlmTraining, pretrain_llm
from osm.synthetic.pretraining.tower import TowerTraining, pretrain_tower
from osm.synthetic.scenes.words import ATTRIBUTES, STUFF, THINGS, held_out_pairs
from osm.terminal import CommandParser, console_command, echo, message_logger

logger = message_logger(__name__)

PARTS = ("llm", "tower")
FACTS = "pretraining.json"


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = CommandParser(
        allow_abbrev=False, description="Pre-trains osm-nano's tower and LLM. Interrupted, the same command resumes."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of drawn scenes and checkpoints (2.5 GB)")
    parser.add_argument("--output", type=Path, default=shipped_folder() / "osm_nano", help="[%(default)s]")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="[%(default)s]")
    parser.add_argument("--scenes", type=int, default=TowerTraining.scenes, help="[%(default)s]")
    parser.add_argument("--epochs", type=int, default=TowerTraining.epochs, help="of the tower [%(default)s]")
    parser.add_argument("--llm_steps", type=int, default=LlmTraining.steps, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=TowerTraining.threads, help="[%(default)s]")
    args = parser.parse_args(argv)
    try:
        for flag in ("scenes", "epochs", "llm_steps", "threads"):
            if getattr(args, flag) < 1:
                raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
        for flag in ("work", "output"):
            try:
                getattr(args, flag).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                where = f"--{flag} {getattr(args, flag)}"
                raise OsmError(f"{where}: {error.strerror}; expected a folder that can be written") from None
        if args.part in ("llm", "all"):
            _write_llm(replace(LlmTraining(), steps=args.llm_steps, threads=args.threads), args.work, args.output)
        if args.part in ("tower", "all"):
            options = {"scenes": args.scenes, "epochs": args.epochs, "threads": args.threads}
            _write_tower(replace(TowerTraining(), **options), args.work, args.output)
        facts = read_json(args.output / FACTS, "facts")[0]
        write_atomically(args.output / "MODEL_CARD.md", [model_card(facts)])
    except OsmError as error:
        logger.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        logger.info("interrupted: the same command resumes from the last checkpoint")
        return 130
    echo(args.output)
    return 0


def _write_llm(config: LlmTraining, work: Path, output: Path) -> None:
    result = pretrain_llm(config, work)
    folder = _fresh(output / "llm.tmp")
    llm = result["llm"].half()
    llm.save_pretrained(folder)
    result["tokenizer"].save_pretrained(folder)
    _put_in_place(folder, output / "llm")
    facts = {"parameters": sum(p.numel() for p in llm.parameters()), "accuracy": result["accuracy"]}
    _note(output, "llm", {**facts, "training": asdict(config)}, result["seconds"])


def _write_tower(config: TowerTraining, work: Path, output: Path) -> None:
    result = pretrain_tower(load_model_config("osm_nano"), config, work)
    folder = _fresh(output / "tower.tmp")
    state = {name: _half(tensor) for name, tensor in result["state_dict"].items()}
    save_file(state, folder / "model.safetensors")
    _put_in_place(folder, output / "tower")
    facts = {"parameters": sum(t.numel() for t in state.values()), "accuracy": result["accuracy"]}
    _note(output, "tower", {**facts, "training": asdict(config)}, result["seconds"])


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _put_in_place(folder: Path, target: Path) -> None:
    """The older weights go when the new ones are whole."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)


def _half(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _note(output: Path, part: str, facts: Mapping[str, Any], seconds: int) -> None:
    """Adds a part's facts to those that the model card is made of."""
    path = output / FACTS
    document = read_json(path, "facts")[0] if path.is_file() else {}
    document[part] = {**facts, "seconds": seconds}
    document["scenes"] = {
        "things": len(THINGS),
        "attributes": len(ATTRIBUTES),
        "stuff": len(STUFF),
        "held_out_pairs": sorted(map(str, held_out_pairs())),
    }
    document["versions"] = {name: metadata.version(name) for name in ("torch", "timm", "transformers", "pillow")}
    document["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU"
    write_atomically(path, [json.dumps(document, indent=1) + "\n"])
