"""The loss of a step, the optimiser's groups, the schedule over real steps, and steps that are skipped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_run import Workshop
from torch import nn

from osm.data.batch import merge
from osm.errors import OsmError
from osm.models.losses import group_weights, reduce_losses
from osm.training.published_layout import epoch_files
from osm.training.task import MixLoss
from osm.training.tracking import read_log

GROUPS = MixLoss({"a": 1.0, "b": 1.0}).groups


def test_groups_are_the_halves_of_each_set() -> None:
    assert GROUPS == [("a", "own"), ("a", "any"), ("b", "own"), ("b", "any")]


def test_the_loss_is_the_mean_of_the_halves_times_the_multiplier() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    losses = torch.rand(7, generator=generator) * 9
    counts = torch.tensor([5, 7, 4, 6, 2, 3, 8])
    multipliers = {"a": 1.0, "b": 0.25}
    tokens = torch.zeros(4).index_add_(0, index, counts.float())
    found = reduce_losses(losses, MixLoss(multipliers).row_weights(index, tokens))

    def half(rows: list[int]) -> float:
        return float(losses[rows].sum() / counts[rows].sum())

    expected = (half([0, 1]) + half([2])) / 2 + 0.25 * (half([3]) + half([4, 5, 6])) / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_set_with_one_half_has_that_halfs_loss() -> None:
    index, losses, counts = torch.tensor([1, 2]), torch.tensor([6.0, 5.0]), torch.tensor([3.0, 2.0])
    tokens = torch.zeros(4).index_add_(0, index, counts)
    found = reduce_losses(losses, MixLoss({"a": 1.0, "b": 1.0}).row_weights(index, tokens))
    assert float(found) == pytest.approx(6 / 3 + 5 / 2)


def test_one_group_has_the_mean_over_its_tokens() -> None:
    """The loss that `OmniScientModel.forward` returns."""
    losses, counts = torch.tensor([6.0, 5.0, 0.0]), torch.tensor([3, 2, 0])
    weights = group_weights(torch.zeros(3, dtype=torch.long), counts.sum()[None], torch.ones(1))
    assert float(reduce_losses(losses, weights)) == pytest.approx(11 / 5)
    nothing = group_weights(torch.zeros(1, dtype=torch.long), torch.tensor([0]), torch.ones(1))
    assert float(reduce_losses(torch.zeros(1), nothing)) == 0


def test_tokens_of_all_ranks_share_one_denominator() -> None:
    """Ranks with unlike answers: the mean is over all tokens, not over the ranks' means."""
    ranks = [(torch.tensor([0, 1]), torch.tensor([8.0, 1.0]), torch.tensor([8.0, 1.0]))]
    ranks += [(torch.tensor([0, 1]), torch.tensor([6.0, 9.0]), torch.tensor([2.0, 3.0]))]
    loss = MixLoss({"a": 1.0})
    tokens = sum((torch.zeros(2).index_add_(0, index, counts) for index, _, counts in ranks), torch.zeros(2))
    total = sum(float(reduce_losses(losses, loss.row_weights(index, tokens))) for index, losses, _ in ranks)
    assert total == pytest.approx((14 / 10 + 10 / 4) / 2)


def test_a_model_gives_the_loss_of_its_rows(workshop: Workshop, tmp_path: Path) -> None:
    """Two sets in one forward: each row's loss is what it has alone."""
    trainer = workshop.trainer(tmp_path / "run", sets={"pan": (2, 4), "inst": (3, 6)}, dropout=0.0)
    parts = [next(iter(loader.epoch(0)))[0] for loader in trainer.loaders.values()]
    batch = merge(parts)
    assert trainer.loss.group_index(batch).tolist() == [0, 1, 2, 3, 3]
    with torch.no_grad():
        together = trainer.task(batch)
        alone = [trainer.task(part) for part in parts]
    torch.testing.assert_close(together[0], torch.cat([losses for losses, _ in alone]), atol=1e-4, rtol=1e-4)
    assert together[1].tolist() == torch.cat([counts for _, counts in alone]).tolist()
    assert together[1].tolist() == (batch.text.labels != -100).sum(1).tolist()


