"""Simulates a training step and the naming of masks with fake tensors, and returns FLOPs and memory.

The code that runs is the code of a real run: `TrainTask`, `parallelize`, the optimizer, and the LLM's prefix and
decoding steps. With FSDP, the processes talk through torch's fake process group, whose collectives do nothing.

Shapes: N images, R rows (masks), S input size, T text tokens.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from osm.data.batch import Batch
from osm.data.processor import MAX_TEXT_TOKENS, Text
from osm.errors import OsmError
from osm.models.blank import blank_model
from osm.models.bridges.bridge import Instruction
from osm.models.llm_forward import read_prefix, read_tokens
from osm.models.masks import MaskFeatures, context_mask
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.random_values import WithoutRandomValues
from osm.models.towers import TOWERS
from osm.models.windows import SlidingWindows
from osm.planning.fake_tensors import DeviceMode, LiveBytes, bytes_of, gpu_kernels, local_part, to_fake
from osm.training import parallel
from osm.training.distributed import World
from osm.training.optimization import autocast, hold_frozen, make_optimizer
from osm.training.step import MAX_GRAD_NORM
from osm.training.task import TrainTask

ANSWER_TOKENS = 4
"""Tokens that the LLM generates for a name, with the end token. Names of the nine datasets have 2 to 3 on average."""
PROMPT_TOKENS = 14
"""Tokens of the published prompt of the benchmark, with BOS, in the tokenizers of Llama and Qwen, with a margin."""


@dataclass(frozen=True)
class StepRequest:
    """What one process does in an optimizer step.

    Attributes:
        model: the model config. `modes` contains the modes of the datasets.
        images: images per micro-batch of a process.
        masks: masks per image.
        precision: the training precision, as in `TrainConfig`.
        accumulates: whether an optimizer step has several micro-batches.
        checkpointing: whether activations are recomputed in the backward pass.
        cached_tokens: whether the tower's tokens are read from a feature cache.
        fsdp: the FSDP strategy (`full` or `hybrid`), or an empty string for replicas of the whole model.
        processes: processes of the run.
        processes_per_node: processes of a machine.
        shard_size: processes in a group of the hybrid strategy; 0 = those of a machine.
        gpu: whether the process runs on a GPU, or else on a CPU.
    """

    model: ModelConfig
    images: int
    masks: int = 1
    precision: str = "fp32"
    accumulates: bool = False
    checkpointing: bool = False
    cached_tokens: bool = False
    fsdp: str = ""
    processes: int = 1
    processes_per_node: int = 1
    shard_size: int = 0
    gpu: bool = True

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded by FSDP."""
        return bool(self.fsdp) and self.processes > 1

    @property
    def shards(self) -> int:
        """The number of processes that share one copy of the model."""
        if not self.sharded:
            return 1
        return self.processes if self.fsdp == "full" else self.shard_size or self.processes_per_node


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a process at the peak of a step, by part.

    Attributes:
        frozen: the frozen weights and the buffers; with FSDP, this process's shards.
        trained: the trained weights; with FSDP, this process's shards.
        gradients: the gradients that exist at the peak.
        optimizer: AdamW's two moments.
        activations: everything else: activations kept for the backward pass, temporary tensors, and with FSDP the
            parameters that are gathered at the peak.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StepCost:
    """The cost of one micro-batch on one process.

    Attributes:
        memory: the peak memory of the step.
        flops: FLOPs by part (`tower`, `bridge`, `llm`, `backward`). Recomputed activations are part of `backward`.
        tower_parameters, bridge_parameters, llm_parameters: parameters of the parts.
        trained_parameters: the parameters that are trained.
        windows: the number of windows of an image.
    """

    memory: StepMemory
    flops: dict[str, int]
    tower_parameters: int
    bridge_parameters: int
    llm_parameters: int
    trained_parameters: int
    windows: int


