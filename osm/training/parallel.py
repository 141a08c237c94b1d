"""Distributes a model over the processes of a run, either replicated (DDP) or sharded (FSDP2, full or hybrid).

The functions in this module also control when gradients are exchanged, and convert between sharded and full tensors.
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


def parallelize(
    task: TrainTask,
    world: World,
    fsdp: bool,
    strategy: str,
    shard_size: int,
    values: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Distribute a training task over all processes, and return the module to call in the forward pass.

    With FSDP, each block of the tower, each layer of the LLM and each gated bridge layer inside the LLM is one FSDP
    unit. The parameters of an FSDP unit are gathered when the unit runs. All remaining parameters, such as the rest of
    the small bridge, form one more FSDP unit. Trained parameters, gradients and optimizer state are sharded in the same
    way.

    Args:
        strategy: `full` shards over all processes. `hybrid` shards over groups of `shard_size` processes and replicates
            the shards across the groups.
        shard_size: number of processes in a group; 0 for the number of processes on one machine.
        values: with FSDP, on rank 0: parameter name -> value, for a task that `on_meta_device` returned. The values are
            broadcast unit by unit, so that every other rank holds at most its shards and one full unit.

    Raises:
        OsmError: the shard size does not divide the number of processes.
    """
    if fsdp and world.size > 1:
        mesh = _device_mesh(world, strategy, shard_size)
        model = task.model
        load_unit = _UnitLoader(task, world, values or {})
        # FSDP units are sharded from the innermost to the outermost; gated bridge layers are inside the LLM's layers.
        for block in [
            *model.bridge.layers_to_shard(),
            *repeated_blocks(model.tower),
            *decoder_layers(model.llm),
            task,
        ]:
            loaded = load_unit(block)
            fully_shard(block, mesh=mesh)
            # The full parameter's storage is freed explicitly, because other objects may still refer to the parameter.
            for parameter in loaded:
                parameter.untyped_storage().resize_(0)
        return task
    if world.size == 1:
        return task
    # Every process reads the frozen parts from the same files, so DDP need not broadcast gigabytes at startup.
    frozen = [name for name, parameter in task.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in task.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, [*frozen, *buffers])
    ids = [world.device.index] if world.device.type == "cuda" else None
    # DDP need not synchronize the model's buffers, because they belong to the frozen tower and never change.
    # In newer versions of torch, the option `broadcast_buffers` is called `forward_sync_buffers`.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(task, device_ids=ids, **options)


def on_meta_device(task: TrainTask) -> TrainTask:
    """Return a copy of a training task whose parameters are on the meta device, with shapes but without values.

    Buffers are copied with their values, because buffers are small and some buffers are not part of a state dict.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in task.parameters()
    }
    return copy.deepcopy(task, memo)


class _UnitLoader:
    """Loads the parameters of an FSDP model from the meta device to this process's device, one unit at a time.

    Args:
        values: parameter name -> value. Only rank 0 has the values, and broadcasts them.
    """

    def __init__(self, task: TrainTask, world: World, values: Mapping[str, Tensor]) -> None:
        self.world, self.values = world, values
        self.names = {id(parameter): name for name, parameter in task.named_parameters()}

    def __call__(self, unit: nn.Module) -> list[nn.Parameter]:
        """Load the parameters of an FSDP unit that are still on the meta device, and return the loaded parameters."""
        loaded: dict[int, nn.Parameter] = {}  # by the id of the meta parameter, so that tied weights stay tied
        for module in unit.modules():
            for name, old in list(module.named_parameters(recurse=False)):
                if old.is_meta:
                    if id(old) not in loaded:
                        loaded[id(old)] = self._load(old)
                    setattr(module, name, loaded[id(old)])
        return list(loaded.values())

    def _load(self, old: nn.Parameter) -> nn.Parameter:
        # FSDP needs contiguous tensors, but the weights of a CNN may be stored channels-last.
        value = torch.empty(old.shape, dtype=old.dtype, device=self.world.device)
        if self.world.is_main:
            value.copy_(self.values[self.names[id(old)]])
        dist.broadcast(value, 0)
        return nn.Parameter(value, old.requires_grad)


def _device_mesh(world: World, strategy: str, shard_size: int) -> DeviceMesh:
    kind = world.device.type
    if strategy == "full":
        return init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    shards = shard_size or world.local_size
    if world.size % shards:
        raise OsmError(f"--fsdp_shard_size {shards} must divide the number of processes, {world.size}")
    return init_device_mesh(kind, (world.size // shards, shards), mesh_dim_names=("copy", "shard"))


def exchanges_gradients(module: nn.Module, exchange: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context for one forward and backward pass, with or without a gradient exchange between the ranks.

    Args:
        exchange: whether the backward pass exchanges gradients. If not, gradients accumulate on each rank until a
            later backward pass exchanges them.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(exchange)
    elif isinstance(module, DistributedDataParallel) and not exchange:
        return module.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Disable gradients and switch a module to eval mode within the context, and restore the mode afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
        if isinstance(module, FSDPModule):
            module.reshard()  # after a forward pass, the outermost unit would stay gathered until a backward pass


def enable_gradient_checkpointing(task: TrainTask) -> None:
    """Enable gradient checkpointing for each layer of the bridge and of the frozen LLM, to save memory."""
    for layer in [*task.model.bridge.layers(), *decoder_layers(task.model.llm)]:
        layer.forward = recomputed(layer.forward)  # type: ignore[method-assign]


def recomputed(forward: Any) -> Any:
    """Wrap a `forward` method so that its activations are recomputed in the backward pass instead of stored.

    A frozen LLM is in eval mode, in which transformers disables its own gradient checkpointing, so this function is
    used instead.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a DTensor from its shards, or return a plain tensor as is. All ranks must call this function together."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    # torch 2.11 crashes (SIGSEGV) when gloo gathers a DTensor that is on a GPU.
    if mesh.device_type != "cpu" and exchanged_by_gloo(mesh):
        return full_tensor_through_cpu(tensor)
    return tensor.full_tensor()


def full_tensor_through_cpu(tensor: DTensor) -> Tensor:
    """Copy a tensor's shards to CPU memory, gather the full tensor there, and move it back to the device of the shards.

    All ranks must call this function together.
    """
    mesh, local = tensor.device_mesh, tensor.to_local().cpu()
    on_cpu = DTensor.from_local(
        local, _cpu_mesh(mesh), tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return on_cpu.full_tensor().to(tensor.device)


def exchanged_by_gloo(mesh: DeviceMesh) -> bool:
    """Return whether tensors on a device mesh are exchanged with the gloo backend."""
    group = mesh.get_group(0)
    return group._get_backend(torch.device(mesh.device_type)).name() == "gloo"


@lru_cache
def _cpu_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return a CPU mesh with the ranks and layout of `mesh`. The first call for each mesh is a collective call."""
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)


def distribute_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Move a full tensor to a parameter's device. If the parameter is sharded, shard the tensor in the same way."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
