"""The training config: a dataclass whose fields are the `training` section of a config file and flags of `train.py`.

This module does not import torch, so that `osm train --help` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from osm.config import choice
from osm.data.sample_config import SampleConfig
from osm.errors import OsmError, not_one_of
from osm.storage.locations import is_remote, public

PRECISIONS = ("fp32", "amp_bf16", "amp_bfloat16", "bf16", "fp16")
SCHEDULES = ("constant", "linear", "cosine")
STRATEGIES = ("full", "hybrid")


@dataclass(frozen=True)
class SetConfig:
    """One dataset of the training mix.

    Attributes:
        shards: the shards of the dataset; brace ranges are expanded, as in `{000..106}.tar`.
        batch_size: images of this dataset in each batch of each process. 0 = the dataset is not used.
        train_num_samples: images of this dataset per epoch, over all processes.
        loss_multiplier: the factor by which this dataset's loss is multiplied.
    """

    shards: str = ""
    batch_size: int = 0
    train_num_samples: int = 10_000
    loss_multiplier: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Each field is also a command-line flag with the same name.

    Attributes:
        run_name: the folder of the run, for its checkpoints, log and loss curve.
        resume_from_checkpoint: a checkpoint written by train.py. Empty = the newest checkpoint in the run's folder, if
            there is one.
        start_from: trained weights (a folder `final`, or a `.pt` file) from which a new run starts, with a fresh
            optimizer and schedule. Without --config, the model config in that file is used, if the file has one.
        delete_previous_checkpoint: delete the checkpoint of the previous epoch when a new one is written.
        save_initial: write the untrained model (step 0) to `<run_name>/initial`, for comparison with the trained model.
        gradient_accumulation_steps: number of batches per optimizer step.
        seed: the seed of the bridge's initial values and of all random draws.
        learning_rate: the peak learning rate of AdamW.
        lr_scheduler: the shape of the learning-rate schedule after the warmup.
        warmup_steps: optimizer steps during which the learning rate rises linearly from 0.
        weight_decay: the weight decay of AdamW.
        label_smoothing: the share of each target token that is distributed evenly over all tokens of the LLM.
        known_names: make the class names of the training datasets known names of the bridge's direct path
            (`model.bridge.direct_names`), and those of each dataset the names of its mode (`direct_mode_names`).
        known_classes: a JSON file with the name of each class of the tower's own classifier, or an empty string. The
            classes whose names are known names become evidence for them (`model.bridge.direct_classes`).
        names_loss: the weight of the known names' cross entropy, relative to that of the LLM's tokens.
        names_smoothing: the share of the known names' target that is distributed evenly over all known names.
        precision: fp32, amp_bf16 or amp_bfloat16 (bfloat16 autocast), bf16 (bfloat16 autocast, and frozen parts in
            bfloat16 on every device), or fp16 (float16 autocast with a loss scale).
        num_epochs: the number of epochs.
        logging_steps: optimizer steps between two lines of the log.
        workers: data-loader workers of each training process. 0 = data is loaded in the training process.
        dataset_resampled: draw shards with replacement.
        shuffle_buffer: size of the shuffle buffer, in samples, from which the next sample is drawn.
        shard_cache: a local folder for copies of remote shards, so that each shard is downloaded only once.
        shard_cache_gb: the largest size of the folder `shard_cache` in GB. 0 = no limit.
        pipeline: `module:function`, a webdataset pipeline of your own that replaces the built-in reading and shuffling.
        feature_cache: a folder for the tower's tokens of a fixed number of views of each image. Training then reads
            these tokens and does not run the tower.
        views: the number of fixed views of each image in the feature cache.
        emulate_world_size: draw the samples that a run with this many processes would draw. 0 = the actual number of
            processes.
        dist_backend: the backend of torch.distributed. Empty = nccl on CUDA, gloo on all other devices.
        dist_url: the address at which the processes rendezvous (the `init_method` of torch.distributed).
        no_set_device_rank: do not choose the GPU by the local rank.
        device: auto, cpu, cuda, cuda:1, ...
        num_threads: torch threads of each process on the CPU. 0 = the machine's cores divided by its processes.
        tf32: multiply float32 matrices in TF32 (10-bit mantissa) on GPUs that support TF32, which is faster but less
            exact.
        wandb: whether to log to Weights & Biases, and in which mode.
        wandb_project: the name of the project at Weights & Biases.
        gradient_checkpointing: recompute the activations of the bridge and the LLM in the backward pass, which takes
            less memory and more time.
        fsdp: shard the model over the processes (FSDP2).
        fsdp_use_orig_params: a flag of the published code, which has no effect. FSDP2 always uses the original
            parameters.
        fsdp_sharding_strategy: full, or hybrid (sharded within groups of processes, replicated across the groups).
        fsdp_shard_size: processes per group of the hybrid strategy. 0 = the processes of one machine.
        checkpoint_every_steps: optimizer steps between two checkpoints within an epoch, which are written in the
            background. 0 = checkpoints are written only after epochs and when the run is stopped.
        keep_checkpoints: the number of checkpoints from within epochs that are kept.
        held_out_share: the fraction of the samples that is held out for evaluation, and never trained on.
        eval_every_steps: optimizer steps between two evaluations on the held-out samples. 0 = no evaluation.
        eval_samples: number of held-out samples per dataset in an evaluation.
        best_metric: the evaluation metric that decides which model is saved as `best`.
        max_skipped_steps: stop after this many consecutive steps with a non-finite loss or gradient.
        max_bad_samples: stop if more than this fraction of a dataset's samples is broken.
        peak_tflops: the peak TFLOP/s of one device, from which the MFU is computed. 0 = the known value of the GPU.
        sample: how training samples are made from images and annotations.
        sets: the datasets of the training mix, by name.
    """

    run_name: str = "osm"
    resume_from_checkpoint: str = ""
    start_from: str = ""
    delete_previous_checkpoint: bool = False
    save_initial: bool = False
    gradient_accumulation_steps: int = 1
    seed: int = 42
    learning_rate: float = 1e-4
    lr_scheduler: str = choice("constant", SCHEDULES)
    warmup_steps: int = 5000
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    known_names: bool = False
    known_classes: str = ""
    names_loss: float = 1.0
    names_smoothing: float = 0.1
    precision: str = choice("fp32", PRECISIONS)
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
    wandb: str = choice("off", ("off", "offline", "online"))
    wandb_project: str = "osm"
    gradient_checkpointing: bool = False
    fsdp: bool = False
    fsdp_use_orig_params: bool = False
    fsdp_sharding_strategy: str = choice("full", STRATEGIES)
    fsdp_shard_size: int = 0
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 2
    held_out_share: float = 0.0
    eval_every_steps: int = 0
    eval_samples: int = 64
    best_metric: str = choice("accuracy", ("accuracy", "loss"))
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
                raise not_one_of(f"--{flag}", value, allowed)
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
                raise OsmError(f"--batch_size_{name} {chosen.batch_size} must be 0 (dataset not used) or more")
        for name, chosen in self.used_sets.items():
            if not chosen.shards:
                raise OsmError(f"--batch_size_{name} {chosen.batch_size} requires --{name}_shards")
            if chosen.train_num_samples < 1:
                raise OsmError(f"--train_num_samples_{name} {chosen.train_num_samples} must be 1 or more")

    def _check_shares(self) -> None:
        if not 0 <= self.max_bad_samples <= 1:
            raise OsmError(f"--max_bad_samples {self.max_bad_samples} must be between 0 and 1")
        if not 0 <= self.held_out_share < 1:
            raise OsmError(f"--held_out_share {self.held_out_share} must be at least 0 and less than 1")
        if not 0 <= self.label_smoothing < 1:
            raise OsmError(f"--label_smoothing {self.label_smoothing} must be at least 0 and less than 1")
        if not 0 <= self.names_smoothing < 1:
            raise OsmError(f"--names_smoothing {self.names_smoothing} must be at least 0 and less than 1")
        if not 0 < self.names_loss < 1e6:
            raise OsmError(f"--names_loss {self.names_loss} must be greater than 0 and less than 1e6")
        if self.known_classes and not self.known_names:
            raise OsmError(f"--known_classes {self.known_classes} requires --known_names")
        if self.eval_every_steps and not self.held_out_share:
            raise OsmError(
                f"--eval_every_steps {self.eval_every_steps} requires held-out samples; set --held_out_share"
            )
        if self.fsdp and self.precision == "fp16":
            raise OsmError(
                "--fsdp cannot be combined with --precision fp16, because the loss scale would differ between "
                "processes; use amp_bf16"
            )
        if self.fsdp and self.feature_cache:
            raise OsmError(
                f"--fsdp cannot be combined with --feature_cache {self.feature_cache}, because no process has the "
                "whole tower"
            )
        if not self.fsdp and (self.fsdp_shard_size or self.fsdp_sharding_strategy != "full"):
            raise OsmError("--fsdp_sharding_strategy and --fsdp_shard_size require --fsdp")
        if self.fsdp_shard_size and self.fsdp_sharding_strategy != "hybrid":
            raise OsmError(f"--fsdp_shard_size {self.fsdp_shard_size} requires --fsdp_sharding_strategy hybrid")

    def _check_reading(self) -> None:
        if self.shard_cache_gb and not self.shard_cache:
            raise OsmError(
                f"--shard_cache_gb {self.shard_cache_gb:g} has no effect without a shard cache; set --shard_cache too"
            )
        if is_remote(self.shard_cache):
            raise OsmError(f"--shard_cache {public(self.shard_cache)}: expected a local folder")
        if self.pipeline:
            for flag in ("dataset_resampled", "shard_cache", "feature_cache", "eval_every_steps"):
                if getattr(self, flag):
                    raise OsmError(
                        f"--{flag} cannot be combined with --pipeline {self.pipeline}, which reads the shards itself"
                    )

    @property
    def used_sets(self) -> dict[str, SetConfig]:
        return {name: chosen for name, chosen in self.sets.items() if chosen.batch_size > 0}
