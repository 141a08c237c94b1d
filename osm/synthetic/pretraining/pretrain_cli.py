"""The command `scripts/pretrain_nano.py`, which pre-trains osm-nano's tower and LLM.

The command writes the weights and a model card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.files import read_json, write_atomically
from osm.models.model_config import load_model_config
from osm.shipped import shipped_folder
from osm.synthetic.pretraining.nano_llm import OTHER_ADJECTIVES, LlmTraining, other_nouns, pretrain_llm
from osm.synthetic.pretraining.nano_tower import TowerTraining, pretrain_tower
from osm.synthetic.scenes.scene_names import ATTRIBUTES, STUFF, THINGS, held_out_pairs
from osm.terminal import console_command, echo

PARTS = ("llm", "tower")
FACTS = "pretraining.json"
_CARD = """\
# osm-nano: the frozen parts

A tower and an LLM for `configs/osm_nano.yaml`, small enough to be included in the package. They were trained from
random weights on images and texts that this project generates, with

```bash
python3 scripts/pretrain_nano.py --work runs/nano
```

in {minutes} minutes ({machine}; torch {torch}, timm {timm}, transformers {transformers}). Licence: Apache-2.0, like
the project. The bridge is not included: `osm quickstart` trains it from random weights.

The purpose of osm-nano is to demonstrate and test the whole system on drawn scenes. It was not trained on photos.

## Tower

`resnet18` of timm with other sizes, {tower_parameters:,} parameters, feature maps at strides 8 and 16, windows of 128
pixels.

**Supervised**, on {scenes:,} drawn scenes of {things} things, {stuff} kinds of stuff and {attributes} attributes, for
{epochs} epochs (scaled, cropped, flipped). Two linear heads on the tokens that the bridge reads were trained to
classify the thing (or stuff) and, for things, the attribute. They classified every token, and the mean token of every
mask, and were discarded afterwards. The tower was therefore trained with labels of things and of attributes, but
never with a name of both, and no training scene shows one of the {held_out} held-out attribute-thing pairs. On 200
scenes of another seed, the accuracy over masks is {kind:.1%} (thing or stuff) and {attribute:.1%} (attribute).

## LLM

A Llama of {llm_parameters:,} parameters with its own byte-level BPE, trained for {steps} steps of {batch} texts. A
text is one of the project's 38 questions and a name. Before it, there are vectors of the name's words, blended,
blurred and unordered, as the bridge would place them. Two thirds of the names are an adjective and a noun, and the
rest is a noun. The words are the words of the scenes and {others} others, so that the LLM learns to read the vectors
instead of memorising names. The held-out pairs never occurred, but each of their words occurred with most other
words. Given the words as vectors, the LLM generates the right name for {seen:.1%} of 200 trained pairs and
{unseen:.1%} of the {held_out} held-out pairs.

## Held-out pairs

These pairs were used in no training stage (`osm.synthetic.scenes.scene_names.held_out_pairs`, seed 0):

{pairs}
"""


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `scripts/pretrain_nano.py` and return the exit code."""
    parser = CommandParser(
        allow_abbrev=False,
        description="Pre-trains osm-nano's tower and LLM. After an interruption, the same command resumes.",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of drawn scenes and checkpoints (2.5 GB)")
    parser.add_argument(
        "--output", type=Path, default=shipped_folder() / "osm_nano", help="folder of the weights [%(default)s]"
    )
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="what is trained [%(default)s]")
    parser.add_argument("--scenes", type=int, default=TowerTraining.scenes, help="number of scenes [%(default)s]")
    parser.add_argument("--epochs", type=int, default=TowerTraining.epochs, help="epochs of the tower [%(default)s]")
    parser.add_argument(
        "--llm_steps", type=int, default=LlmTraining.steps, help="training steps of the LLM [%(default)s]"
    )
    parser.add_argument("--threads", type=int, default=TowerTraining.threads, help="torch threads [%(default)s]")
    args = parser.parse_args(argv)
    return run_command(_pretrain, args, interrupted="interrupted: the same command resumes from the last checkpoint")


def _pretrain(args: argparse.Namespace) -> None:
    for flag in ("scenes", "epochs", "llm_steps", "threads"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    for flag in ("work", "output"):
        try:
            getattr(args, flag).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = f"--{flag} {getattr(args, flag)}"
            raise OsmError(f"{where}: {error.strerror}; expected a writable folder") from None
    if args.part in ("llm", "all"):
        _write_llm(replace(LlmTraining(), steps=args.llm_steps, threads=args.threads), args.work, args.output)
    if args.part in ("tower", "all"):
        options = {"scenes": args.scenes, "epochs": args.epochs, "threads": args.threads}
        _write_tower(replace(TowerTraining(), **options), args.work, args.output)
    facts = read_json(args.output / FACTS, "facts")[0]
    write_atomically(args.output / "MODEL_CARD.md", [model_card(facts)])
    echo(args.output)


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
    """Replace a folder of older weights with a complete folder of new weights."""
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)


def _half(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def _note(output: Path, part: str, facts: Mapping[str, Any], seconds: int) -> None:
    """Add details of the tower or the LLM to the JSON file from which the model card is generated."""
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


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the model card as Markdown, or a short notice if the tower or the LLM has not been pre-trained yet."""
    tower, llm, scenes = facts.get("tower"), facts.get("llm"), facts["scenes"]
    if tower is None or llm is None:
        return f"# osm-nano: unfinished, {'the tower' if tower is None else 'the LLM'} is not pre-trained yet\n"
    return _CARD.format(
        minutes=round((tower["seconds"] + llm["seconds"]) / 60),
        machine=facts["machine"],
        **facts["versions"],
        tower_parameters=tower["parameters"],
        scenes=tower["training"]["scenes"],
        epochs=tower["training"]["epochs"],
        things=scenes["things"],
        stuff=scenes["stuff"],
        attributes=scenes["attributes"],
        held_out=len(scenes["held_out_pairs"]),
        **tower["accuracy"],
        llm_parameters=llm["parameters"],
        steps=llm["training"]["steps"],
        batch=llm["training"]["batch_size"],
        others=len(OTHER_ADJECTIVES) + len(other_nouns()),
        seen=llm["accuracy"]["seen pairs"],
        unseen=llm["accuracy"]["held-out pairs"],
        pairs=textwrap.fill(", ".join(scenes["held_out_pairs"]), 120),
    )
