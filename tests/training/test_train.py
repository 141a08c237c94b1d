"""train.py as a user runs it: repeatable, resumable, alike on one process and on two, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import free_port
from tiny_run import Workshop, finish, losses, start

import osm
from osm.datasets.table import PUBLISHED_MODES
from osm.models.bridges import BRIDGES
from osm.models.factory import build, load_model_config
from osm.training.tracking import read_log
from osm.training.train_cli import main

BOTH = {"pan": (1, 6), "inst": (2, 12)}


# Equal runs.


@pytest.mark.parametrize("workers", [0, 1])
def test_one_seed_gives_one_run(workshop: Workshop, tmp_path: Path, workers: int) -> None:
    flags = ("--workers", str(workers), "--mask2box_prob", "0.3", "--masks_per_image", "2")
    first, again = (workshop.train(tmp_path / name, *flags) for name in ("first", "again"))
    assert len(first) == 3 and losses(first) == losses(again)
    assert losses(first)[0] != losses(first)[1]
    if workers == 0:
        other = workshop.train(tmp_path / "other", *flags, "--seed", "43")
        assert losses(other) != losses(first)


@pytest.mark.slow
def test_processes_of_their_own_agree_with_two_workers(workshop: Workshop, tmp_path: Path) -> None:
    """Nothing may depend on Python's hashes, which differ from process to process."""
    flags = ("--workers", "2", "--masks_per_image", "2")
    runs = [
        start(workshop.arguments(tmp_path / str(seed), *flags, sets={"pan": (2, 8)}), PYTHONHASHSEED=str(seed))
        for seed in (1, 2)
    ]
    said = [finish(run) for run in runs]
    first, second = (read_log(tmp_path / str(seed)) for seed in (1, 2))
    assert len(first) == 4 and losses(first) == losses(second)
    assert "epoch 0 step 4: loss" in said[0] and "trained model: " in said[0]


@pytest.mark.slow
def test_two_processes_are_one_that_emulates_them(workshop: Workshop, tmp_path: Path) -> None:
    """Two sets with batch sizes of their own, accumulation, several masks an image: the same mathematics."""
    more = ("--gradient_accumulation_steps", "2", "--masks_per_image", "2")
    options: dict[str, Any] = {"sets": {"pan": (1, 12), "inst": (2, 24)}, "dropout": 0.0}
    launcher = "-m torch.distributed.run --nnodes=1 --nproc_per_node=2 --master_addr=127.0.0.1"
    arguments = workshop.arguments(tmp_path / "two", *more, **options)
    process = start(arguments, (*launcher.split(), f"--master_port={free_port()}"))
    one = workshop.train(tmp_path / "one", *more, "--emulate_world_size", "2", **options)
    said = finish(process)
    two = read_log(tmp_path / "two")
    assert "2 process(es) on cpu" in said and said.count("epoch 0 step 1:") == 1
    assert len(one) == len(two) == 3
    for first, second in zip(one, two, strict=True):
        assert first["names"] == second["names"] and set(first) == set(second)
        assert {f"loss/{name}/{half}" for name in ("pan", "inst") for half in ("own", "any")} <= set(first)
        for name, value in first.items():
            if name.startswith(("loss", "grad")):
                assert second[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    ends = [torch.load(tmp_path / run / "checkpoint_0.pt", weights_only=True) for run in ("one", "two")]
    for name, value in ends[0]["model_state_dict"].items():
        torch.testing.assert_close(ends[1]["model_state_dict"][name], value, atol=1e-4, rtol=1e-3, msg=name)


# Resuming.


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_resuming_goes_on_as_if_never_stopped(workshop: Workshop, tmp_path: Path, capsys: Any, variant: str) -> None:
    options: dict[str, Any] = {
        "sets": BOTH,
        "variant": variant,
    }  # with dropout: its draws, too, are those of the whole run
    # The warm-up goes on across the epochs.
    one, two = (("--warmup_steps", "8", "--num_epochs", epochs) for epochs in "12")
    whole = workshop.train(tmp_path / "whole", *two, **options)
    workshop.train(tmp_path / "parts", *one, **options)
    parts = workshop.train(tmp_path / "parts", *two, **options)
    assert f"resumed from {tmp_path}/parts/checkpoint_0.pt: epoch 1, step 6" in capsys.readouterr().out
    assert len(whole) == 12 and losses(whole) == losses(parts)
    for name in ("names", "learning_rate", "step", "epoch"):
        assert [record[name] for record in whole] == [record[name] for record in parts]
    # A new folder, from a named file.
    named = ("--resume_from_checkpoint", str(tmp_path / "parts" / "checkpoint_0.pt"))
    elsewhere = workshop.train(tmp_path / "elsewhere", *two, *named, **options)
    assert losses(elsewhere) == losses(whole[6:])
    # A finished run has nothing left to do.
    assert workshop.train(tmp_path / "parts", *two, **options) == parts
    # With steps of another size it goes on as far in its schedule.
    capsys.readouterr()
    other = ("--gradient_accumulation_steps", "2", "--warmup_steps", "8", "--num_epochs", "3")
    assert main(workshop.arguments(tmp_path / "parts", *other, **options)) == 0
    said = capsys.readouterr().out
    assert "changed since the checkpoint: gradient_accumulation_steps was 1, is now 2" in said
    assert "resuming at step 6, epoch 2" in said and "epoch 2 step 9: loss" in said and "step 10" not in said


def test_previous_checkpoints_are_deleted_on_demand(workshop: Workshop, tmp_path: Path) -> None:
    def kept(run: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / run).glob("*.pt*"))

    workshop.train(tmp_path / "all", "--num_epochs", "2", sets={"pan": (2, 2)})
    workshop.train(tmp_path / "last", "--num_epochs", "2", "--delete_previous_checkpoint", sets={"pan": (2, 2)})
    assert kept("all") == ["checkpoint_0.pt", "checkpoint_1.pt"] and kept("last") == ["checkpoint_1.pt"]


