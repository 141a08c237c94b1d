"""The training loop. Each micro-batch combines one batch from every dataset in a single forward and backward pass.

The function `train` performs a complete training run. `Trainer.__init__` sets up or resumes a run, `Trainer.train`
loops over the epochs, and `Trainer._epoch` loops over the steps of one epoch.
"""

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
from osm.memory_reuse import keep_freed_memory
from osm.models.checkpoint import frozen_hashes, start_from
from osm.models.factory import build, check_widths
from osm.models.fast_inference import speed_up_tower
from osm.models.fast_llama import make_fast
from osm.models.osm import OmniScientModel
from osm.models.packed_linear import pack_linears
from osm.startup import quick_loading
from osm.storage.locations import public
from osm.terminal import clock, message_logger
from osm.training import distributed, parallel
from osm.training import fill_feature_cache as feature_cache
from osm.training.checkpoints import CheckpointWriter, readable_checkpoints
from osm.training.held_out import HeldOut, best_so_far
from osm.training.meter import Meter, memory_gib, peak_flops
from osm.training.optimization import advance, check_quantized, go_to_step, hold_frozen, make_optimizer, make_schedule
from osm.training.published_layout import save_trained_model
from osm.training.resume import choose_streams, convert_progress, resume
from osm.training.run_config import Run
from osm.training.run_position import RunPosition
from osm.training.step import Stepper, StepResult
from osm.training.stopping import SampleFaults, Stopped, StopSignals, report_closed_workers, report_dead_workers
from osm.training.task import MixLoss, TrainTask
from osm.training.tracking import Tracker, draw_curve
from osm.training.train_config import TrainConfig

logger = message_logger(__name__)


def train(run: Run) -> Path:
    """Train a model. If the run's folder contains checkpoints, training resumes from the newest one.

    Returns:
        the folder with the trained model (`<run_name>/final`).

    Raises:
        OsmError: the config, the data or a checkpoint is invalid.
        RunStopped: the run could not continue.
        Stopped: a signal ended the run.
    """
    config = run.training
    world = distributed.start(
        config.device, config.dist_backend, config.dist_url, config.no_set_device_rank, config.num_threads
    )
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    try:
        with report_dead_workers():
            return _trained(run, world)
    finally:
        world.close()


def _trained(run: Run, world: distributed.World) -> Path:
    """Set up and run a trainer, which is freed on return, so that nothing of it outlives the process group."""
    with quick_loading():
        trainer = Trainer(run, world)
    return trainer.train()


