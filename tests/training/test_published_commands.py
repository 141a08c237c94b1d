"""Both published training commands: they stand in the README as published, parse, and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import nine_sets
import pytest
import torch
from tiny import tiny_instructblip_folder
from tiny_run import TRAIN, finish, start

from osm.data.stream import batches_per_epoch
from osm.datasets.table import PUBLISHED_MODES, DatasetTable
from osm.training.run_config import parse
from osm.training.tracking import read_log

README = TRAIN.parents[1] / "README.md"
NINE = PUBLISHED_MODES[:-1]
SIX = ("coco", "lvis", "a847", "pc459", "ade20k", "cityscapes")


def commands() -> list[list[str]]:
    """The README's torchrun commands, as words."""
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("torchrun")]
    return [shlex.split(line.replace("$SAVE_PATH", "{save_path}")) for line in lines]


@pytest.mark.parametrize(("number", "sets"), [(0, SIX), (1, NINE)])
def test_they_parse(number: int, sets: tuple[str, ...]) -> None:
    words = commands()[number]
    assert len(commands()) == 2
    launcher, arguments = words[: words.index("train/train.py")], words[words.index("train/train.py") + 1 :]
    assert "--nproc_per_node=8" in launcher and "--master_port=9999" in launcher
    run = parse(arguments)
    training = run.training
    assert set(training.used_sets) == set(sets)
    for name, chosen in training.used_sets.items():
        assert batches_per_epoch(chosen.train_num_samples, chosen.batch_size, 8, training.workers) == 1564, name
        assert chosen.shards.startswith("{save_path}/")
    assert training.sample.mask2box_prob == (0.0, 0.2)[number]
    assert training.sample.part_in_use_whole_prob == 0.2
    assert training.sample.part_in_prepend_object_class_prob == 0.8
    assert (training.precision, training.lr_scheduler, training.num_epochs) == ("amp_bfloat16", "cosine", 10)
    assert (training.learning_rate, training.gradient_accumulation_steps) == (4e-5, 4)
    assert run.model.base_model_name == "Salesforce/instructblip-vicuna-7b"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "sets"), [(0, SIX), (1, NINE)])
def test_they_run(number: int, sets: tuple[str, ...], tmp_path: Path) -> None:
    """On two processes, with a tiny base model; paths, sizes and the number of processes are all that is changed."""
    tiny_instructblip_folder(tmp_path / "base")
    words = commands()[number]
    at = words.index("train/train.py")
    arguments = [word.replace("{save_path}", str(tmp_path)) for word in words[at + 1 :]]
    table = DatasetTable()
    for name in sets:
        flag = arguments.index(f"--{name}_shards") + 1
        match = re.fullmatch(r"(.*)/\{0+\.\.(\d+)\}\.tar", arguments[flag])
        assert match
        named = int(match[2]) + 1
        nine_sets.shards(Path(match[1]), table[name], named - 1)  # the last one named does not exist
        batch = max(1, int(arguments[arguments.index(f"--batch_size_{name}") + 1]) // 4)
        arguments[arguments.index(f"--batch_size_{name}") + 1] = str(batch)
        arguments[arguments.index(f"--train_num_samples_{name}") + 1] = str(16 * batch)  # 8 batches on 2 processes
    for flag, value in (("--workers", "1"), ("--num_epochs", "1"), ("--run_name", str(tmp_path / "run"))):
        arguments[arguments.index(flag) + 1] = value
    sizes = "--input_size 56 --sliding_window_size 28 --sliding_window_stride 28"
    base = ["--base_model_name", str(tmp_path / "base"), *sizes.split(), "--logging_steps", "1"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    said = finish(start([*arguments, *base], launcher, CUDA_VISIBLE_DEVICES=""))

    assert "2 process(es) on cpu" in said and f"sets {', '.join(sets)}" in said
    for name in sets:
        assert said.count(f"--{name}_shards: 1 of ") == 1
    log = read_log(tmp_path / "run")
    assert [record["step"] for record in log] == [1, 2]
    for record in log:
        assert {f"loss/{name}/any" for name in sets} <= set(record)
        assert record["skipped_steps"] == 0 and not record["skipped_samples"]
    state = torch.load(tmp_path / "run" / "checkpoint_0.pt", weights_only=True)["model_state_dict"]
    assert {f"mode_query.{mode}" for mode in PUBLISHED_MODES} <= set(state)
