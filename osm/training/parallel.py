"""How a model is laid over the processes: whole on each (DDP), or in shards (FSDP2, full or hybrid).

Also what the rest needs to know of it: when gradients are exchanged, and whole tensors out of shards and back.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from osm.errors import OsmError
from osm.models.bridges.gated import decoder_layers, repeated_blocks
from osm.training.distributed import World
from osm.training.task import TrainTask


def lay_out(
    task: TrainTask,
    world: World,
    fsdp: bool,
    strategy: str,
    shard_size: int,
    values: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The module whose forward trains `task` on all processes.

    With FSDP the blocks of the tower, of the LLM and of what is within it are a unit each, gathered when they run; the
    rest of the bridge, which is small, is one unit with what is left. So trained parameters, gradients and optimizer
    state are sharded.

    Args:
        strategy: `full` = shards over all processes; `hybrid` = over `shard_size` of them (0 = those of a machine), and
            copies of that beside it.
        values: on the main process, with FSDP, the values of the parameters of a task of `without_values`. They are
            sent unit by unit, so that no process but the main one ever holds more than its shards and one unit.

    Raises:
        OsmError: a shard size that does not divide the number of processes.
    """
    if fsdp and world.size > 1:
        mesh = _mesh(world, strategy, shard_size)
        model = task.model
        fill = _Filler(task, world, values or {})
        # Innermost first: gated layers are called from within the LLM's.
        for block in [
            *model.bridge.layers_to_shard(),
            *repeated_blocks(model.tower),
            *decoder_layers(model.llm),
            task,
        ]:
            whole_ones = fill(block)
            fully_shard(block, mesh=mesh)
            for parameter in whole_ones:  # its shard is a copy; whoever still refers to the whole would keep it
                parameter.untyped_storage().resize_(0)
        return task
    if world.size == 1:
        return task
    # The frozen parts are the same files everywhere; gigabytes of them need not be sent round at the start.
    frozen = [name for name, parameter in task.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in task.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, [*frozen, *buffers])
    ids = [world.device.index] if world.device.type == "cuda" else None
    # The buffers are the frozen tower's: they never change. (Newer torch calls the option by another name.)
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(task, device_ids=ids, **options)


def without_values(task: TrainTask) -> TrainTask:
    """Copies a task with parameters on the meta device: all of its structure, none of its gigabytes.

    Buffers are copied with their values: they are small, and some are in no state dict.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in task.parameters()
    }
    return copy.deepcopy(task, memo)


class _Filler:
    """Gives the parameters of one unit after the other their place on this process's device, and their values.

    Args:
        values: by name, on the main process alone; it sends them.
    """

    def __init__(self, task: TrainTask, world: World, values: Mapping[str, Tensor]) -> None:
        self.world, self.values = world, values
        self.names = {id(parameter): name for name, parameter in task.named_parameters()}

    def __call__(self, unit: nn.Module) -> list[nn.Parameter]:
        """Returns the parameters that it filled, whole."""
        filled: dict[int, nn.Parameter] = {}  # a tied weight stays one parameter
        for module in unit.modules():
            for name, blank in list(module.named_parameters(recurse=False)):
                if blank.is_meta:
                    if id(blank) not in filled:
                        filled[id(blank)] = self._filled(blank)
                    setattr(module, name, filled[id(blank)])
        return list(filled.values())

    def _filled(self, blank: nn.Parameter) -> nn.Parameter:
        # Contiguous, as FSDP needs it: a CNN's weights may lie with their channels last.
        value = torch.empty(blank.shape, dtype=blank.dtype, device=self.world.device)
        if self.world.is_main:
            value.copy_(self.values[self.names[id(blank)]])
        dist.broadcast(value, 0)
        return nn.Parameter(value, blank.requires_grad)


def _mesh(world: World, strategy: str, shard_size: int) -> DeviceMesh:
    kind = world.device.type
    if strategy == "full":
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    shards = shard_size or world.local_size
    if world.size % shards:
        raise OsmError(f"--fsdp_shard_size {shards} does not divide the {world.size} processes")
    return init_device_mesh(kind, (world.size // shards, shards), mesh_dim_names=("copy", "shard"))


def exchanges_gradients(module: nn.Module, exchange: bool) -> contextlib.AbstractContextManager[Any]:
    """Forward and backward within it exchange gradients, or else keep them for a later one that does."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(exchange)
    elif isinstance(module, DistributedDataParallel) and not exchange:
        return module.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """For forwards that no backward follows."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost unit stays gathered after a forward, waiting for a backward


def save_activations_less(task: TrainTask) -> None:
    """Gradient checkpointing where activations are kept for a backward: the bridge's and the frozen LLM's layers."""
    for layer in [*task.model.bridge.layers(), *decoder_layers(task.model.llm)]:
        layer.forward = recomputed(layer.forward)  # type: ignore[method-assign]


def recomputed(forward: Any) -> Any:
    """A forward whose activations are computed again in the backward.

    Not transformers' own switch: that one is off in eval mode, in which a frozen LLM is.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def whole(tensor: Tensor) -> Tensor:
    """A tensor out of its shards; all processes have to ask for it together."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    # torch 2.11 crashes (SIGSEGV) where it gathers a DTensor of a GPU by gloo.
    if mesh.device_type != "cpu" and exchanged_by_gloo(mesh):
        return whole_through_cpu(tensor)
    return tensor.full_tensor()


def whole_through_cpu(tensor: DTensor) -> Tensor:
    """A tensor out of its shards, exchanged in main memory, on its own device; collective."""
    mesh, local = tensor.device_mesh, tensor.to_local().cpu()
    on_cpu = DTensor.from_local(
        local, _cpu_mesh(mesh), tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return on_cpu.full_tensor().to(tensor.device)


def exchanged_by_gloo(mesh: DeviceMesh) -> bool:
    """Whether the mesh's tensors are exchanged by gloo."""
    group = mesh.get_group(0)
    return group._get_backend(torch.device(mesh.device_type)).name() == "gloo"


@lru_cache
def _cpu_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The same processes in the same layout, for tensors on the CPU; the first call for a mesh is collective."""
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, laid out as the parameter that it belongs to."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
