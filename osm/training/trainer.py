"""The training loop: for every optimiser step one batch of every set in use, all sets in one forward and backward."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osm.config import as_dict
from osm.data.batch import Batch, merge
from osm.data.sample import SampleTransform
from osm.data.shard_index import Indexes
from osm.data.shard_lists import existing_shards
from osm.data.stream import EpochLoader, Position, StreamConfig, batches_per_epoch, shard_cache
from osm.errors import OsmError, RunStopped
from osm.files import write_atomically
from osm.forms.base import ANNOTATION
from osm.models.checkpoint import config_document, start_from
from osm.models.factory import build, check_widths
from osm.models.osm import OmniScientModel
from osm.storage.locations import public
from osm.terminal import clock, message_logger
from osm.training import checkpoint, dcp, distributed, parallel
from osm.training import fill_feature_cache as feature_cache
from osm.training.config import Run, TrainConfig
from osm.training.faults import SampleFaults, data_faults
from osm.training.held_out import HeldOut, best_so_far
from osm.training.meter import Meter, memory_gib, peak_flops
from osm.training.optim import advance, go_to_step, make_optimizer, make_schedule
from osm.training.precision import check_quantized, hold_frozen
from osm.training.resume import placed, resume, streams_of
from osm.training.run_position import RunPosition
from osm.training.saved import candidates
from osm.training.signals import Stopped, StopSignals
from osm.training.step import Outcome, Stepper
from osm.training.task import TrainTask, group_names
from osm.training.tracking import Tracker, draw_curve

logger = message_logger(__name__)


def train(run: Run) -> Path:
    """Trains, from the newest checkpoint of the run's folder if there is one.

    Returns:
        the folder with the trained model (`<run_name>/final`).

    Raises:
        OsmError: a config, data or checkpoint that is not right. RunStopped: a fault on the way. Stopped: a signal.
    """
    config = run.training
    world = distributed.start(
        config.device, config.dist_backend, config.dist_url, config.no_set_device_rank, config.num_threads
    )
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    try:
        with data_faults():
            return Trainer(run, world).train()
    finally:
        world.close()


class Trainer:
    """One process of a run."""

    def __init__(self, run: Run, world: distributed.World) -> None:
        self.run, self.config, self.world = run, run.training, world
        config = self.config
        self.folder = Path(config.run_name)
        self.shards = {
            name: existing_shards(chosen.shards, f"--{name}_shards", report=world.is_main)
            for name, chosen in config.used_sets.items()
        }
        self.shard_cache = shard_cache(config.shard_cache, round(config.shard_cache_gb * 1e9))
        self.indexes = Indexes(cache=self.shard_cache)
        if not config.pipeline:
            every = [shard for shards in self.shards.values() for shard in shards]
            self.indexes.prepare(every, world.rank, world.size, world.gathered)
        # Fail fast, before gigabytes of weights are loaded. (A resumed run may have the streams of another number of
        # processes.)
        if not config.resume_from_checkpoint and not candidates(self.folder):
            equal_batches(config, config.emulate_world_size or world.size)
        self.groups = group_names(list(config.used_sets))
        self.task, values = self._make_task()
        self.model, self.processor = self.task.model, self.task.processor
        self.model.train()
        if config.gradient_checkpointing:
            parallel.save_activations_less(self.task)
        self.forward = parallel.lay_out(
            self.task, world, config.fsdp, config.fsdp_sharding_strategy, config.fsdp_shard_size, values
        )
        del values
        self.optimizer = make_optimizer(self.task, config.learning_rate, config.weight_decay)
        progress, _ = resume(config, self.model, self.optimizer, world)
        self.streams = streams_of(config, progress, world)
        self.batches = equal_batches(config, self.streams)
        self.steps_per_epoch = math.ceil(self.batches / config.gradient_accumulation_steps)
        step = progress.step
        self.progress = placed(progress, config, self.streams, self.batches, world.is_main)
        self.renumbered_from = step if self.progress.step != step else None
        self.schedule = make_schedule(
            self.optimizer, config.lr_scheduler, config.warmup_steps, self.steps_per_epoch * config.num_epochs
        )
        go_to_step(self.schedule, self.progress.step)
        self.peak = peak_flops(world.device, config.precision, config.peak_tflops)
        self.stepper = Stepper(
            self.forward,
            self.optimizer,
            config,
            self.groups,
            {name: chosen.loss_multiplier for name, chosen in config.used_sets.items()},
            world,
            world.rank * (self.streams // world.size),
            count_flops=self.peak > 0,
        )
        self.stepper.load_scaler(self.progress.scaler)
        self.faults = SampleFaults(config.max_bad_samples)
        # Last: filling a feature cache takes long, and a checkpoint that does not fit is an error without it.
        self.loaders = self._make_loaders()
        self.held_out = self._make_held_out()

    def _make_task(self) -> tuple[TrainTask, dict[str, Tensor]]:
        """Builds the model. With FSDP the main process alone reads it, and the others get its structure.

        Returns:
            the task, and on the main process of an FSDP run the values that its parameters are to have.
        """
        config, world = self.config, self.world
        if not config.fsdp or world.size == 1:
            task = self._read_task()
            checkpoint.share_hashes(task.model, world)
            hold_frozen(task.model, config.precision, world.device)
            task.model.to(world.device)
            return task, {}
        values: dict[str, Tensor] = {}

        def structure() -> TrainTask:
            task = self._read_task()
            checkpoint.frozen_hashes(task.model)
            hold_frozen(task.model, config.precision, world.device)
            values.update({name: parameter.detach() for name, parameter in task.named_parameters()})
            return parallel.without_values(task)

        return world.from_main(structure), values

    def _read_task(self) -> TrainTask:
        torch.manual_seed(self.config.seed)  # the bridge starts alike on every rank
        model, processor = build(self.run.model)
        check_widths(model, *self.run.widths.values())
        self._start_from(model)
        check_quantized(model, self.config.fsdp, self.world.device)
        return TrainTask(model, processor)

    def _start_from(self, model: OmniScientModel) -> None:
        path = self.config.start_from
        if not path:
            return
        if Path(path).resolve().is_relative_to(self.folder.resolve()):
            raise OsmError(
                f"--start_from {public(path)} lies in --run_name {self.folder}, which would be resumed; "
                "choose another --run_name for the new run"
            )
        new = start_from(model, path)
        if self.world.is_main:
            logger.info(f"started from {public(path)}; new modes: {', '.join(new) or 'none'}", to_stdout=True)

    def _make_loaders(self) -> dict[str, EpochLoader]:
        config, world = self.config, self.world
        views = config.views if config.feature_cache else 0
        transform = SampleTransform(config.sample, self.processor, views, config.seed)
        cache = feature_cache.open_cache(config.feature_cache, self.model, transform) if views else None
        loaders = {}
        for name, chosen in config.used_sets.items():
            dataset = self.run.table[name]
            shards = self.shards[name]
            if cache is not None and self.progress.epoch < config.num_epochs:
                skipped = feature_cache.fill(cache, self.model, dataset, shards, transform, world, self.shard_cache)
                if skipped:
                    logger.info(f"feature cache {name}: left out {dict(skipped)}", to_stdout=True)
            stream = StreamConfig(
                tuple(shards),
                chosen.batch_size,
                chosen.train_num_samples,
                config.seed,
                config.dataset_resampled,
                config.shuffle_buffer,
                config.held_out_share,
                config.shard_cache,
                round(config.shard_cache_gb * 1e9),
                config.pipeline,
            )
            loaders[name] = EpochLoader(
                dataset,
                stream,
                transform,
                world.rank,
                world.size,
                config.workers,
                cache,
                self.streams,
                pin_memory=world.device.type == "cuda",
                indexes=self.indexes,
            )
        world.barrier()
        return loaders

    def _make_held_out(self) -> HeldOut | None:
        config = self.config
        if not config.eval_every_steps:
            return None
        sets = {
            name: (self.run.table[name], self.shards[name], chosen.batch_size)
            for name, chosen in config.used_sets.items()
        }
        transform = SampleTransform(config.sample, self.processor)
        return HeldOut(
            sets,
            transform,
            config.held_out_share,
            config.eval_samples,
            self.world,
            config.precision,
            self.indexes,
            self.shard_cache,
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        config = self.config
        tracker = Tracker(self.folder, self.world.is_main, config.wandb, config.wandb_project, as_dict(config))
        saver = dcp.Saver(self.folder, config.keep_checkpoints, self.world)
        try:
            tracker.report(self._opening())
            if self.renumbered_from is not None:
                tracker.log({"step": self.progress.step, "renumbered_from": self.renumbered_from})
            if self.world.is_main:
                (self.folder / "stopped").unlink(missing_ok=True)
            if config.save_initial and self.progress.step == 0:
                checkpoint.save_model(self.model, self.folder / "initial", self.world)
            tracker.show_progress(self.progress.step, self.steps_per_epoch * config.num_epochs)
            with StopSignals() as signals:
                while self.progress.epoch < config.num_epochs:
                    self._epoch(tracker, saver, signals)
                    self._end_epoch(tracker)
                    if signals.agreed and self.progress.epoch < config.num_epochs:
                        self._stop(saver, signals)
            saver.wait()
            final = self.folder / "final"
            checkpoint.save_model(self.model, final, self.world)
            tracker.report(f"trained model: {final}")
            self.world.barrier()
            return final
        except OSError as error:
            raise self._disk_failed(error) from None
        finally:
            for loader in self.loaders.values():
                loader.close()
            saver.close()
            tracker.close()

    def _epoch(self, tracker: Tracker, saver: dcp.Saver, signals: StopSignals) -> None:
        config, progress = self.config, self.progress
        meter = Meter(len(self.groups), self.world)
        for micro_batches in self._micro_batches(meter):
            outcome = self.stepper.step(micro_batches, progress.step, meter, lambda: bool(signals.received))
            advance(self.schedule)
            progress.step += 1
            progress.batches += len(micro_batches)
            progress.skipped_steps += outcome.skipped
            tracker.step()
            last = progress.batches >= self.batches
            if progress.step % config.logging_steps == 0 or last:
                self._log(tracker, meter, outcome)
                meter = Meter(len(self.groups), self.world)
            if self.held_out is not None and (progress.step % config.eval_every_steps == 0):
                begun = time.monotonic()
                self._evaluate(tracker, self.held_out)
                meter.started += time.monotonic() - begun  # not a part of the training's time
            signals.agreed = outcome.stop
            if last:
                return
            if outcome.stop:
                self._stop(saver, signals)
            if config.checkpoint_every_steps and progress.step % config.checkpoint_every_steps == 0:
                self._save(saver)

    def _micro_batches(self, meter: Meter) -> Iterator[list[list[Batch]]]:
        """For each optimiser step its micro-batches, each with a batch of every stream of this process.

        The last step of an epoch may have fewer of them.
        """
        progress, gathered = self.progress, list[list[Batch]]()
        positions: dict[str, dict[int, Position]] = progress.positions
        sets = [
            loader.epoch(progress.epoch, positions.get(name) or self._untouched(loader), progress.salt)
            for name, loader in self.loaders.items()
        ]
        for number in range(progress.batches + 1, self.batches + 1):
            begun = time.monotonic()
            parts = [next(batches) for batches in sets]
            meter.data_seconds += time.monotonic() - begun
            for name, batches in zip(self.loaders, parts, strict=True):
                for batch in batches:
                    self.faults.add(name, batch)
            gathered.append([merge(streams) for streams in zip(*parts, strict=True)])
            if len(gathered) == self.config.gradient_accumulation_steps or number == self.batches:
                yield gathered
                gathered = []

    def _untouched(self, loader: EpochLoader) -> dict[int, Position]:
        """Streams that were not drawn from yet, though a part of the epoch may be over."""
        return {stream.rank: Position(self.progress.batches) for stream in loader.streams}

    # -- what comes beside the steps ---------------------------------------------------------------------------------

    def _end_epoch(self, tracker: Tracker) -> None:
        progress = self.progress
        epoch = progress.epoch
        progress.epoch, progress.batches, progress.salt, progress.positions = epoch + 1, 0, 0, {}
        checkpoint.save(
            self.folder,
            epoch,
            self.model,
            self.optimizer,
            self.schedule,
            self._progress_document(),
            self.config.delete_previous_checkpoint,
            self.world,
        )
        if self.world.is_main:
            logger.info(f"checkpoint written: {self.folder / f'checkpoint_{epoch}.pt'}", to_stdout=True)
            draw_curve(self.folder)
        self.world.barrier()

    def _progress_document(self) -> dict[str, Any]:
        """Returns the counters for a checkpoint that is about to be written; a collective call, equal on all ranks."""
        self.progress.saves += 1
        self.progress.scaler = self.stepper.scaler.state_dict()
        here: dict[str, dict[int, Position]] = {}
        if self.progress.batches:
            here = {name: loader.positions() for name, loader in self.loaders.items()}
        everywhere = self.world.gathered(here)
        self.progress.positions = {
            name: {stream: at for part in everywhere for stream, at in part.get(name, {}).items()} for name in here
        }
        total = RunPosition(**{**vars(self.progress), "skipped": self._skipped()})
        return {**total.document(), "config": json.loads(json.dumps(as_dict(self.config)))}

    def _save(self, saver: dcp.Saver) -> None:
        state = dcp.state_of(self.model, self.optimizer)
        document = {"progress": self._progress_document(), "model": config_document(self.model)}
        saver.save(self.progress.step, state, document)

    def _stop(self, saver: dcp.Saver, signals: StopSignals) -> None:
        """Ends the run where it is, with a checkpoint."""
        if self.progress.batches:  # else the epoch's own file is just written
            self._save(saver)
            saver.wait()
        self.world.barrier()
        step = self.progress.step
        if self.world.is_main:
            write_atomically(self.folder / "stopped", [json.dumps({"step": step, "signal": signals.received})])
        raise Stopped(f"stopped by a signal after step {step}; the same command goes on from there")

    def _skipped(self) -> Counter[str]:
        return self.progress.skipped + self.world.total(self.faults.skipped)

    def _evaluate(self, tracker: Tracker, held_out: HeldOut) -> None:
        with parallel.without_gradients(self.task):
            found = held_out.evaluate(self.task, self.groups)
        metric = self.config.best_metric
        better = best_so_far(metric, found, self.progress.best)
        if better:
            self.progress.best = found[f"eval/{metric}"]
            checkpoint.save_model(self.model, self.folder / "best", self.world, {"step": self.progress.step, **found})
        tracker.log({"step": self.progress.step, "epoch": self.progress.epoch, **found})
        tracker.report(
            f"held out, step {self.progress.step}: loss {found['eval/loss']:.4f}, "
            f"{found['eval/accuracy']:.1%} named exactly{', the best yet' if better else ''}",
            {"step": self.progress.step, **found},
        )

    def _log(self, tracker: Tracker, meter: Meter, outcome: Outcome) -> None:
        progress, interval = self.progress, meter.result()
        progress.names += interval.names
        skipped = self._skipped()
        fallbacks = self.world.total(Counter(cells=self.task.centroid_fallbacks))["cells"]
        left = (self.steps_per_epoch * self.config.num_epochs - progress.step) * interval.seconds / interval.steps
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.epoch,
            **interval.record(self.groups),
            "learning_rate": self.schedule.get_last_lr()[0],
            "grad_norm": outcome.norm,
            "names": progress.names,
            "memory_gib": memory_gib(self.world.device),
            "skipped_steps": progress.skipped_steps,
            "skipped_samples": dict(skipped),
            "centroid_fallbacks": fallbacks,
        }
        mfu = ""
        if self.peak:
            flops = self.stepper.flops_per_row * interval.names / interval.seconds
            record["mfu"] = flops / (self.peak * self.world.size)
            mfu = f", MFU {record['mfu']:.1%}"
        tracker.log(record)
        left_out = _left_out(skipped)
        left_out += f", {progress.skipped_steps} steps skipped" if progress.skipped_steps else ""
        tracker.report(
            f"epoch {progress.epoch} step {progress.step}: loss {interval.loss:.4f}, lr {record['learning_rate']:.2e}, "
            f"grad {outcome.norm:.2f}, {record['names_per_second']:.2f} names/s, waiting for data "
            f"{record['data_share']:.0%}, {record['memory_gib']:.1f} GiB{mfu}, {clock(left)} left{left_out}",
            {**record, "seconds_left": left},
        )

    def _opening(self) -> str:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        epochs = f"epochs {self.progress.epoch}..{self.config.num_epochs - 1}"
        if self.progress.epoch >= self.config.num_epochs:
            epochs = f"all {self.config.num_epochs} epochs are done"
        how = f"FSDP {self.config.fsdp_sharding_strategy}" if self.config.fsdp else "whole on each"
        if self.config.fsdp and self.world.size == 1:
            how = "whole: --fsdp has one process to share it out to"
        return (
            f"{self.folder}: {trained / 1e6:.1f} M parameters trained, {frozen / 1e6:.1f} M frozen, {how}; "
            f"{self.world.size} process(es) on {self.world.device.type}; {epochs} of "
            f"{self.steps_per_epoch} steps; sets {', '.join(self.loaders)}"
        )

    def _disk_failed(self, error: OSError) -> RunStopped:
        whole = next(iter(candidates(self.folder)), None)
        return RunStopped(
            f"--run_name {self.folder} cannot be written ({error}). The newest whole checkpoint: {whole or 'none'}. "
            "Make room, and the same command goes on from it"
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


__all__ = ["TrainConfig", "Trainer", "train"]


def _left_out(skipped: Counter[str]) -> str:
    """How the log's line says what was left out: samples, and annotations of samples that were used."""
    samples = {reason: count for reason, count in skipped.items() if not reason.startswith(ANNOTATION)}
    parts = {reason.removeprefix(ANNOTATION): count for reason, count in skipped.items() if reason not in samples}
    said = f", {sum(samples.values())} samples skipped {samples}" if samples else ""
    return said + (f", {sum(parts.values())} annotations unusable {parts}" if parts else "")
