"""Plans a training run: memory of a GPU, what makes the run fit, hours, loader cores and disk space."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from osm.data.shard_lists import expand_shards
from osm.errors import OsmError
from osm.planning.gpus import Gpu
from osm.planning.simulate import StepCost, StepRequest, simulate_step, window_flops
from osm.storage.locations import is_remote
from osm.training.run_config import Run
from osm.training.trainer import equal_batches

IMAGES_PER_SHARD = 1000
"""The default of the converters' `--num_files_per_shard`."""
_MARGIN = 1.3
"""Changes whose guessed peak is more than this many times the usable memory are not simulated."""


@dataclass(frozen=True)
class Cluster:
    """The machines of a run.

    Attributes:
        gpu: the kind of GPU.
        gpus: GPUs of each node. Each GPU has one process.
        nodes: number of nodes.
        mfu: the share of the peak FLOP/s that is assumed to be reached.
        sample_ms: CPU milliseconds of a data-loader worker for a training sample.
        sample_kb: kilobytes of an image and its annotations in a shard.
    """

    gpu: Gpu
    gpus: int
    nodes: int
    mfu: float
    sample_ms: float
    sample_kb: float

    def __post_init__(self) -> None:
        for flag, value in (("gpus", self.gpus), ("nodes", self.nodes)):
            if not 1 <= value <= 100_000:
                raise OsmError(f"--{flag} {value} is not between 1 and 100000")
        if not 0 < self.mfu <= 1:
            raise OsmError(f"--mfu {self.mfu:g} must be greater than 0 and at most 1")
        for flag, number in (("sample_ms", self.sample_ms), ("sample_kb", self.sample_kb)):
            if not 0 < number <= 1e6:
                raise OsmError(f"--{flag} {number:g} must be greater than 0 and at most 1e6")

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes


@dataclass(frozen=True)
class FlagChange:
    """A change of a run's flags that lowers the memory of a GPU, with its cost.

    Attributes:
        flags: the flags to add or to change, as on a command line.
        request: the changed step.
        price: what the change costs, in words.
    """

    flags: str
    request: StepRequest
    price: str


@dataclass(frozen=True)
class Tried:
    """A change that was simulated.

    Attributes:
        change: the change.
        peak: peak memory in bytes.
        fits: whether the peak is at most the usable memory of the GPU.
    """

    change: FlagChange
    peak: int
    fits: bool


