"""A tiny model and tiny sets to train on, for the tests of `train.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from processes import PATIENCE_S, free_port
from stream_sets import CATEGORIES, bands, instances, panoptic, rectangle, write_shard
from tiny import tiny_llm, tiny_model_section

from osm.models.bridges import BRIDGES
from osm.training.distributed import World
from osm.training.run_config import parse
from osm.training.tracking import read_log
from osm.training.train_cli import main
from osm.training.trainer import Trainer

TRAIN = Path(__file__).resolve().parents[2] / "train" / "train.py"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parents[1])}
ORDERS = [(1, 2, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (2, 1, 3), (1, 3, 2)]


class Workshop:
    """A folder with a model config, two sets of one's own (`pan`, `inst`) and their shards."""

    def __init__(self, root: Path) -> None:
        self.root = root
        decided = tiny_llm(root / "llm")  # the LLM of `tiny_model_section`, but one that can be sure of a word
        with torch.no_grad():
            decided.lm_head.weight.mul_(6)
        decided.save_pretrained(root / "llm")
        self.configs = {
            (variant, dropout): self._config(variant, dropout) for variant in BRIDGES.builtin for dropout in (0.0, 0.1)
        }
        labels = root / "categories.json"
        labels.write_text(json.dumps({"categories": CATEGORIES}))
        rows = {"pan": {"form": "coco_panoptic"}, "inst": {"form": "coco_instances"}}
        table = {"datasets": {name: {**row, "labels": labels.name} for name, row in rows.items()}}
        self.table = root / "sets.yaml"
        self.table.write_text(yaml.safe_dump(table, sort_keys=False))
        for shard in range(2):
            numbers = range(3 * shard, 3 * shard + 3)
            write_shard(
                root / f"pan/{shard:03d}.tar",
                {f"p{number}": panoptic(bands(64, 48, ORDERS[number])) for number in numbers},
            )
            write_shard(root / f"inst/{shard:03d}.tar", {f"i{number}": self._instances(number) for number in numbers})

    def _config(self, variant: str, dropout: float) -> Path:
        # The one with LoRA, too: what is trained then lies in two places, of which one is among the frozen.
        lora = {"rank": 2, "dropout": dropout} if variant == "flamingo" else {}
        section = tiny_model_section(self.root, variant=variant, lora=lora)
        if variant == "pooled":
            section["bridge"]["dropout"] = dropout
        else:
            sizes = section.pop("flamingo" if variant == "flamingo" else "qformer")
            section["bridge"] = {"kind": section.pop("variant"), **sizes, "dropout": dropout}
        path = self.root / f"{variant}_{dropout}.yaml"
        path.write_text(yaml.safe_dump({"model": section}))
        return path

    @staticmethod
    def _instances(number: int) -> dict[str, bytes]:
        annotations = [
            {"category_id": 2, "segmentation": rectangle(2, 2, 30, 30 + number)},
            {"category_id": 3, "segmentation": rectangle(32, 5, 60, 40)},
        ]
        return instances(64, 48, annotations)

    def arguments(
        self,
        run: str | Path,
        *more: str,
        sets: dict[str, tuple[int, int]] | None = None,
        dropout: float = 0.1,
        variant: str = "maskqformer",
    ) -> list[str]:
        """Flags of a run: `sets` are name -> (batch size, samples an epoch)."""
        flags = ["--config", str(self.configs[variant, dropout]), "--datasets", str(self.table), "--run_name", str(run)]
        for name, (batch, samples) in (sets or {"pan": (2, 6)}).items():
            flags += [f"--{name}_shards", f"{self.root}/{name}/{{000..001}}.tar"]
            flags += [f"--batch_size_{name}", str(batch), f"--train_num_samples_{name}", str(samples)]
        fixed = "--dataset_resampled --workers 0 --warmup_steps 0 --learning_rate 1e-3 --logging_steps 1 --device cpu"
        return [*flags, *fixed.split(), *more]

    def train(self, run: Path, *more: str, **options: Any) -> list[dict[str, Any]]:
        """Trains in this process; the records of the log."""
        assert main(self.arguments(run, *more, **options)) == 0
        return read_log(run)

    def trainer(self, run: Path, *more: str, **options: Any) -> Trainer:
        return Trainer(parse(self.arguments(run, *more, **options)), World(0, 1, torch.device("cpu")))


def launcher(processes: int, *more: str) -> tuple[str, ...]:
    """torchrun on this machine, at a port of its own."""
    fixed = f"-m torch.distributed.run --nnodes=1 --nproc_per_node={processes} --rdzv-backend=c10d"
    return (*fixed.split(), f"--rdzv-endpoint=127.0.0.1:{free_port()}", *more)


def start(
    arguments: list[str], launcher: tuple[str, ...] = (), script: Path = TRAIN, **environment: str
) -> subprocess.Popen[str]:
    """train.py, or a script around it, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT, **environment},
    )


def finish(process: subprocess.Popen[str], patience: float = PATIENCE_S) -> str:
    said, _ = process.communicate(timeout=patience)
    assert process.returncode == 0, said
    return said


def losses(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What must be equal from run to run: every loss, and the gradient's norm."""
    return [{k: v for k, v in record.items() if k.startswith(("loss", "grad"))} for record in records]