# Files of a run.


def test_the_files_of_a_run(workshop: Workshop, tmp_path: Path) -> None:
    """Sets of one's own in both forms, each with flags and a mode of its own."""
    run = tmp_path / "run"
    records = workshop.train(run, "--loss_multiplier_inst", "0.5", sets=BOTH)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint_0.pt", "final", "log.jsonl", "loss.png"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] == records
    first = records[0]  # of `pan` one row in its own mode, of `inst` one of each
    halves = first["loss/inst/own"] + first["loss/inst/any"]
    assert first["loss"] == pytest.approx(first["loss/pan/own"] + 0.5 * halves / 2, rel=1e-5)
    assert "loss/pan/any" not in first and "loss/pan/any" in records[1]

    document = torch.load(run / "checkpoint_0.pt", weights_only=True)
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "lr_scheduler_state_dict"} <= set(document)
    state = document["model_state_dict"]
    modes = [key.removeprefix("mode_query.") for key in state if key.startswith("mode_query.")]
    assert set(modes) == {*PUBLISHED_MODES, "pan", "inst"}
    single = {"window_pos_embed", "mask_query", "context_query", "base_model.query_tokens"}
    prefixes = ("base_model.qformer.", "base_model.language_projection.", "qformer_mode_query.", "mode_query.")
    assert single <= set(state) and all(key in single or key.startswith(prefixes) for key in state)

    model, processor = osm.create_model_and_transforms(str(workshop.configs["maskqformer", 0.1]), modes=modes)
    assert model.load_checkpoint(run / "checkpoint_0.pt")["epoch"] == 0
    loaded, _, _ = osm.load_model(run / "final")
    from_file, _, rest = osm.load_model(run / "checkpoint_0.pt")
    assert rest["progress"]["step"] == 6 and processor.input_size == 56
    for other in (loaded, from_file):
        found = other.trainable_state_dict()
        assert set(found) == set(state) and not other.training
        assert all(torch.equal(found[key], value) for key, value in model.trainable_state_dict().items())
    with pytest.raises(osm.OsmError, match="pan"):  # a model without the new modes
        build(load_model_config(str(workshop.configs["maskqformer", 0.1])))[0].load_checkpoint(run / "checkpoint_0.pt")


