"""The training loop: for every optimiser step one batch of every set in use, all sets in one forward and backward."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from osm.config import as_dict
from osm.data.sample import SampleTransform
from osm.data.shards import existing_shards
from osm.data.stream import Batch, EpochLoader, StreamConfig, batches_per_epoch, merge
from osm.errors import OsmError
from osm.model.checkpoint import save_folder, start_from
from osm.model.factory import build, check_widths
from osm.training import cache as feature_cache
from osm.training import checkpoint, distributed
from osm.training.config import Run, TrainConfig
from osm.training.optim import make_optimizer, make_schedule
from osm.training.task import TrainTask, group_index, group_names, row_weights
from osm.training.tracking import Tracker, clock, draw_curve

MAX_GRAD_NORM = 1.0


def train(run: Run) -> Path:
    """Trains, from the newest checkpoint of the run's folder if there is one.

    Returns:
        the folder with the trained model (`<run_name>/final`).

    Raises:
        OsmError: a config, data or checkpoint that is not right.
    """
    config = run.training
    world = distributed.start(
        config.device, config.dist_backend, config.dist_url, config.no_set_device_rank, config.num_threads
    )
    try:
        return Trainer(run, world).train()
    finally:
        world.close()


class Trainer:
    """One process of a run."""

    def __init__(self, run: Run, world: distributed.World) -> None:
        self.run, self.config, self.world = run, run.training, world
        self.folder = Path(self.config.run_name)
        # What is quickly seen to be wrong is said before a model of gigabytes is loaded.
        self.batches = equal_batches(self.config, self.config.emulate_world_size or world.size)
        self.shards = {
            name: existing_shards(chosen.shards, f"--{name}_shards", report=world.is_main)
            for name, chosen in self.config.used_sets.items()
        }
        torch.manual_seed(self.config.seed)  # the bridge starts alike on every rank
        self.model, self.processor = build(run.model)
        check_widths(self.model, *run.widths.values())
        if self.config.start_from and Path(self.config.start_from).resolve().is_relative_to(self.folder.resolve()):
            raise OsmError(
                f"--start_from {self.config.start_from} lies in --run_name {self.folder}, which would be resumed; "
                "choose another --run_name for the new run"
            )
        if self.config.start_from:
            new = start_from(self.model, self.config.start_from)
            if world.is_main:
                print(f"started from {self.config.start_from}; new modes: {', '.join(new) or 'none'}", flush=True)
        hold_frozen(self.model, self.config.precision, world.device)
        self.model.to(world.device).train()
        self.groups = group_names(list(self.config.used_sets))
        self.multipliers = {name: chosen.loss_multiplier for name, chosen in self.config.used_sets.items()}
        self.task = TrainTask(self.model, self.processor)
        self.forward: nn.Module = self.task
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            # The buffers are the frozen tower's: they never change. (Newer torch calls the option by another name.)
            known = inspect.signature(DistributedDataParallel).parameters
            option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            self.forward = DistributedDataParallel(self.task, device_ids=ids, **{option: False})
        self.steps_per_epoch = math.ceil(self.batches / self.config.gradient_accumulation_steps)
        self.optimizer = make_optimizer(self.task, self.config.learning_rate, self.config.weight_decay)
        self.schedule = make_schedule(
            self.optimizer,
            self.config.lr_scheduler,
            self.config.warmup_steps,
            self.steps_per_epoch * self.config.num_epochs,
        )
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.config.precision == "fp16")
        self.step, self.names, self.skipped_steps = 0, 0, 0
        # What was left out: by the run up to its resumption (of all ranks), and by this process since.
        self.skipped_before: Counter[str] = Counter()
        self.skipped_here: Counter[str] = Counter()
        self.first_epoch = self._resume()
        # Last: filling a feature cache takes long, and a checkpoint that does not fit is an error without it.
        self.loaders = self._make_loaders()

    def _make_loaders(self) -> dict[str, EpochLoader]:
        config, world = self.config, self.world
        views = config.views if config.feature_cache else 0
        transform = SampleTransform(config.sample, self.processor, views, config.seed)
        cache = feature_cache.open_cache(config.feature_cache, self.model, transform) if views else None
        loaders = {}
        for name, chosen in config.used_sets.items():
            dataset = self.run.table[name]
            shards = self.shards[name]
            if cache is not None and self.first_epoch < config.num_epochs:
                skipped = feature_cache.fill(cache, self.model, dataset, shards, transform, world)
                if skipped:
                    print(f"feature cache {name}: left out {dict(skipped)}", flush=True)
            stream = StreamConfig(
                tuple(shards),
                chosen.batch_size,
                chosen.train_num_samples,
                config.seed,
                config.dataset_resampled,
                config.shuffle_buffer,
            )
            loaders[name] = EpochLoader(
                dataset, stream, transform, world.rank, world.size, config.workers, cache, config.emulate_world_size
            )
        world.barrier()
        return loaders

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        tracker = Tracker(
            self.folder, self.world.is_main, self.config.wandb, self.config.wandb_project, as_dict(self.config)
        )
        try:
            tracker.say(self._opening())
            if self.config.save_initial and self.step == 0 and self.world.is_main:
                save_folder(self.model, self.folder / "initial")
            for epoch in range(self.first_epoch, self.config.num_epochs):
                self._epoch(epoch, tracker)
                skipped = self._skipped()
                if self.world.is_main:
                    self._save(epoch, skipped)
                    draw_curve(self.folder)
                self.world.barrier()
            final = self.folder / "final"
            if self.world.is_main:
                save_folder(self.model, final)
            tracker.say(f"trained model: {final}")
            self.world.barrier()
            return final
        finally:
            tracker.close()

    def _resume(self) -> int:
        given = self.config.resume_from_checkpoint
        path = Path(given) if given else checkpoint.newest(self.folder)
        if path is None:
            return 0
        try:
            epoch, progress = checkpoint.resume(path, self.model, self.optimizer, self.schedule)
        except OsmError as error:
            found = (
                "" if given else f"\nIt was found in --run_name {self.folder}; for another run choose another folder"
            )
            raise OsmError(f"{error}{found}") from None
        self.step, self.names = progress.get("step", 0), progress.get("names", 0)
        self.skipped_steps = progress.get("skipped_steps", 0)
        self.skipped_before = Counter(progress.get("skipped", {}))
        if self.step != epoch * self.steps_per_epoch:
            raise OsmError(
                f"checkpoint {path} is of step {self.step} after {epoch} epochs, but an epoch of this run has "
                f"{self.steps_per_epoch} steps: with another number of processes, batch size or samples the schedule "
                f"would not go on where it was. --emulate_world_size keeps the samples of another number of processes"
            )
        if self.world.is_main:
            instead = f", not started from {self.config.start_from}" if self.config.start_from else ""
            print(f"resumed from {path}: epoch {epoch}, step {self.step}{instead}", flush=True)
        return epoch

    def _skipped(self) -> Counter[str]:
        return self.skipped_before + self.world.total(self.skipped_here)

    def _save(self, epoch: int, skipped: Counter[str]) -> None:
        progress = {
            "step": self.step,
            "names": self.names,
            "skipped_steps": self.skipped_steps,
            "skipped": dict(skipped),
        }
        checkpoint.save(
            self.folder,
            epoch,
            self.model,
            self.optimizer,
            self.schedule,
            progress,
            self.config.delete_previous_checkpoint,
        )

    def _opening(self) -> str:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        return (
            f"{self.folder}: {trained / 1e6:.1f} M parameters trained, {frozen / 1e6:.1f} M frozen; {self.world.size} "
            f"process(es) on {self.world.device.type}; epochs {self.first_epoch}..{self.config.num_epochs - 1} of "
            f"{self.steps_per_epoch} steps; sets {', '.join(self.loaders)}"
        )

    def _epoch(self, epoch: int, tracker: Tracker) -> None:
        meter = Meter(len(self.groups), self.world)
        for micro_batches in self._micro_batches(epoch):
            norm = self._optimizer_step(micro_batches, meter)
            self.step += 1
            last = self.step % self.steps_per_epoch == 0
            if self.step % self.config.logging_steps == 0 or last:
                self._log(epoch, tracker, meter, norm)
                meter = Meter(len(self.groups), self.world)

    def _micro_batches(self, epoch: int) -> Iterator[list[Batch]]:
        """The batches of each optimiser step; the last step of an epoch may have fewer."""
        streams = [loader.epoch(epoch) for loader in self.loaders.values()]
        gathered: list[Batch] = []
        for number, parts in enumerate(zip(*streams, strict=True), 1):
            gathered.append(merge(parts))
            if len(gathered) == self.config.gradient_accumulation_steps or number == self.batches:
                yield gathered
                gathered = []

    def _optimizer_step(self, micro_batches: list[Batch], meter: Meter) -> float:
        """Forward and backward of every micro-batch, one clip, one update. Returns the gradient norm."""
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        for number, batch in enumerate(micro_batches):
            torch.manual_seed(dropout_seed(self.config.seed, self.step, number, self.world.rank))
            wait = number < len(micro_batches) - 1 and isinstance(self.forward, DistributedDataParallel)
            with self.forward.no_sync() if wait else contextlib.nullcontext():
                finite &= self._backward(batch.to(self.world.device), len(micro_batches), meter)
            self.skipped_here.update(batch.skipped)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM))
        # Gradients are summed over the ranks, and so are losses here: what is not finite on one, all skip together.
        if math.isfinite(norm) and int(self.world.sum((~finite).int())) == 0:
            self.scaler.step(self.optimizer)
        else:
            self.skipped_steps += 1
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def _backward(self, batch: Batch, micro_batches: int, meter: Meter) -> Tensor:
        """One micro-batch. Returns whether its loss was finite (a bool scalar)."""
        index = group_index(batch, self.groups).to(self.world.device)
        with autocast(self.config.precision, self.world.device):
            losses, counts = self.forward(batch)
        # Supervised tokens of each group over all ranks, and in the last place the rows.
        totals = torch.zeros(len(self.groups) + 1, device=self.world.device)
        totals[:-1].index_add_(0, index, counts.float())
        totals[-1] = len(batch)
        self.world.sum(totals)
        weights = row_weights(index, totals[:-1], self.groups, self.multipliers)
        # DDP averages over the ranks, the loss is a sum over them.
        loss = (losses * weights).sum() * self.world.size / micro_batches
        self.scaler.scale(loss).backward()
        meter.add(index, losses.detach(), counts, weights, totals[-1], micro_batches)
        return loss.detach().isfinite()

    def _log(self, epoch: int, tracker: Tracker, meter: Meter, norm: float) -> None:
        loss, group_losses, rows, steps = meter.result()
        self.names += rows
        skipped = self._skipped()
        fallbacks = self.world.total(Counter(cells=self.task.centroid_fallbacks))["cells"]
        seconds = time.monotonic() - meter.started
        rate = rows / max(seconds, 1e-9)
        left = (self.steps_per_epoch * self.config.num_epochs - self.step) * seconds / max(steps, 1)
        halves = {
            f"loss/{name}/{half}": value
            for (name, half), value in zip(self.groups, group_losses, strict=True)
            if not math.isnan(value)
        }
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": epoch,
            "loss": loss,
            **halves,
            "learning_rate": self.schedule.get_last_lr()[0],
            "grad_norm": norm,
            "names": self.names,
            "names_per_second": rate,
            "skipped_steps": self.skipped_steps,
            "skipped_samples": dict(skipped),
            "centroid_fallbacks": fallbacks,
        }
        tracker.log(record)
        left_out = f", {sum(skipped.values())} samples skipped {dict(skipped)}" if skipped else ""
        left_out += f", {self.skipped_steps} steps skipped" if self.skipped_steps else ""
        tracker.say(
            f"epoch {epoch} step {self.step}: loss {loss:.4f}, lr {record['learning_rate']:.2e}, "
            f"{rate:.2f} names/s, {clock(left)} left{left_out}"
        )


def equal_batches(config: TrainConfig, streams: int) -> int:
    """Batches an epoch of a run on that many processes. Raises OsmError, with the figures, where the sets differ."""
    counts = {
        name: batches_per_epoch(chosen.train_num_samples, chosen.batch_size, streams, config.workers)
        for name, chosen in config.used_sets.items()
    }
    if len(set(counts.values())) > 1:
        figures = "; ".join(
            f"{name}: --train_num_samples_{name} {config.sets[name].train_num_samples} / --batch_size_{name} "
            f"{config.sets[name].batch_size} = {count} batches"
            for name, count in counts.items()
        )
        raise OsmError(f"the sets must give equally many batches an epoch, but: {figures}")
    return next(iter(counts.values()))


class Meter:
    """Sums of what was trained on since the last log line, over all ranks."""

    def __init__(self, groups: int, world: distributed.World) -> None:
        self.world, self.started = world, time.monotonic()
        self.sums = torch.zeros(2, groups, dtype=torch.float64, device=_float64_device(world.device))
        self.loss = torch.zeros((), dtype=torch.float64, device=self.sums.device)
        self.rows, self.steps = torch.zeros((), device=world.device), 0.0

    def add(
        self, index: Tensor, losses: Tensor, counts: Tensor, weights: Tensor, rows: Tensor, micro_batches: int
    ) -> None:
        place = index.to(self.sums.device)
        self.sums[0].index_add_(0, place, losses.to(self.sums))
        self.sums[1].index_add_(0, place, counts.to(self.sums))
        self.loss += (losses * weights).sum().to(self.sums) / micro_batches
        self.rows = self.rows + rows
        self.steps += 1 / micro_batches

    def result(self) -> tuple[float, list[float], int, float]:
        """Mean loss a step, mean cross entropy of each group (nan where it had nothing), names, steps."""
        everything = torch.cat([self.sums.flatten(), self.loss[None]]).to(self.world.device)
        everything = self.world.sum(everything).double().cpu()
        sums, loss = everything[:-1].view(2, -1), float(everything[-1])
        return loss / self.steps, (sums[0] / sums[1]).tolist(), int(self.rows), self.steps


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device


def dropout_seed(seed: int, step: int, micro_batch: int, rank: int) -> int:
    """Seeds every forward by itself, so that a resumed run drops the same units as one never stopped."""
    return (seed * 1_000_003 + step * 8191 + micro_batch * 131 + rank) % 2**63


def hold_frozen(model: nn.Module, precision: str, device: torch.device) -> None:
    """Keeps the frozen parts in half precision where that saves memory and costs nothing trained."""
    if precision == "fp16" and device.type != "cuda":
        raise OsmError(f"--precision fp16 needs CUDA (this process runs on {device.type}); amp_bf16 or fp32 work there")
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half is None and precision.startswith("amp_") and device.type == "cuda":
        half = torch.bfloat16
    if half is not None:
        model.tower.to(half)
        model.llm.to(half)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)


__all__ = ["TrainConfig", "Trainer", "train"]
