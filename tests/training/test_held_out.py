"""Evaluation while training: on samples that are never trained on, and whose names greedy search would say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_sets import bands, panoptic, write_shard
from tiny_run import Workshop, finish, launcher, start
from torch.nn.utils.rnn import pad_sequence

import osm
from osm.data.shard_index import is_held_out
from osm.models.bridges.bridge import Condition, Instruction
from osm.models.masks import context_mask
from osm.training.held_out import HeldOut, best_so_far
from osm.training.train_cli import main

KEYS = [f"s{number:02d}" for number in range(60)]
SHARE = 0.25
FLAGS = ("--held_out_share", str(SHARE), "--eval_every_steps", "2", "--eval_samples", "8")


def many(folder: Path) -> list[str]:
    orders = [(1, 2, 3), (2, 3, 1), (3, 1, 2)]
    for shard in range(2):
        keys = KEYS[30 * shard : 30 * shard + 30]
        samples = {key: panoptic(bands(64, 48, orders[n % 3])) for n, key in enumerate(keys)}
        write_shard(folder / f"{shard:03d}.tar", samples)
    return ["--pan_shards", f"{folder}/{{000..001}}.tar"]


def evaluations(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "eval/loss" in record]


@pytest.mark.parametrize("resampled", [True, False])
def test_what_is_held_out_is_never_trained_on(workshop: Workshop, tmp_path: Path, resampled: bool) -> None:
    held_out = {key for key in KEYS if is_held_out(key, SHARE)}
    assert 8 < len(held_out) < 24  # of 60, about 15
    trainer = workshop.trainer(tmp_path / "run", *many(tmp_path / "set"), *FLAGS, sets={"pan": (2, 300)})
    for stream in trainer.loaders["pan"].streams:
        stream.config = type(stream.config)(**{**vars(stream.config), "resampled": resampled, "shuffle_buffer": 1})
    seen = {key for parts in trainer.loaders["pan"].epoch(0) for key in parts[0].keys}
    assert seen == set(KEYS) - held_out
    assert isinstance(trainer.held_out, HeldOut)
    evaluated = {key for batch, _ in trainer.held_out._batches() for key in batch.keys}
    assert len(evaluated) == 8 and evaluated <= held_out


def test_figures_and_the_best_model(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    run, flags = tmp_path / "run", many(tmp_path / "set")
    more = ("--best_metric", "loss", "--masks_per_image", "2")
    workshop.train(run, *flags, *FLAGS, *more, sets={"pan": (2, 20)})
    found = evaluations(run)
    assert [record["step"] for record in found] == [2, 4, 6, 8, 10]
    losses = [record["eval/loss"] for record in found]
    assert len(set(losses)) == 5 and {"eval/loss/pan/own", "eval/accuracy/pan/any"} <= set(found[0])
    kept = json.loads((run / "best" / "figures.json").read_text())
    assert kept["eval/loss"] == min(losses) and kept["step"] == found[losses.index(min(losses))]["step"]
    osm.load_model(run / "best")
    said = capsys.readouterr().out
    assert "held out, step 2: loss" in said and "the best yet" in said
    # The training is the same with and without it, and a finished run evaluates nothing anew.
    without = workshop.train(tmp_path / "without", *flags, *FLAGS[:2], *more, sets={"pan": (2, 20)})
    plain = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in without] == [r["loss"] for r in plain if "loss" in r]


def test_a_name_is_right_where_greedy_search_says_it(workshop: Workshop, tmp_path: Path) -> None:
    """Rows whose answers are what is really generated count as right, and none with another token in its answer."""
    flags = (*many(tmp_path / "set"), *FLAGS, "--masks_per_image", "3")
    trainer = workshop.trainer(tmp_path / "run", *flags, sets={"pan": (2, 4)}, dropout=0.0)
    assert trainer.held_out is not None
    batch, _ = next(iter(trainer.held_out._batches()))
    assert len(batch) == 12 and batch.modes == ["pan"] * 6 + ["any"] * 6
    task, model, processor = trainer.task.eval(), trainer.model, trainer.processor
    answers = []
    with torch.no_grad():
        keys = model.mask_features(batch.masks, context_mask(batch.masks, model.config.context_enlarge_ratio))
        image_kv = model.bridge.image_state(model.encode_image(processor.pixel_values(batch.canvas)))
        instruction = Instruction(batch.text.qformer_ids, batch.text.qformer_mask)
        prefix = model.bridge(image_kv, batch.image_index, keys, instruction, batch.modes).prefix_RPW
        for row in range(len(batch)):
            asked = batch.text.input_ids[row, : int((batch.text.labels[row] != -100).nonzero()[0])]
            said = model.generate_from(Condition(prefix[row : row + 1]), asked[None], torch.ones_like(asked[None]))[0]
            answers.append((asked, said))
    assert len({tuple(said.tolist()) for _, said in answers}) > 1

    def right(change: int | None) -> list[bool]:
        rows = [torch.cat([asked, said]) for asked, said in answers]
        labels = [torch.cat([torch.full_like(asked, -100), said]) for asked, said in answers]
        if change is not None:
            labels[change][-1] = (labels[change][-1] + 1) % 600
        text = replace(
            batch.text,
            input_ids=pad_sequence(rows, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        )
        with torch.no_grad():
            return task(replace(batch, text=text), scored=True)[2].tolist()

    assert right(None) == [True] * 12
    for change in (0, 7):
        assert right(change) == [row != change for row in range(12)]


@pytest.mark.slow
def test_two_processes_count_what_one_counts(workshop: Workshop, tmp_path: Path) -> None:
    """Though their shares are unequal: five samples on two processes, in batches of two."""
    flags = (*many(tmp_path / "set"), *FLAGS[:4], "--eval_samples", "5")
    workshop.train(tmp_path / "one", *flags, "--emulate_world_size", "2", sets={"pan": (2, 16)}, dropout=0.0)
    arguments = workshop.arguments(tmp_path / "two", *flags, "--fsdp", sets={"pan": (2, 16)}, dropout=0.0)
    finish(start(arguments, launcher(2)))
    one, two = evaluations(tmp_path / "one"), evaluations(tmp_path / "two")
    assert len(one) == len(two) == 2
    for first, second in zip(one, two, strict=True):
        assert first["eval/accuracy"] == second["eval/accuracy"]
        assert first["eval/loss"] == pytest.approx(second["eval/loss"], abs=1e-4)


def test_nothing_to_evaluate_on_is_said(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    flags = ("--held_out_share", "0.0001", "--eval_every_steps", "1")
    assert main(workshop.arguments(tmp_path / "run", *flags, sets={"pan": (2, 8)})) == 2
    said = capsys.readouterr().err
    assert (
        "--held_out_share 0.0001: dataset pan has no usable held-out samples (none in 2 shard(s)); use a larger" in said
    )


def test_the_best_is_by_its_metric() -> None:
    figures = {"eval/accuracy": 0.5, "eval/loss": 1.0}
    assert best_so_far("accuracy", figures, None) and best_so_far("accuracy", figures, 0.4)
    assert not best_so_far("accuracy", figures, 0.5) and not best_so_far("loss", figures, 0.9)
    assert best_so_far("loss", figures, 1.1)
