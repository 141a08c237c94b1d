"""The training config, its flags, and how a YAML and flags become one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from osm.config import ModelConfig, from_dict, load_yaml
from osm.data.sample import SampleConfig
from osm.data.shard_lists import expand_shards
from osm.data.shard_writer import CATEGORIES
from osm.data.stream import user_pipeline
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.forms import form_class
from osm.models import checkpoint
from osm.models.factory import base_config
from osm.storage import remote
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, sibling
from osm.training.saved import local_checkpoint

PRECISIONS = ("fp32", "amp_bf16", "amp_bfloat16", "bf16", "fp16")
SCHEDULES = ("constant", "linear", "cosine")
STRATEGIES = ("full", "hybrid")


@dataclass(frozen=True)
class SetConfig:
    """One set of the mix; `batch_size` (images a step and process) 0 = the set is not used."""

    shards: str = ""
    batch_size: int = 0
    train_num_samples: int = 10_000
    loss_multiplier: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; a field is the flag of the same name.

    Attributes:
        run_name: the folder of the run: checkpoints, log, curve.
        resume_from_checkpoint: a `.pt` of train.py; empty = the newest one of the run's folder, if there is one.
        start_from: trained weights (a folder `final`, or a `.pt`) that a new run starts with; optimizer and schedule
            are fresh. Without --config the file's own model config holds, where it has one.
        save_initial: write the model of step 0 to `<run_name>/initial`, to be measured beside the trained one.
        feature_cache, views: train on the tower's tokens of that many fixed views an image, kept in this folder.
        emulate_world_size: draw the samples of a run on that many processes (0 = as many as there are).
        num_threads: torch threads of a process on CPU; 0 = cores / processes of this machine.
        tf32: multiply float32 matrices in TF32 on GPUs that have it (10 bits of mantissa): faster, less exact.
        wandb: off | offline | online.
        gradient_checkpointing: recompute the activations of the bridge and the LLM in the backward, for less memory.
        fsdp: shard the model over the processes (FSDP2). fsdp_sharding_strategy: full | hybrid (shards within groups
            of fsdp_shard_size processes, 0 = those of one machine; copies of that across the groups).
        fsdp_use_orig_params: accepted as published; FSDP2 always does.
        checkpoint_every_steps: a checkpoint that is resumed from, written beside the training (0 = only after epochs
            and when stopped). keep_checkpoints: so many of these are kept.
        held_out_share: of the samples, never trained on. eval_every_steps: evaluate on them (0 = never), on
            eval_samples of each set. best_metric: accuracy | loss: what decides which model is kept as `best`.
        max_skipped_steps: stop after so many steps in a row whose loss or gradient was not finite.
        max_bad_samples: stop where more than this share of a set's samples is broken.
        peak_tflops: of one device, for the MFU; 0 = known GPUs alone.
        shard_cache, shard_cache_gb: a folder of this machine for copies of remote shards, fetched once, and the GB that
            it may hold (0 = as many as come).
        pipeline: `module:function`, a webdataset pipeline of your own instead of our reading and shuffling of shards.
    """

    run_name: str = "osm"
    resume_from_checkpoint: str = ""
    start_from: str = ""
    delete_previous_checkpoint: bool = False
    save_initial: bool = False
    gradient_accumulation_steps: int = 1
    seed: int = 42
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    warmup_steps: int = 5000
    weight_decay: float = 0.1
    precision: str = "fp32"
    num_epochs: int = 1
    logging_steps: int = 100
    workers: int = 1
    dataset_resampled: bool = False
    shuffle_buffer: int = 500
    shard_cache: str = ""
    shard_cache_gb: float = 0.0
    pipeline: str = ""
    feature_cache: str = ""
    views: int = 4
    emulate_world_size: int = 0
    dist_backend: str = ""
    dist_url: str = "env://"
    no_set_device_rank: bool = False
    device: str = "auto"
    num_threads: int = 0
    tf32: bool = False
    wandb: str = "off"
    wandb_project: str = "osm"
    gradient_checkpointing: bool = False
    fsdp: bool = False
    fsdp_use_orig_params: bool = False
    fsdp_sharding_strategy: str = "full"
    fsdp_shard_size: int = 0
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 2
    held_out_share: float = 0.0
    eval_every_steps: int = 0
    eval_samples: int = 64
    best_metric: str = "accuracy"
    max_skipped_steps: int = 20
    max_bad_samples: float = 0.05
    peak_tflops: float = 0.0
    sample: SampleConfig = field(default_factory=SampleConfig)
    sets: dict[str, SetConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag, value, allowed in (
            ("fsdp_sharding_strategy", self.fsdp_sharding_strategy, STRATEGIES),
            ("best_metric", self.best_metric, ("accuracy", "loss")),
            ("lr_scheduler", self.lr_scheduler, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("wandb", self.wandb, ("off", "offline", "online")),
        ):
            if value not in allowed:
                raise OsmError(f"--{flag} {value!r} is not one of {', '.join(allowed)}")
        one_or_more = "gradient_accumulation_steps num_epochs logging_steps shuffle_buffer views keep_checkpoints"
        for flag in f"{one_or_more} max_skipped_steps eval_samples".split():
            if getattr(self, flag) < 1:
                raise OsmError(f"--{flag} {getattr(self, flag)} must be 1 or more")
        zero_or_more = "workers warmup_steps learning_rate weight_decay emulate_world_size num_threads seed"
        more = "fsdp_shard_size checkpoint_every_steps eval_every_steps peak_tflops shard_cache_gb"
        for flag in f"{zero_or_more} {more}".split():
            if getattr(self, flag) < 0:
                raise OsmError(f"--{flag} {getattr(self, flag)} must be 0 or more")
        self._check_shares()
        self._check_reading()
        for name, chosen in self.sets.items():
            if chosen.batch_size < 0:
                raise OsmError(f"--batch_size_{name} {chosen.batch_size} must be 0 (not used) or more")
        for name, chosen in self.used_sets.items():
            if not chosen.shards:
                raise OsmError(f"--batch_size_{name} {chosen.batch_size}, but no --{name}_shards")
            if chosen.train_num_samples < 1:
                raise OsmError(f"--train_num_samples_{name} {chosen.train_num_samples} must be 1 or more")

    def _check_shares(self) -> None:
        if not 0 <= self.max_bad_samples <= 1:
            raise OsmError(f"--max_bad_samples {self.max_bad_samples} is a share: between 0 and 1")
        if not 0 <= self.held_out_share < 1:
            raise OsmError(f"--held_out_share {self.held_out_share} is a share: from 0 to less than 1")
        if self.eval_every_steps and not self.held_out_share:
            raise OsmError(
                f"--eval_every_steps {self.eval_every_steps} needs samples that are not trained on: --held_out_share"
            )
        if self.fsdp and self.precision == "fp16":
            raise OsmError("--fsdp does not go with --precision fp16, whose loss scale it does not share: amp_bf16")
        if self.fsdp and self.feature_cache:
            raise OsmError(
                f"--fsdp does not go with --feature_cache {self.feature_cache}: its processes hold no whole tower"
            )
        if not self.fsdp and (self.fsdp_shard_size or self.fsdp_sharding_strategy != "full"):
            raise OsmError("--fsdp_sharding_strategy and --fsdp_shard_size need --fsdp")
        if self.fsdp_shard_size and self.fsdp_sharding_strategy != "hybrid":
            raise OsmError(f"--fsdp_shard_size {self.fsdp_shard_size} needs --fsdp_sharding_strategy hybrid")

    def _check_reading(self) -> None:
        if self.shard_cache_gb and not self.shard_cache:
            raise OsmError(f"--shard_cache_gb {self.shard_cache_gb:g} needs --shard_cache, the folder that it bounds")
        if is_remote(self.shard_cache):
            raise OsmError(f"--shard_cache {public(self.shard_cache)}: expected a folder of this machine")
        if self.pipeline:
            for flag in ("dataset_resampled", "shard_cache", "feature_cache", "eval_every_steps"):
                if getattr(self, flag):
                    raise OsmError(
                        f"--{flag} does not go with --pipeline {self.pipeline}, which reads the shards itself"
                    )
            user_pipeline(self.pipeline)

    @property
    def used_sets(self) -> dict[str, SetConfig]:
        return {name: chosen for name, chosen in self.sets.items() if chosen.batch_size > 0}


# Model fields with a flag; the widths are checked against the built model.
MODEL_FLAGS = {
    "base_model_name": str,
    "input_size": int,
    "sliding_window_size": int,
    "sliding_window_stride": int,
    "context_enlarge_ratio": float,
}
WIDTH_FLAGS = ("backbone_output_stride", "backbone_output_channel", "maskqformer_channel", "llm_channel")
_PUBLISHED_DASHES = ("dist_backend", "dist_url", "no_set_device_rank")


@dataclass(frozen=True)
class Run:
    """Everything `train.py` was asked for."""

    training: TrainConfig
    model: ModelConfig
    widths: dict[str, int | None]
    table: DatasetTable


def parse(argv: Sequence[str] | None = None) -> Run:
    """Parses the command line; `--datasets` is read first, as its rows bring flags of their own.

    Raises:
        OsmError: a value that is not right. SystemExit: an unknown flag (argparse).
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--datasets", default=None)
    path = first.parse_known_args(argv)[0].datasets
    table = DatasetTable().with_yaml(path) if path else DatasetTable()
    given = vars(parser(table).parse_args(argv))
    return resolve(given, table)


def resolve(given: dict[str, Any], table: DatasetTable) -> Run:
    """Defaults, then the YAML of `--config`, then the flags that were given."""
    yaml_name = given.get("config", "osm")
    section = dict(load_yaml(yaml_name).get("training", {}))
    sample, sets = _mapping(section, "sample"), _mapping(section, "sets")
    sets = {name: _mapping(sets, name, "training.sets") for name in list(sets)}
    for name in (f.name for f in dataclasses.fields(SampleConfig)):
        if name in given:
            sample[name] = given[name]
    for name in table:
        flags = _set_flags(name)
        chosen = {field_name: given[flag] for flag, field_name in flags.items() if flag in given}
        if chosen:
            sets[name] = {**sets.get(name, {}), **chosen}
    unknown = sorted(set(sets) - set(table))
    if unknown:
        raise OsmError(f"training.sets: {unknown[0]!r} is no dataset; name it in --datasets. Known: {', '.join(table)}")
    scalars = {f.name: given[f.name] for f in _scalar_fields(TrainConfig) if f.name in given}
    training = from_dict(TrainConfig, {**section, **scalars, "sample": sample, "sets": sets}, "training")
    if not training.used_sets:
        raise OsmError(
            "no set is used: give --batch_size_<set> and --<set>_shards for at least one of " + ", ".join(table)
        )
    for name, used in training.used_sets.items():
        table = table.with_row(_trained_row(table[name], used.shards))
        _ = table[name].label_set  # a missing or wrong label file is said now, not after the model is loaded
    if training.resume_from_checkpoint:
        # A remote one is fetched before the processes wait for each other, and anew for each run.
        local_checkpoint.cache_clear()
        local_checkpoint(training.resume_from_checkpoint)
    overrides = {name: given[name] for name in MODEL_FLAGS if name in given and name != "base_model_name"}
    base = given.get("base_model_name", yaml_name)
    own, modes = checkpoint.config_and_modes(training.start_from) if training.start_from else (None, [])
    if own is None or {"config", "base_model_name"} & given.keys():
        model = base_config(base, default=yaml_name, **overrides)
    elif overrides:
        raise OsmError(
            f"--{next(iter(overrides))}: the model of --start_from {public(training.start_from)} has its own sizes"
        )
    else:
        model = own
    model = model.with_modes([*modes, *training.used_sets])
    return Run(training, model, {name: given.get(name) for name in WIDTH_FLAGS}, table)


def _trained_row(row: Dataset, shards: str) -> Dataset:
    """A row as its shards are read: where it has no labels, those of the `categories.json` that the converter wrote
    beside them; where the samples have phrases of their own, none at all."""
    if row.labels:
        return row
    if form_class(row.form).phrased:
        return replace(row, json_file=None)
    beside = sibling(expand_shards(shards)[0], CATEGORIES)
    if is_remote(beside):
        with contextlib.suppress(OsmError):  # it need not be there, and stores refuse what they do not have
            if remote.exists(beside):
                return replace(row, labels=str(localize(beside, "labels")))
        return row
    return replace(row, labels=beside) if Path(beside).exists() else row


def _mapping(section: dict[str, Any], name: str, where: str = "training") -> dict[str, Any]:
    """Takes a part of a section that flags are laid over."""
    value = section.pop(name, None)
    if not isinstance(value, dict | None):
        raise OsmError(f"{where}.{name}: expected a mapping, found {value!r}")
    return dict(value or {})


def parser(table: DatasetTable) -> argparse.ArgumentParser:
    """All flags; those of the sets are made from the table's rows. What is not given is absent from the namespace."""
    out = argparse.ArgumentParser(
        prog="train.py", argument_default=argparse.SUPPRESS, allow_abbrev=False, description="Trains an OSM bridge."
    )
    out.add_argument("--config", help="a config of the project (osm, osm_small, osm_nano) or a YAML file [osm]")
    out.add_argument("--datasets", help="a YAML that adds sets of your own to the table")
    for name, kind in MODEL_FLAGS.items():
        out.add_argument(f"--{name}", type=kind, help="model; default: the config's")
    for name in WIDTH_FLAGS:
        out.add_argument(f"--{name}", type=int, help="checked against the base model")
    for cls in (TrainConfig, SampleConfig):
        for item in _scalar_fields(cls):
            names = [f"--{item.name}"]
            if item.name in _PUBLISHED_DASHES:
                names.insert(0, f"--{item.name.replace('_', '-')}")
            if item.type is bool:
                out.add_argument(*names, dest=item.name, action="store_true")
            else:
                out.add_argument(*names, dest=item.name, type=item.type, help=f"[{item.default}]")
    for name in table:
        kinds = get_type_hints(SetConfig)
        for flag, field_name in _set_flags(name).items():
            out.add_argument(f"--{flag}", type=kinds[field_name])
    return out


@dataclass(frozen=True)
class _Scalar:
    name: str
    type: type
    default: Any


def _scalar_fields(cls: type) -> list[_Scalar]:
    hints = get_type_hints(cls)
    return [
        _Scalar(f.name, hints[f.name], f.default)
        for f in dataclasses.fields(cls)
        if hints[f.name] in (str, int, float, bool)
    ]


def _set_flags(name: str) -> dict[str, str]:
    """Flag -> field of `SetConfig`, for one set."""
    return {
        f"{name}_shards": "shards",
        f"batch_size_{name}": "batch_size",
        f"train_num_samples_{name}": "train_num_samples",
        f"loss_multiplier_{name}": "loss_multiplier",
    }