def simulate_step(asked: StepRequest) -> StepCost:
    """Simulate an optimizer step of one process: micro-batches, gradient clipping and the AdamW update.

    Raises:
        OsmError: the model cannot be built, or the shard size does not divide the number of processes.
    """
    mode, live = DeviceMode(), LiveBytes()
    model = blank_model(asked.model)
    hold_frozen(model, asked.precision, torch.device("cuda" if asked.gpu else "cpu"))
    to_fake(model, mode)
    tower, bridge, llm = (sum(p.numel() for p in part.parameters()) for part in (model.tower, model.bridge, model.llm))
    task = TrainTask(model.train(), Pixels())  # type: ignore[arg-type]
    trained = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    if asked.checkpointing:
        parallel.enable_gradient_checkpointing(task)
    flops = _PartFlops(task)
    with contextlib.ExitStack() as stack:
        if asked.gpu:
            stack.enter_context(gpu_kernels())
        stack.enter_context(live.watching())
        world = stack.enter_context(_fake_world(asked)) if asked.sharded else None
        with mode:
            forward = parallel.parallelize(task, world, True, asked.fsdp, asked.shard_size, {}) if world else task
        live.add([*task.parameters(), *(buffer for buffer in task.buffers() if _is_fake(buffer))])
        batch = training_batch(model, mode, asked.images, asked.masks, asked.cached_tokens)
        live.add(part for part in (batch.canvas, batch.tokens) if part is not None)
        with mode, live:
            memory = _run_step(task, forward, batch, asked, live, flops)
    return StepCost(memory, flops.of_part, tower, bridge, llm, trained, model.windows.count)


def _run_step(
    task: TrainTask, forward: nn.Module, batch: Batch, asked: StepRequest, live: LiveBytes, flops: _PartFlops
) -> StepMemory:
    """Run the second step of a run. AdamW's moments exist from its start, which they do not in the first step."""
    weights = list(task.parameters())
    trained = [parameter for parameter in weights if parameter.requires_grad]
    optimizer = make_optimizer(task, 1e-4, 0.05)
    for group in optimizer.param_groups:
        group["foreach"] = asked.gpu  # torch's default on a GPU, which it does not choose for fake tensors
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Accumulated gradients exist in the next micro-batch. DDP's buckets, which hold the gradients, always exist.
    if asked.sharded or (asked.processes == 1 and not asked.accumulates):
        optimizer.zero_grad()
    moments = [value for state in optimizer.state.values() for value in state.values() if _is_fake(value)]
    live.restart()
    # Without an exchange, FSDP accumulates whole gradients, so the last micro-batch needs more memory than the first.
    for last in (False, True) if asked.sharded and asked.accumulates else (True,):
        with parallel.exchanges_gradients(forward, last), flops if last else contextlib.nullcontext():
            with autocast(asked.precision, torch.device("cpu")):
                losses_R, _ = forward(batch)
            flops.end_forward()
            losses_R.sum().backward()
            del losses_R
    nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()
    static = {
        "frozen": bytes_of([*(p for p in weights if not p.requires_grad), *filter(_is_fake, task.buffers())]),
        "trained": bytes_of(trained),
        "gradients": live.at_peak(p.grad for p in trained if p.grad is not None),
        "optimizer": bytes_of(moments),
    }
    host = sum(part.nbytes for part in (batch.masks, *vars(batch.text).values()))  # real tensors, not in `live`
    return StepMemory(**static, activations=live.peak - sum(static.values()) + host)


class _PartFlops:
    """Counts the FLOPs of a step: the forward passes of tower, bridge and LLM, and the backward pass.

    Attributes:
        of_part: FLOPs by part. Recomputed activations belong to the backward pass.
    """

    def __init__(self, task: TrainTask) -> None:
        self.of_part = dict.fromkeys(("tower", "bridge", "llm", "backward"), 0)
        self._counter = FlopCounterMode(display=False)
        self._before = 0
        for name, module in (("tower", task.model.tower), ("llm", task.model.llm)):
            module.register_forward_pre_hook(lambda *_: self._end_part("bridge"))
            module.register_forward_hook(lambda *_, name=name: self._end_part(name))

    def end_forward(self) -> None:
        """Count everything until the end of the context as the backward pass."""
        self._end_part("bridge")

    def _end_part(self, name: str) -> None:
        total = self._counter.get_total_flops()
        self.of_part[name] += total - self._before
        self._before = total

    def __enter__(self) -> _PartFlops:
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end_part("backward")
        self._counter.__exit__(*error)


