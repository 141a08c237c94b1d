"""Golden checkpoints: a tiny run's files, how training goes on from them, and what the trained model says.

`checkpoints/` holds the run's inputs (config, LLM, shards) and its files: `checkpoint_0.pt` after the first epoch, a
sharded checkpoint in the middle of the second, the folder `final`, and `published.pt` in the layout of the published
weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from stream_sets import CATEGORIES, bands, panoptic, write_shard
from tiny import tiny_llm, tiny_model_section

import osm
from osm.training.tracking import read_log
from osm.training.train_cli import main as train

HERE = Path(__file__).resolve().parent / "checkpoints"
BANDS = [(1, 2, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (2, 1, 3), (1, 3, 2)]
_FLAGS = (
    "--config model.yaml --datasets sets.yaml --pan_shards pan/{000..001}.tar --batch_size_pan 2 "
    "--train_num_samples_pan 16 --workers 0 --warmup_steps 2 --learning_rate 1e-3 --logging_steps 1 --device cpu "
    "--num_epochs 2 --gradient_accumulation_steps 2 --shuffle_buffer 3 --checkpoint_every_steps 2 --keep_checkpoints 9"
)
FLAGS = _FLAGS.split()
FILES = {
    "checkpoint_0.pt": "run/checkpoint_0.pt",
    "step_00000006": "run/checkpoints/step_00000006",
    "final": "run/final",
}


def write_checkpoints(folder: Path) -> None:
    """Trains the run and stores its files (once; later code has to read these very files)."""
    llm = tiny_llm(folder / "golden_llm")
    with torch.no_grad():
        llm.lm_head.weight.mul_(6)  # one that can be sure of a word
    llm.save_pretrained(folder / "golden_llm")
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": _section(folder)}))
    (folder / "categories.json").write_text(json.dumps({"categories": CATEGORIES}))
    rows = {"pan": {"form": "coco_panoptic", "labels": "categories.json"}}
    (folder / "sets.yaml").write_text(yaml.safe_dump({"datasets": rows}))
    for shard in range(2):
        numbers = range(4 * shard, 4 * shard + 4)
        samples = {f"p{number}": panoptic(bands(64, 48, BANDS[number % 6])) for number in numbers}
        write_shard(folder / f"pan/{shard:03d}.tar", samples)
    with _inside(folder):
        assert train([*FLAGS, "--run_name", "run"]) == 0
        document = torch.load("run/checkpoint_0.pt", weights_only=True)
        torch.save({"model_state_dict": document["model_state_dict"]}, "run/published.pt")
        # A published file does not tell its config.
        Path("published.yaml").write_text(yaml.safe_dump({"model": document["config"]["model"]}))
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    kept = [
        "golden_llm",
        "model.yaml",
        "published.yaml",
        "categories.json",
        "sets.yaml",
        "pan",
        "run/published.pt",
        *FILES.values(),
    ]
    for name in kept:
        source, target = folder / name, HERE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def _section(folder: Path) -> dict[str, Any]:
    section = tiny_model_section(folder)
    shutil.rmtree(folder / "llm", ignore_errors=True)
    return {**section, "llm": {"name": "golden_llm"}, "qformer": {**section["qformer"], "dropout": 0.1}}


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Makes `folder` the working folder, and the place where weights are looked for."""
    before, weights = Path.cwd(), os.environ.get("OSM_WEIGHTS")
    os.chdir(folder)
    os.environ["OSM_WEIGHTS"] = "."
    try:
        yield
    finally:
        os.chdir(before)
        if weights is None:
            del os.environ["OSM_WEIGHTS"]
        else:
            os.environ["OSM_WEIGHTS"] = weights


def record_checkpoints(folder: Path) -> dict[str, Any]:
    """Returns the losses after resuming from each stored checkpoint, and the names that each model file gives."""
    work = folder / "work"
    shutil.copytree(HERE, work)
    found: dict[str, Any] = {"resumed": {}, "names": {}}
    with _inside(work):
        for name in ("checkpoint_0.pt", "step_00000006"):
            run = f"from_{name}"
            assert train([*FLAGS, "--run_name", run, "--resume_from_checkpoint", FILES[name]]) == 0
            found["resumed"][name] = [
                {key: record[key] for key in ("step", "epoch", "loss", "grad_norm", "names", "learning_rate")}
                for record in read_log(Path(run))
            ]
        for name, path in {**FILES, "published.pt": "run/published.pt"}.items():
            if name.startswith("step_"):
                continue
            model, processor, _ = osm.load_model(path, "published.yaml" if name == "published.pt" else None)
            found["names"][name] = _names(osm.Recognizer(model, processor))
    return found


def _names(recognizer: osm.Recognizer) -> list[dict[str, Any]]:
    categories = bands(64, 48, (2, 3, 1))
    colours = np.array([(0, 0, 0), (40, 40, 250), (250, 40, 40), (40, 250, 40)], np.uint8)
    recognizer.set_image(colours[categories])
    masks = [categories == value for value in (1, 2, 3)]
    return [
        {"mode": each.mode, "text": each.text, "prob": each.prob, "token_probs": list(each.token_probs)}
        for answers in recognizer.name(masks, boxes=[[3, 4, 50, 40]], modes=["any", "pan"])
        for each in answers
    ]