def test_labels_are_smoothed_in_training_but_not_in_evaluations(workshop: Workshop, tmp_path: Path) -> None:
    smoothed, plain = (
        workshop.trainer(tmp_path / name, "--label_smoothing", value, dropout=0.0)
        for name, value in (("smoothed", "0.1"), ("plain", "0"))
    )
    batch = next(iter(next(iter(plain.loaders.values())).epoch(0)))[0]
    with torch.no_grad():
        losses = [trainer.task(batch)[0] for trainer in (plain, smoothed)]
        smoothed.task.eval()
        in_evaluation = smoothed.task(batch)[0]
    assert (losses[0] - losses[1]).abs().min() > 1e-3
    torch.testing.assert_close(in_evaluation, losses[0], atol=1e-5, rtol=1e-5)


def test_a_share_of_the_label_is_below_one(workshop: Workshop, tmp_path: Path) -> None:
    for share in ("1", "-0.1"):
        with pytest.raises(OsmError, match=f"--label_smoothing {float(share)} must be at least 0 and less than 1"):
            workshop.trainer(tmp_path / "run", "--label_smoothing", share)


# Optimiser.


def test_only_matrices_decay(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path / "run", "--weight_decay", "0.3")
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    matrices = {f"{name}.weight" for name, module in trainer.model.named_modules() if isinstance(module, nn.Linear)}
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(decay) == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        assert decay[id(parameter)] == (0.3 if name in matrices else 0.0), name
    kept = [name for name in trained if name not in matrices]
    for part in ("bias", "LayerNorm", "mask_query", "context_query", "mode_query", "window_pos_embed", "embed"):
        assert any(part in name for name in kept), part
    assert not any(name.startswith(("tower.", "llm.")) for name in trained)
    assert not any(p.requires_grad for part in (trainer.model.tower, trainer.model.llm) for p in part.parameters())


def test_the_schedule_runs_over_the_steps_really_taken(workshop: Workshop, tmp_path: Path) -> None:
    """Five batches and accumulation 2 make three steps an epoch: linear goes to 0 at the sixth, not beyond."""
    linear = "--lr_scheduler linear --warmup_steps 2 --num_epochs 2 --gradient_accumulation_steps 2"
    records = workshop.train(tmp_path / "run", *linear.split(), sets={"pan": (1, 5)})
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in records] == [0, 0, 0, 1, 1, 1]
    # The rate that the next step will have.
    assert [record["learning_rate"] for record in records] == pytest.approx([5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0])
    assert records[-1]["names"] == 10  # no batch is lost in the last, shorter step
    cosine = workshop.train(tmp_path / "cosine", "--lr_scheduler", "cosine", "--num_epochs", "2", sets={"pan": (1, 2)})
    expected = [0.5e-3 * (1 + math.cos(math.pi * step / 4)) for step in (1, 2, 3, 4)]
    assert [record["learning_rate"] for record in cosine] == pytest.approx(expected, abs=1e-9)


def test_a_gradient_that_is_not_finite_skips_its_step_alone(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path / "run", sets={"pan": (2, 8)})

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if trainer.progress.step == 1 else gradient

    trainer.model.window_pos_embed.register_hook(spoil)
    trainer.train()
    records = read_log(tmp_path / "run")
    assert [record["skipped_steps"] for record in records] == [0, 1, 1, 1]
    assert [math.isfinite(record["grad_norm"]) for record in records] == [True, False, True, True]
    assert all(math.isfinite(record["loss"]) for record in records)
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {3}
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    path = epoch_files(tmp_path / "run")[0]
    assert torch.load(path, weights_only=True)["progress"]["skipped_steps"] == 1


def test_gradients_are_clipped_once_a_step(workshop: Workshop, tmp_path: Path) -> None:
    """The step's gradient is that of the mean of its micro-batches, clipped as a whole."""
    trainer = workshop.trainer(
        tmp_path / "run", "--gradient_accumulation_steps", "2", sets={"pan": (2, 4)}, dropout=0.0
    )
    batches = [parts[0] for parts in trainer.loaders["pan"].epoch(0)]
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    total = torch.zeros(())
    for batch in batches:
        losses, counts = trainer.task(batch)
        index = trainer.loss.group_index(batch)
        for half in (0, 1):
            total = total + losses[index == half].sum() / counts[index == half].sum() / 2 / len(batches)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    expected = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    seen: list[float] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))
    )
    trainer.train()
    records = read_log(tmp_path / "run")
    assert len(records) == 1 and records[0]["grad_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert records[0]["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert seen == [pytest.approx(min(1.0, float(expected)), rel=1e-3)]