def test_what_a_line_says_of_the_work(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    records = workshop.train(tmp_path / "run", "--peak_tflops", "0.001", sets={"pan": (2, 8)})
    said = capsys.readouterr().out
    for record in records:
        assert 0 <= record["data_share"] < 1 and record["seconds_per_step"] > 0 and 0.1 < record["memory_gib"] < 24
        # So many FLOPs a name: of the tiny model about ten million.
        flops = record["mfu"] * 1e9 / record["names_per_second"]
        assert 1e6 < flops < 1e9
    assert "waiting for data" in said and "MFU" in said and "GiB" in said
    assert "mfu" not in workshop.train(tmp_path / "plain", sets={"pan": (2, 2)})[0]


@pytest.mark.slow
def test_wandb_offline(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    finish(start(workshop.arguments(tmp_path / "run", "--wandb", "offline", sets={"pan": (2, 4)})))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(read_log(tmp_path / "run")) == 2


# Learning.


def test_a_tiny_set_is_learnt(workshop: Workshop, tmp_path: Path) -> None:
    flags = "--learning_rate 1e-2 --supervise answer --masks_per_image 3 --resize always --weight_decay 0"
    records = workshop.train(tmp_path / "run", *flags.split(), sets={"pan": (4, 4 * 60)}, dropout=0.0)
    assert len(records) == 60
    for half in ("own", "any"):
        losses_ = [record[f"loss/pan/{half}"] for record in records]
        # As far as a frozen LLM of random weights lets itself be led.
        assert sum(losses_[-5:]) < 0.65 * sum(losses_[:5])


def test_training_on_cached_features(workshop: Workshop, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    flags = ("--feature_cache", str(cache), "--views", "2", "--learning_rate", "3e-3", "--supervise", "answer")
    first = workshop.train(tmp_path / "first", *flags, sets={"pan": (4, 80)}, dropout=0.0)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert len(written) == 12  # 6 images in 2 views
    assert sum(r["loss"] for r in first[-4:]) < 0.8 * sum(r["loss"] for r in first[:4])
    again = workshop.train(tmp_path / "again", *flags, "--workers", "0", sets={"pan": (4, 80)}, dropout=0.0)
    assert losses(again) == losses(first)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == written


def test_zoom_windows_on_cached_features(workshop: Workshop, tmp_path: Path) -> None:
    """The tower sees the image once a view, and the window of each mask at every step."""
    zoom = ("--set", "model.bridge.direct_tokens=2", "--set", "model.bridge.direct_zoom=28")
    flags = (*zoom, "--learning_rate", "3e-3", "--supervise", "answer")
    cached = ("--feature_cache", str(tmp_path / "cache"), "--views", "2")
    first = workshop.train(tmp_path / "first", *flags, *cached, sets={"pan": (4, 80)}, dropout=0.0)
    assert sum(r["loss"] for r in first[-4:]) < 0.8 * sum(r["loss"] for r in first[:4])
    again = workshop.train(tmp_path / "again", *flags, *cached, sets={"pan": (4, 80)}, dropout=0.0)
    assert losses(again) == losses(first)


def test_mixed_precision_on_cpu(workshop: Workshop, tmp_path: Path) -> None:
    full = workshop.train(tmp_path / "full", dropout=0.0)
    mixed = workshop.train(tmp_path / "mixed", "--precision", "amp_bf16", dropout=0.0)
    published = workshop.train(tmp_path / "published", "--precision", "amp_bfloat16", dropout=0.0)
    assert losses(mixed) == losses(published) != losses(full)
    assert mixed[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)
    state = torch.load(tmp_path / "mixed" / "checkpoint_0.pt", weights_only=True)["model_state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32}


# Mistakes.


@pytest.fixture
def failing(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs train.py with flags that are not right; its one line."""

    def run(*more: str, **options: Any) -> str:
        assert main(workshop.arguments(tmp_path / "failing", *more, **options)) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        return said[0]

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backbone_output_stride 16", "--backbone_output_stride is 16, but the base model's value is 14"),
        (
            "--backbone_output_channel 1408",
            "--backbone_output_channel is 1408, but the base model's value is 32",
        ),
        ("--maskqformer_channel 768", "--maskqformer_channel is 768, but the base model's value is 24"),
        ("--llm_channel 4096", "--llm_channel is 4096, but the base model's value is 40"),
        ("--input_size 57", "--input_size 57 is not a multiple of the vision tower's patch size (14)"),
        ("--sliding_window_size 30", "--sliding_window_size 30 is not a multiple"),
        ("--sliding_window_stride 10", "--sliding_window_stride 10 is not a multiple"),
        ("--device cuda:9", "--device 'cuda:9' is not available"),
        ("--resume_from_checkpoint nowhere.pt", "checkpoint nowhere.pt"),
        ("--emulate_world_size 2 --workers -1", "--workers -1 must be 0 or more"),
        ("--pan_shards nowhere/{0..3}.tar", "--pan_shards 'nowhere/{0..3}.tar': none of the 4 shards exist"),
        ("--datasets nowhere.yaml", "dataset table nowhere.yaml"),
        ("--config nowhere", "config 'nowhere' is neither"),
        ("--batch_size_inst -1", "--batch_size_inst -1 must be 0 (dataset not used) or more"),
    ],
)
def test_flags_that_do_not_fit(failing: Callable[..., str], flags: str, message: str) -> None:
    assert message in failing(*flags.split())


def test_widths_that_fit_pass(workshop: Workshop, tmp_path: Path) -> None:
    flags = "--backbone_output_stride 14 --backbone_output_channel 32 --maskqformer_channel 24 --llm_channel 40"
    assert workshop.train(tmp_path / "run", *flags.split(), sets={"pan": (1, 1)})


def test_unequal_batches_show_the_figures(failing: Callable[..., str]) -> None:
    said = failing(sets={"pan": (2, 8), "inst": (3, 8)})
    assert "the same number of batches" in said
    assert "--train_num_samples_pan 8 / --batch_size_pan 2 = 4 batches" in said
    assert "--train_num_samples_inst 8 / --batch_size_inst 3 = 3 batches" in said


def test_a_checkpoint_of_another_model_is_refused(
    workshop: Workshop, tmp_path: Path, failing: Callable[..., str]
) -> None:
    workshop.train(tmp_path / "run", sets={"inst": (1, 1)})
    path = str(tmp_path / "run" / "checkpoint_0.pt")
    assert "does not fit this model" in failing("--resume_from_checkpoint", path)  # mode inst, not pan
    document = torch.load(path, weights_only=True)
    del document["optimizer_state_dict"]
    torch.save(document, path)
    said = failing("--resume_from_checkpoint", path, sets={"inst": (1, 1)})
    assert "has no optimizer state" in said