@dataclass(frozen=True)
class TrainingPlan:
    """What a training run needs.

    Attributes:
        run: the run.
        cluster: the machines.
        request: the simulated step.
        cost: the cost of a micro-batch on one GPU.
        tried: the changes that were simulated because the run does not fit, without those that are clearly too little.
            The last one fits, unless none does.
        micro_batches: micro-batches of each process in the whole run.
        steps: optimizer steps of the whole run.
        shard_bytes: bytes of the shards, by dataset.
        shards_measured: the datasets whose shards are on this machine, so that their sizes are measured.
        other_windows: the tower's FLOPs for an image with other windows, by their side in pixels.
    """

    run: Run
    cluster: Cluster
    request: StepRequest
    cost: StepCost
    tried: tuple[Tried, ...]
    micro_batches: int
    steps: int
    shard_bytes: dict[str, int]
    shards_measured: tuple[str, ...]
    other_windows: dict[int, int]

    @property
    def fits(self) -> bool:
        return self.cost.memory.total <= self.cluster.gpu.usable

    @property
    def flops(self) -> int:
        """FLOPs of a micro-batch on one GPU."""
        return sum(self.cost.flops.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of the weights that a micro-batch reads: the tower once, bridge and LLM also in the backward pass.

        Activations are not counted, so the true traffic is larger.
        """
        size = 4 if self.request.precision == "fp32" or not self.request.gpu else 2
        tower = 0 if self.request.cached_tokens else self.cost.tower_parameters
        return size * (tower + 2 * self.cost.llm_parameters) + 4 * 2 * self.cost.bridge_parameters

    @property
    def floor_seconds(self) -> float:
        """The shortest possible time of a micro-batch, by the GPU's peak throughput and bandwidth."""
        gpu = self.cluster.gpu
        return max(self.flops / (gpu.tflops * 1e12), self.bytes_read / (gpu.gb_per_s * 1e9))

    @property
    def seconds(self) -> float:
        """The expected time of a micro-batch at the assumed MFU."""
        gpu = self.cluster.gpu
        return max(self.flops / (gpu.tflops * 1e12 * self.cluster.mfu), self.bytes_read / (gpu.gb_per_s * 1e9))

    @property
    def hours(self) -> float:
        """The expected hours of the whole run at the assumed MFU."""
        return self.seconds * self.micro_batches / 3600

    def implied_mfu(self, hours: float) -> float:
        """Return the MFU of a run that takes the given number of hours on these GPUs."""
        return self.flops * self.micro_batches / (hours * 3600 * self.cluster.gpu.tflops * 1e12)

    @property
    def images_per_second(self) -> float:
        """Images per second of all GPUs."""
        return self.request.images * self.cluster.processes / self.seconds

    @property
    def loader_cores(self) -> int:
        """CPU cores of each node that the data loaders keep busy."""
        return math.ceil(self.images_per_second / self.cluster.nodes * self.cluster.sample_ms / 1000)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: the trained weights and AdamW's two moments, in float32."""
        return 12 * self.cost.trained_parameters

    @property
    def checkpoints(self) -> int:
        """The number of checkpoints that exist at the end of the run."""
        config = self.run.training
        within = config.keep_checkpoints if config.checkpoint_every_steps else 0
        return within + (1 if config.delete_previous_checkpoint else config.num_epochs)

    @property
    def host_bytes(self) -> int:
        """Bytes of a node's memory while the weights are read, in float32: by every process, or with FSDP by one."""
        one = 4 * (self.cost.tower_parameters + self.cost.bridge_parameters + self.cost.llm_parameters)
        return one if self.request.sharded else one * self.cluster.gpus


def plan_training(run: Run, cluster: Cluster, search: bool = True) -> TrainingPlan:
    """Simulate a step of a run. If the run does not fit, find the cheapest change of its flags that makes it fit.

    Args:
        search: whether to look for changes that make the run fit.

    Raises:
        OsmError: the model cannot be built without weights, or the settings of the run do not fit together.
    """
    config = run.training
    batches = equal_batches(config, config.emulate_world_size or cluster.processes)
    request = StepRequest(
        run.model,
        images=sum(chosen.batch_size for chosen in config.used_sets.values()),
        masks=config.sample.masks_per_image,
        precision=config.precision,
        accumulates=config.gradient_accumulation_steps > 1,
        checkpointing=config.gradient_checkpointing,
        cached_tokens=bool(config.feature_cache),
        fsdp=config.fsdp_sharding_strategy if config.fsdp else "",
        processes=cluster.processes,
        processes_per_node=cluster.gpus,
        shard_size=config.fsdp_shard_size,
        gpu=not config.device.startswith("cpu"),
    )
    cost = simulate_step(request)
    tried: list[Tried] = []
    if search and request.gpu and cost.memory.total > cluster.gpu.usable:
        for change in changes(run, request, cost):
            if _guess(change.request, request, cost) > _MARGIN * cluster.gpu.usable:
                continue
            peak = simulate_step(change.request).memory.total
            tried.append(Tried(change, peak, peak <= cluster.gpu.usable))
            if tried[-1].fits:
                break
    sizes = {name: _shard_bytes(used.shards, cluster.sample_kb) for name, used in config.used_sets.items()}
    return TrainingPlan(
        run,
        cluster,
        request,
        cost,
        tuple(tried),
        micro_batches=batches * config.num_epochs,
        steps=math.ceil(batches / config.gradient_accumulation_steps) * config.num_epochs,
        shard_bytes={name: size for name, (size, _) in sizes.items()},
        shards_measured=tuple(name for name, (_, measured) in sizes.items() if measured),
        other_windows=window_flops(run.model),
    )


def _guess(changed: StepRequest, asked: StepRequest, cost: StepCost) -> float:
    """Return a rough peak of a changed step, to skip changes that are far from enough. A simulation takes seconds."""
    memory, shards = cost.memory, changed.shards / asked.shards
    half = 0.5 if changed.precision != asked.precision else 1.0
    weights = memory.frozen * half + memory.trained + memory.optimizer
    recomputed = 0.5 if changed.checkpointing and not asked.checkpointing else 1.0
    return weights / shards + memory.activations * half * recomputed * changed.images / asked.images


def changes(run: Run, asked: StepRequest, cost: StepCost) -> Iterator[FlagChange]:
    """Yield changes that lower the memory of a GPU, from the cheapest to the most expensive.

    Changes that the run's settings do not allow are left out.
    """
    config = run.training
    flags: list[str] = []
    if asked.precision == "fp32":
        asked, flags = replace(asked, precision="amp_bf16"), ["--precision amp_bf16"]
        yield FlagChange(flags[0], asked, "faster; products are rounded to bfloat16")
    divisor = math.gcd(*(chosen.batch_size for chosen in config.used_sets.values()))
    smaller, smaller_flags = asked, flags
    if divisor > 1 and not config.emulate_world_size:
        smaller = replace(asked, images=asked.images // divisor, accumulates=True)
        sizes = [f"--batch_size_{name} {used.batch_size // divisor}" for name, used in config.used_sets.items()]
        steps = config.gradient_accumulation_steps * divisor
        smaller_flags = [*flags, *sizes, f"--gradient_accumulation_steps {steps}"]
        yield FlagChange(" ".join(smaller_flags), smaller, "the same optimizer steps from smaller micro-batches")
    recomputing = [] if asked.checkpointing else ["--gradient_checkpointing"]
    if recomputing:
        share = (cost.flops["bridge"] + cost.flops["llm"]) / max(1, sum(cost.flops.values()))
        yield FlagChange(
            " ".join([*flags, *recomputing]),
            replace(asked, checkpointing=True),
            f"about {share:.0%} more FLOPs, because the bridge and the LLM run twice",
        )
    if asked.processes == 1 or asked.cached_tokens or asked.precision == "fp16":
        return
    gathered = (cost.tower_parameters + 2 * cost.llm_parameters) * 2 / 1e9
    price = f"each GPU receives about {gathered:.0f} GB of weights per micro-batch"
    sharding = [] if asked.fsdp else ["--fsdp"]
    if sharding:
        yield FlagChange(" ".join([*flags, *sharding]), replace(asked, fsdp="full"), price)
        if smaller is not asked:
            yield FlagChange(" ".join([*smaller_flags, *sharding]), replace(smaller, fsdp="full"), price)
    if recomputing and (sharding or smaller is not asked):
        last = replace(smaller, fsdp=asked.fsdp or "full", checkpointing=True)
        yield FlagChange(" ".join([*smaller_flags, *sharding, *recomputing]), last, f"{price}, and more FLOPs")


def _shard_bytes(pattern: str, sample_kb: float) -> tuple[int, bool]:
    """Return the bytes of a dataset's shards, and whether they were measured (or else estimated from their number)."""
    shards = expand_shards(pattern)
    found = [Path(shard) for shard in shards if not is_remote(shard) and Path(shard).is_file()]
    if found:
        return sum(path.stat().st_size for path in found), True
    return round(len(shards) * IMAGES_PER_SHARD * sample_kb * 1000), False
