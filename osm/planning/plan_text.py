"""Writes a plan as lines for people, and as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from osm.planning.naming_plan import NamingPlan
from osm.planning.training_plan import TrainingPlan

_GIB = 2**30


def training_lines(plan: TrainingPlan, hours: float | None = None) -> list[str]:
    """Return the lines of a training plan. With `hours`, also the MFU that such a run would have reached.

    A plan for a CPU has no times, because the peak throughput of CPUs is not known.
    """
    cluster, gpu = plan.cluster, plan.cluster.gpu
    where = f"{cluster.gpus} x {gpu.name} ({gpu.gib:g} GiB, {gpu.tflops:g} TFLOP/s, {gpu.gb_per_s:g} GB/s)"
    nodes = f" on each of {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    on_gpu = plan.request.gpu
    lines = [
        f"training on {where}{nodes}" if on_gpu else "training on a CPU",
        "",
        *_table("model", _model_rows(plan)),
        "",
        *_table(f"memory of a process at its peak: {_batch_words(plan)}", _memory_rows(plan)),
    ]
    if on_gpu:
        lines += [_verdict(plan), *_tried_lines(plan), "", *_table("time", _time_rows(plan, hours))]
    lines += ["", *_table("data and disk", _disk_rows(plan))]
    if quantization := plan.run.model.llm.quantization:
        lines += ["", f"model.llm.quantization {quantization} is not counted: the LLM takes less memory"]
    return lines


def _model_rows(plan: TrainingPlan) -> list[tuple[str, str]]:
    model, cost = plan.run.model, plan.cost
    name = model.base_model_name or model.tower.name or model.tower.kind
    count = "1 window" if cost.windows == 1 else f"{cost.windows} windows"
    return [
        ("tower", f"{_millions(cost.tower_parameters)} frozen; {name}; {count} of {model.sliding_window_size} pixels"),
        ("bridge", f"{_millions(cost.bridge_parameters)}; {model.bridge.kind}"),
        ("LLM", f"{_millions(cost.llm_parameters)} frozen; {model.base_model_name or model.llm.name}"),
        ("trained", _millions(cost.trained_parameters)),
    ]


def _batch_words(plan: TrainingPlan) -> str:
    asked = plan.request
    masks = "1 mask" if asked.masks == 1 else f"{asked.masks} masks"
    layout = f"FSDP ({asked.fsdp})" if asked.sharded else "a replica in each process"
    more = ", gradient checkpointing" if asked.checkpointing else ""
    return f"{asked.images} images with {masks} each, {asked.precision}, {layout}{more}"


def _memory_rows(plan: TrainingPlan) -> list[tuple[str, str]]:
    memory = plan.cost.memory
    rows = [
        ("frozen weights", memory.frozen),
        ("trained weights", memory.trained),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("peak", memory.total),
    ]
    if plan.request.gpu:
        rows.append(("usable", plan.cluster.gpu.usable))
    return [(name, f"{value / _GIB:.2f} GiB") for name, value in rows]


def _verdict(plan: TrainingPlan) -> str:
    if plan.fits:
        return "it fits"
    fitting = next((tried for tried in plan.tried if tried.fits), None)
    if fitting is None:
        return "it does not fit" + (", and no change of the flags makes it fit" if plan.tried else "")
    return f"it does not fit; add {fitting.change.flags}"


def _tried_lines(plan: TrainingPlan) -> list[str]:
    lines = []
    for tried in plan.tried:
        fits = "fits" if tried.fits else "does not fit"
        lines.append(f"  {tried.change.flags}: {tried.peak / _GIB:.1f} GiB, {fits} ({tried.change.price})")
    return lines


def _time_rows(plan: TrainingPlan, hours: float | None) -> list[tuple[str, str]]:
    images, mfu = plan.request.images, plan.cluster.mfu
    each = ", ".join(f"{name} {_flops(value / images)}" for name, value in plan.cost.flops.items())
    rows = [
        ("an image", f"{_flops(plan.flops / images)} ({each})"),
        *(
            (f"windows of {window}", f"{_flops(value)} in the tower (--sliding_window_size {window})")
            for window, value in sorted(plan.other_windows.items())
        ),
        ("weights read", f"{plan.bytes_read / 1e9:.1f} GB per micro-batch, at least"),
        (
            "a micro-batch",
            f"{_seconds(plan.floor_seconds)} at the GPU's peak, {_seconds(plan.seconds)} at {mfu:.0%} of it",
        ),
        ("the whole run", f"{plan.steps} optimizer steps, {plan.hours:.1f} hours at {mfu:.0%} MFU"),
    ]
    if hours is not None:
        rows.append((f"{hours:g} hours", f"would be an MFU of {plan.implied_mfu(hours):.1%}"))
    return rows


def _disk_rows(plan: TrainingPlan) -> list[tuple[str, str]]:
    cluster = plan.cluster
    total = sum(plan.shard_bytes.values())
    estimated = [name for name in plan.shard_bytes if name not in plan.shards_measured]
    how = f"; {', '.join(estimated)} estimated at {cluster.sample_kb:g} KB an image" if estimated else ", measured"
    checkpoints = plan.checkpoints * plan.checkpoint_bytes
    loaders = ("loaders", f"{plan.images_per_second:.0f} images/s, {plan.loader_cores} CPU cores on each node")
    return [
        *([loaders] if plan.request.gpu else []),
        ("shards", f"{total / 1e9:.0f} GB{how}"),
        (
            "checkpoints",
            f"{checkpoints / 1e9:.1f} GB: {plan.checkpoints} of {plan.checkpoint_bytes / 1e9:.2f} GB "
            "(trained weights and optimizer)",
        ),
        ("host memory", f"{plan.host_bytes / 1e9:.0f} GB on each node while the weights are read"),
    ]


def naming_lines(plan: NamingPlan) -> list[str]:
    """Return the lines of a plan for naming masks."""
    cost, gpu = plan.cost, plan.gpu
    fits = "it fits" if plan.fits else "it does not fit"
    words = f"{plan.images} images" if plan.images > 1 else "1 image"
    rows = [
        ("weights", f"{cost.weights / _GIB:.1f} GiB"),
        ("peak", f"{cost.peak / _GIB:.1f} GiB of {gpu.usable / _GIB:.1f} usable: {fits}"),
        ("an image", f"{_flops(cost.tower_flops)} in the tower, once"),
        *([("a mask", f"{_flops(cost.mask_flops)} in the tower, for its zoom windows")] if cost.mask_flops else []),
        ("a name", f"{_flops(cost.row_flops)} in the bridge and the LLM"),
        ("floor", f"{_seconds(plan.floor_seconds)} for a batch at the GPU's peak"),
        ("names", f"{plan.names_per_second:.1f} per second and GPU at {plan.mfu:.0%} MFU"),
    ]
    title = f"naming on one {gpu.name}: {words} in a batch, {plan.masks} masks each, {plan.modes} modes"
    return _table(title, rows)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [title, *(f"  {name:<{width}}  {value}" for name, value in rows)]


def _flops(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e10 else f"{count / 1e9:.2f} GFLOP"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.2g} ms"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def training_record(plan: TrainingPlan, hours: float | None = None) -> dict[str, Any]:
    """Return a training plan as a JSON document. Sizes are in bytes, times in seconds."""
    gpu, cost = plan.cluster.gpu, plan.cost
    memory = {name: getattr(cost.memory, name) for name in cost.memory.__dataclass_fields__}
    record = {
        "gpu": {"name": gpu.name, "tflops": gpu.tflops, "gb_per_s": gpu.gb_per_s, "gib": gpu.gib},
        "gpus": plan.cluster.gpus,
        "nodes": plan.cluster.nodes,
        "parameters": {
            "tower": cost.tower_parameters,
            "bridge": cost.bridge_parameters,
            "llm": cost.llm_parameters,
            "trained": cost.trained_parameters,
        },
        "images": plan.request.images,
        "masks": plan.request.masks,
        "memory": {**memory, "peak": cost.memory.total, "usable": gpu.usable},
        "fits": plan.fits,
        "tried": [
            {"flags": tried.change.flags, "peak": tried.peak, "fits": tried.fits, "price": tried.change.price}
            for tried in plan.tried
        ],
        "flops": cost.flops,
        "other_windows": {str(window): value for window, value in plan.other_windows.items()},
        "floor_seconds": plan.floor_seconds,
        "mfu": plan.cluster.mfu,
        "seconds": plan.seconds,
        "steps": plan.steps,
        "micro_batches": plan.micro_batches,
        "hours": plan.hours,
        "loader_cores": plan.loader_cores,
        "shard_bytes": plan.shard_bytes,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "checkpoints": plan.checkpoints,
        "host_bytes": plan.host_bytes,
    }
    return record if hours is None else {**record, "implied_mfu": plan.implied_mfu(hours)}


def naming_record(plan: NamingPlan) -> dict[str, Any]:
    """Return a plan for naming masks as a JSON document."""
    return {
        "images": plan.images,
        "masks": plan.masks,
        "modes": plan.modes,
        "weights": plan.cost.weights,
        "peak": plan.cost.peak,
        "fits": plan.fits,
        "tower_flops": plan.cost.tower_flops,
        "mask_flops": plan.cost.mask_flops,
        "row_flops": plan.cost.row_flops,
        "floor_seconds": plan.floor_seconds,
        "names_per_second": plan.names_per_second,
    }