class Trainer:
    """One process of a training run. The constructor sets up a new run or resumes one from a checkpoint.

    All ranks must construct their trainers together, because the constructor contains collective calls.

    Args:
        run: the parsed command line.
        world: the processes of the run.
    """

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
        # A new run's number of batches per epoch is checked before gigabytes of weights are loaded.
        # A resumed run is checked after its checkpoint is read, because the checkpoint sets the number of streams.
        if not config.resume_from_checkpoint and not readable_checkpoints(self.folder):
            equal_batches(config, config.emulate_world_size or world.size)

        # Build the model and its optimizer.
        self.task, values = self._make_task()
        self.model, self.processor = self.task.model, self.task.processor
        self.model.train()
        self.loss = MixLoss({name: chosen.loss_multiplier for name, chosen in config.used_sets.items()})
        if config.gradient_checkpointing:
            parallel.enable_gradient_checkpointing(self.task)
        self.forward = parallel.parallelize(
            self.task, world, config.fsdp, config.fsdp_sharding_strategy, config.fsdp_shard_size, values
        )
        del values
        self.optimizer = make_optimizer(self.task, config.learning_rate, config.weight_decay)

        # Load the newest checkpoint of the run, if there is one, and continue from its progress.
        progress, _ = resume(config, self.model, self.optimizer, world)
        self.streams = choose_streams(config, progress, world)
        self.batches = equal_batches(config, self.streams)
        self.steps_per_epoch = math.ceil(self.batches / config.gradient_accumulation_steps)
        step = progress.step
        self.progress = convert_progress(progress, config, self.streams, self.batches, world.is_main)
        self.renumbered_from = step if self.progress.step != step else None
        self.schedule = make_schedule(
            self.optimizer, config.lr_scheduler, config.warmup_steps, self.steps_per_epoch * config.num_epochs
        )
        go_to_step(self.schedule, self.progress.step)

        # Set up the objects that run the optimizer steps and load the data.
        self.peak = peak_flops(world.device, config.precision, config.peak_tflops)
        first_stream = world.rank * (self.streams // world.size)
        self.stepper = Stepper(
            self.forward, self.optimizer, config, self.loss, world, first_stream, count_flops=self.peak > 0
        )
        self.stepper.load_scaler(self.progress.scaler)
        self.faults = SampleFaults(config.max_bad_samples)
        # The data loaders are created last, because creating them fills the feature cache, which takes a long time.
        # A checkpoint that does not match the model is thus reported before the feature cache is filled.
        self.loaders = self._make_loaders()
        self.held_out = self._make_held_out()

    def _make_task(self) -> tuple[TrainTask, dict[str, Tensor]]:
        """Build the model and its training task.

        With FSDP, only rank 0 reads the weights, and all other ranks build the model without parameter values.

        Returns:
            the task, and on rank 0 of an FSDP run the values of its parameters by name.
        """
        config, world = self.config, self.world
        if not config.fsdp or world.size == 1:
            task = self._read_task()
            self.frozen_count = _count_frozen(task)
            # The frozen weights are hashed before they are cast, because the hash is computed from bfloat16 values.
            # A value that was first cast to float16 may round to a different bfloat16 value.
            task.model.frozen_hashes = world.from_main(lambda: frozen_hashes(task.model))
            hold_frozen(task.model, config.precision, world.device)
            task.model.to(world.device)
            if world.device.type == "cpu":
                keep_freed_memory()
                if config.precision == "fp32":
                    self._speed_up(task.model)
            return task, {}
        values: dict[str, Tensor] = {}

        def structure() -> TrainTask:
            task = self._read_task()
            frozen_hashes(task.model)  # stores the hashes in the model before its parts are cast and sharded
            hold_frozen(task.model, config.precision, world.device)
            values.update({name: parameter.detach() for name, parameter in task.named_parameters()})
            return parallel.on_meta_device(task)

        task = world.from_main(structure)
        self.frozen_count = _count_frozen(task)
        return task, values

    def _speed_up(self, model: OmniScientModel) -> None:
        """Make the frozen tower and LLM faster on a CPU.

        Their hashes must be computed before, because the tower's weights change.
        """
        speed_up_tower(model.tower, model.config.sliding_window_size)
        pack_linears(model.llm)
        if not self.config.gradient_checkpointing:  # it wraps transformers' layers, which FastLlama does not call
            make_fast(model.llm)

    def _read_task(self) -> TrainTask:
        torch.manual_seed(self.config.seed)  # the bridge starts with the same values on every rank
        model, processor = build(self.run.model)
        check_widths(model, *self.run.widths.values())
        processor.check_supervise(self.config.sample.supervise)
        self._start_from(model)
        check_quantized(model, self.config.fsdp, self.world.device)
        config = self.config
        return TrainTask(model, processor, config.label_smoothing, config.names_loss, config.names_smoothing)

    def _start_from(self, model: OmniScientModel) -> None:
        """Load the trained weights given by `--start_from`, if the flag is set."""
        path = self.config.start_from
        if not path:
            return
        if Path(path).resolve().is_relative_to(self.folder.resolve()):
            raise OsmError(
                f"--start_from {public(path)} is inside --run_name {self.folder}, so that run would be resumed; "
                "choose a different --run_name for the new run"
            )
        new = start_from(model, path)
        if self.world.is_main:
            logger.info(f"started from {public(path)}; new modes: {', '.join(new) or 'none'}", to_stdout=True)

    def _make_loaders(self) -> dict[str, EpochLoader]:
        """Build a data loader for each dataset. If a feature cache is used, it is filled first."""
        config, world = self.config, self.world
        views = config.views if config.feature_cache else 0
        transform = SampleTransform(config.sample, self.processor, views, config.seed, bool(self.model.zoom))
        cache = feature_cache.open_cache(config.feature_cache, self.model, transform) if views else None
        loaders = {}
        for name, chosen in config.used_sets.items():
            dataset = self.run.table[name]
            shards = self.shards[name]
            if cache is not None and self.progress.epoch < config.num_epochs:
                skipped = feature_cache.fill(cache, self.model, dataset, shards, transform, world, self.shard_cache)
                if skipped:
                    logger.info(f"feature cache {name}: skipped {dict(skipped)}", to_stdout=True)
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
        return HeldOut(
            sets,
            SampleTransform(config.sample, self.processor),
            config.held_out_share,
            config.eval_samples,
            self.world,
            config.precision,
            self.indexes,
            self.shard_cache,
        )

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train for the remaining epochs, and return the folder with the trained model."""
        config = self.config
        tracker = Tracker(self.folder, self.world.is_main, config.wandb, config.wandb_project, as_dict(config))
        writer = CheckpointWriter(self.folder, config.keep_checkpoints, config.delete_previous_checkpoint, self.world)
        try:
            tracker.report(self._first_line())
            tracker.show_progress(self.progress.step, self.steps_per_epoch * config.num_epochs)
            if self.renumbered_from is not None:
                tracker.log({"step": self.progress.step, "renumbered_from": self.renumbered_from})
            if self.world.is_main:
                (self.folder / "stopped").unlink(missing_ok=True)
            if config.save_initial and self.progress.step == 0:
                save_trained_model(self.model, self.folder / "initial", self.world)
            with StopSignals() as signals:
                while self.progress.epoch < config.num_epochs:
                    self._epoch(tracker, writer, signals)
                    self._end_epoch(writer)
                    if signals.agreed and self.progress.epoch < config.num_epochs:
                        self._stop(writer, signals)
            writer.wait()
            final = self.folder / "final"
            save_trained_model(self.model, final, self.world)
            tracker.report(f"trained model: {final}")
            self.world.barrier()
            return final
        except OSError as error:
            raise self._disk_failure(error) from None
        finally:
            for loader in self.loaders.values():
                loader.close()
            writer.close()
            tracker.close()

    def _epoch(self, tracker: Tracker, writer: CheckpointWriter, signals: StopSignals) -> None:
        """Run the remaining training steps of the current epoch."""
        config, progress = self.config, self.progress
        meter = Meter(len(self.loss.groups), self.world)
        for micro_batches in self._micro_batches(meter):
            result = self.stepper.step(micro_batches, progress.step, meter, lambda: bool(signals.received))
            advance(self.schedule)
            progress.step += 1
            progress.batches += len(micro_batches)
            progress.skipped_steps += result.skipped
            tracker.step()
            last = progress.batches >= self.batches
            if progress.step % config.logging_steps == 0 or last:
                self._log(tracker, meter, result)
                meter = Meter(len(self.loss.groups), self.world)
            if self.held_out is not None and (progress.step % config.eval_every_steps == 0):
                begun = time.monotonic()
                self._evaluate(tracker, self.held_out)
                meter.started += time.monotonic() - begun  # evaluation does not count as training time
            signals.agreed = result.stop
            if last:
                return
            if result.stop:
                self._stop(writer, signals)
            if config.checkpoint_every_steps and progress.step % config.checkpoint_every_steps == 0:
                self._start_checkpoint(writer)

    def _micro_batches(self, meter: Meter) -> Iterator[list[list[Batch]]]:
        """Yield the micro-batches of each optimizer step. A micro-batch has one batch per stream of this process.

        The last step of an epoch may have fewer micro-batches than the preceding steps.
        """
        progress, gathered = self.progress, list[list[Batch]]()
        positions: dict[str, dict[int, Position]] = progress.positions
        sets = [
            loader.epoch(progress.epoch, positions.get(name) or self._fresh_positions(loader), progress.salt)
            for name, loader in self.loaders.items()
        ]
        for number in range(progress.batches + 1, self.batches + 1):
            begun = time.monotonic()
            with report_closed_workers(self.config.workers):
                parts = [next(batches) for batches in sets]
            meter.data_seconds += time.monotonic() - begun
            for name, batches in zip(self.loaders, parts, strict=True):
                for batch in batches:
                    self.faults.add(name, batch)
            gathered.append([merge(streams) for streams in zip(*parts, strict=True)])
            if len(gathered) == self.config.gradient_accumulation_steps or number == self.batches:
                yield gathered
                gathered = []

    def _fresh_positions(self, loader: EpochLoader) -> dict[int, Position]:
        """Return the initial position of each sample stream of this process, before any sample is drawn.

        A sample stream may start in the middle of an epoch, because a resumed run may use a different number of
        streams.
        """
        return {stream.rank: Position(self.progress.batches) for stream in loader.streams}

    def _end_epoch(self, writer: CheckpointWriter) -> None:
        """Advance to the next epoch, and write the checkpoint of the finished epoch."""
        progress = self.progress
        epoch = progress.epoch
        progress.epoch, progress.batches, progress.salt, progress.positions = epoch + 1, 0, 0, {}
        document = self._progress_document()
        path = writer.write_epoch(epoch, self.model, self.optimizer, self.schedule, document)
        if self.world.is_main:
            logger.info(f"checkpoint written: {path}", to_stdout=True)
            draw_curve(self.folder)
        self.world.barrier()

    # -- checkpoints and the end of a run ----------------------------------------------------------------------------

    def _progress_document(self) -> dict[str, Any]:
        """Return the progress and config to store in a new checkpoint; the result is the same on all ranks.

        All ranks must call this method together.
        """
        self.progress.saves += 1
        self.progress.scaler = self.stepper.scaler.state_dict()
        here: dict[str, dict[int, Position]] = {}
        if self.progress.batches:
            here = {name: loader.positions() for name, loader in self.loaders.items()}
        everywhere = self.world.gathered(here)
        self.progress.positions = {
            name: {stream: at for part in everywhere for stream, at in part.get(name, {}).items()} for name in here
        }
        total = RunPosition(**{**vars(self.progress), "skipped": self._skipped_samples()})
        return {**total.document(), "config": json.loads(json.dumps(as_dict(self.config)))}

    def _start_checkpoint(self, writer: CheckpointWriter) -> None:
        writer.start_step(self.progress.step, self.model, self.optimizer, self._progress_document())

    def _stop(self, writer: CheckpointWriter, signals: StopSignals) -> None:
        """Write a checkpoint after a stop signal, and raise Stopped to end the run."""
        if self.progress.batches:  # otherwise the checkpoint of the epoch was just written
            self._start_checkpoint(writer)
            writer.wait()
        self.world.barrier()
        step = self.progress.step
        if self.world.is_main:
            write_atomically(self.folder / "stopped", [json.dumps({"step": step, "signal": signals.received})])
        raise Stopped(f"stopped by a signal after step {step}; run the same command to resume from there")

    def _disk_failure(self, error: OSError) -> RunStopped:
        newest = next(iter(readable_checkpoints(self.folder)), None)
        return RunStopped(
            f"--run_name {self.folder} cannot be written ({error}). The newest intact checkpoint: {newest or 'none'}. "
            "Free disk space, and run the same command to resume from it"
        )

    # -- figures and messages ----------------------------------------------------------------------------------------

    def _skipped_samples(self) -> Counter[str]:
        """Return the number of samples skipped for each reason, over all ranks and since the run first started."""
        return self.progress.skipped + self.world.total(self.faults.skipped)

    def _evaluate(self, tracker: Tracker, held_out: HeldOut) -> None:
        """Evaluate the model on the held-out samples, and save it as `best` if its metric is the best so far."""
        with parallel.without_gradients(self.task):
            found = held_out.evaluate(self.task, self.loss)
        metric = self.config.best_metric
        better = best_so_far(metric, found, self.progress.best)
        if better:
            self.progress.best = found[f"eval/{metric}"]
            figures = {"step": self.progress.step, **found}
            save_trained_model(self.model, self.folder / "best", self.world, figures)
        tracker.log({"step": self.progress.step, "epoch": self.progress.epoch, **found})
        tracker.report(
            f"held out, step {self.progress.step}: loss {found['eval/loss']:.4f}, "
            f"{found['eval/accuracy']:.1%} named exactly{', the best yet' if better else ''}",
            {"step": self.progress.step, **found},
        )

    def _log(self, tracker: Tracker, meter: Meter, result: StepResult) -> None:
        """Write a record to the training log, and show its main values to the user in one line."""
        progress, interval = self.progress, meter.result()
        progress.names += interval.names
        skipped = self._skipped_samples()
        fallbacks = self.world.total(Counter(cells=self.task.centroid_fallbacks))["cells"]
        left = (self.steps_per_epoch * self.config.num_epochs - progress.step) * interval.seconds / interval.steps
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.epoch,
            **interval.record(self.loss.groups),
            "learning_rate": self.schedule.get_last_lr()[0],
            "grad_norm": result.norm,
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
        left_out = _skipped_in_words(skipped)
        left_out += f", {progress.skipped_steps} steps skipped" if progress.skipped_steps else ""
        tracker.report(
            f"epoch {progress.epoch} step {progress.step}: loss {interval.loss:.4f}, lr {record['learning_rate']:.2e}, "
            f"grad {result.norm:.2f}, {record['names_per_second']:.2f} names/s, waiting for data "
            f"{record['data_share']:.0%}, {record['memory_gib']:.1f} GiB{mfu}, {clock(left)} left{left_out}",
            {**record, "seconds_left": left},
        )

    def _first_line(self) -> str:
        """Return a description of the run, which is logged when the run starts."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        epochs = f"epochs {self.progress.epoch}..{self.config.num_epochs - 1}"
        if self.progress.epoch >= self.config.num_epochs:
            epochs = f"all {self.config.num_epochs} epochs are done"
        layout = f"FSDP {self.config.fsdp_sharding_strategy}" if self.config.fsdp else "whole on each"
        if self.config.fsdp and self.world.size == 1:
            layout = "whole: --fsdp has only one process"
        return (
            f"{self.folder}: {trained / 1e6:.1f} M parameters trained, {self.frozen_count / 1e6:.1f} M frozen, "
            f"{layout}; {self.world.size} process(es) on {self.world.device.type}; {epochs} of "
            f"{self.steps_per_epoch} steps; sets {', '.join(self.loaders)}"
        )


def _count_frozen(task: TrainTask) -> int:
    """Return the number of frozen parameters, before any are packed for the CPU."""
    return sum(parameter.numel() for parameter in task.parameters() if not parameter.requires_grad)


def equal_batches(config: TrainConfig, streams: int) -> int:
    """Return the number of batches that each sample stream yields per epoch, which must be the same for all datasets.

    Raises:
        OsmError: the datasets have different numbers of batches, which the message lists.
    """
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
        raise OsmError(
            f"all datasets must have the same number of batches per epoch, but they differ: {figures} (with "
            "--batch_size_<dataset> 0, a dataset of the config is left out)"
        )
    return next(iter(counts.values()))


def _skipped_in_words(skipped: Counter[str]) -> str:
    """Describe, for a log line, how many samples were skipped and how many annotations were unusable."""
    samples = {reason: count for reason, count in skipped.items() if not reason.startswith(ANNOTATION)}
    parts = {reason.removeprefix(ANNOTATION): count for reason, count in skipped.items() if reason not in samples}
    text = f", {sum(samples.values())} samples skipped {samples}" if samples else ""
    return text + (f", {sum(parts.values())} annotations unusable {parts}" if parts else "")