def _is_fake(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and isinstance(local_part(tensor), FakeTensor)


def training_batch(
    model: OmniScientModel, mode: DeviceMode | None, images: int, masks: int, cached_tokens: bool
) -> Batch:
    """Return a batch whose images are fake, and whose masks and texts are real. Texts have the maximum length.

    Args:
        mode: the mode in which the images are made; None = the images are real.
    """
    rows, size = images * masks, model.config.input_size
    own = next((name for name in model.config.modes if name != "any"), "any")
    shape = (images, 3, size, size)
    tokens_shape = tuple(model.window_pos_embed.shape[1:])
    with mode or contextlib.nullcontext():
        # Zoom windows are cut out of the images even if the tokens of the images are cached.
        canvas = None if cached_tokens and not model.zoom else torch.empty(shape, dtype=torch.uint8)
        tokens = torch.empty((images, *tokens_shape), dtype=torch.float16) if cached_tokens else None
    return Batch(
        [own] * rows,
        [own] * (rows // 2) + ["any"] * (rows - rows // 2),
        canvas,
        tokens,
        torch.arange(images).repeat_interleave(masks),
        _masks(rows, size),
        _text(rows, MAX_TEXT_TOKENS),
        [str(number) for number in range(images)],
        [""] * rows,
    )


def _prompt_tokens(config: ModelConfig) -> int:
    """Estimate the number of tokens of the prompt, with BOS, without a tokenizer."""
    if not config.prompt:
        return PROMPT_TOKENS
    return min(MAX_TEXT_TOKENS, 1 + len(re.findall(r"\w+|[^\w\s]", config.prompt)))


def _masks(rows: int, size: int) -> Tensor:
    """Return masks (R, 1, S, S) of a square that covers a ninth of the image."""
    masks_R1SS = torch.zeros(rows, 1, size, size, dtype=torch.bool)
    masks_R1SS[:, :, size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = True
    return masks_R1SS


def _text(rows: int, length: int) -> Text:
    ids_RT = torch.ones(rows, length, dtype=torch.long)
    labels_RT = ids_RT.clone()
    labels_RT[:, 0] = -100
    return Text(ids_RT, ids_RT, labels_RT, ids_RT, ids_RT)


class Pixels:
    """Stands in for a `Processor` in a training task, which only normalizes images. No tokenizer is needed."""

    prompt_tokens = PROMPT_TOKENS

    def pixel_values(self, canvas: Tensor) -> Tensor:
        return canvas.contiguous().float() / 255


@contextlib.contextmanager
def _fake_world(asked: StepRequest) -> Iterator[World]:
    """Start a process group of the asked size in which this process is rank 0 and collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=asked.processes, store=FakeStore())
    try:
        yield World(0, asked.processes, torch.device("cpu"), asked.processes_per_node)
    finally:
        dist.destroy_process_group()


def window_flops(config: ModelConfig) -> dict[int, int]:
    """Return the tower's FLOPs for an image with other windows than the config's: the whole image, and 224 pixels.

    Large windows cost more, because attention is quadratic in the number of tokens, but every token sees the whole
    image. Windows that the tower does not support are left out.

    Returns:
        side of the windows in pixels -> FLOPs.
    """
    found = {}
    for window in {config.input_size, 224} - {config.sliding_window_size}:
        if config.base_model_name or window > config.input_size:
            continue
        try:
            tower = TOWERS.get(config.tower.kind)
            with torch.device("meta"), WithoutRandomValues():
                built = tower.blank(config.tower, window)
                count = SlidingWindows(config.input_size, window, window, built.patch).count
                with FlopCounterMode(display=False) as counter, torch.no_grad(), gpu_kernels():
                    built.eval()(torch.empty(1, 3, window, window))
            replace(
                config, sliding_window_size=window, sliding_window_stride=window
            )  # raises if other settings do not allow such windows
        except OsmError:
            continue
        found[window] = count * counter.get_total_flops()
    return found


# -- naming ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamingCost:
    """The cost of naming the masks of one image on one device.

    Attributes:
        weights: bytes of all weights.
        peak: bytes at the peak, with the weights.
        tower_flops: FLOPs of the tower, which runs once per image.
        row_flops: FLOPs of the bridge and the LLM for each row (a mask in a mode), with all tokens of its name.
        llm_bytes: bytes of the LLM's weights, all of which are read for every generated token.
        mask_flops: FLOPs of the tower for the zoom windows of each mask; 0 without zoom windows.
    """

    weights: int
    peak: int
    tower_flops: int
    row_flops: float
    llm_bytes: int
    mask_flops: int = 0


def simulate_naming(config: ModelConfig, images: int, masks: int, modes: int, gpu: bool) -> NamingCost:
    """Simulate how `images` images with `masks` masks each are named in `modes` modes, all masks in one batch.

    Args:
        gpu: whether the device is a GPU, on which frozen weights are in bfloat16 (see `load_recognizer`), or a CPU.
    """
    mode, live, counter = DeviceMode(), LiveBytes(), FlopCounterMode(display=False)
    model = blank_model(config).requires_grad_(False)
    if gpu:
        model.hold_frozen(torch.bfloat16)
        model.bridge.follow(torch.bfloat16)
    to_fake(model, mode)
    live.add([*model.parameters(), *filter(_is_fake, model.buffers())])
    weights, llm_bytes = live.live, bytes_of(model.llm.parameters())
    rows = images * masks * modes
    batch = training_batch(model, mode, images, masks * modes, False)
    text = batch.text
    assert batch.canvas is not None
    live.add([batch.canvas])
    # No parameter requires a gradient, so nothing is kept for a backward pass. Autograd nevertheless stays enabled,
    # because with it disabled, the bridge would use its sparse attention for CPUs instead of the dense one for GPUs.
    with contextlib.ExitStack() as stack:
        for context in (live.watching(), gpu_kernels() if gpu else contextlib.nullcontext(), mode, live, counter):
            stack.enter_context(context)
        pixels_N3SS = Pixels().pixel_values(batch.canvas)
        tokens_NLC = model.encode_image(pixels_N3SS)
        tower_flops = counter.get_total_flops()
        context_R1SS = context_mask(batch.masks, config.context_enlarge_ratio)
        each = slice(None, None, modes)  # a mask is encoded once, and its features are used in every mode
        features = model.mask_features(batch.masks[each], context_R1SS[each], pixels_N3SS, batch.image_index[each])
        del pixels_N3SS
        image_flops = counter.get_total_flops()
        features = MaskFeatures.stack([features] * modes)
        state = model.bridge.image_state(tokens_NLC)
        prompt = slice(0, _prompt_tokens(config))
        instruction = Instruction(text.qformer_ids[:, prompt], text.qformer_mask[:, prompt])
        condition = model.bridge(state, batch.image_index, features, instruction, batch.modes)
        inputs = model.llm_inputs(condition, text.input_ids[:, prompt], text.attention_mask[:, prompt])
        _, decoding = read_prefix(model.llm, inputs)
        for _ in range(ANSWER_TOKENS - 1):
            _, decoding = read_tokens(model.llm, [[1]] * rows, decoding)
    row_flops = (counter.get_total_flops() - image_flops) / rows
    mask_flops = _zoom_flops(model, mode) if model.zoom else 0
    return NamingCost(weights, live.peak, tower_flops // images, row_flops, llm_bytes, mask_flops)


def _zoom_flops(model: OmniScientModel, mode: DeviceMode) -> int:
    """Return the FLOPs of the tower for the zoom windows of a mask."""
    count, side = model.windows_per_mask, model.zoom
    with FlopCounterMode(display=False) as counter, mode:
        windows = torch.zeros(count, 3, side, side).to(next(model.tower.parameters()))
        model.tower.tokens_and_classes(windows, torch.ones(count, (side // model.tower.patch) ** 2))
    return counter.get_total_flops()
