"""Distributes a model across the processes of a run, either replicated (DDP) or sharded (FSDP2, full or hybrid).

The functions in this module also control when gradients are synchronized, and convert between sharded and full tensors.
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
    """Distribute a training task across all processes, and return the module to call in the forward pass.

    With FSDP, each block of the tower, each layer of the LLM and each gated bridge layer inside the LLM is a separate
    FSDP unit. The parameters of an FSDP unit are gathered when the unit runs. All remaining parameters, such as the
    rest of the small bridge, form an additional FSDP unit. Trained parameters, gradients and optimizer state are
    sharded in the same way.

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
        # FSDP units are sharded from the inside out; gated bridge layers are inside the LLM's layers.
        for block in [
            *model.bridge.layers_to_shard(),
            *repeated_blocks(model.tower),
            *decoder_layers(model.llm),
            task,
        ]:
            loaded = load_unit(block)
            fully_shard(block, mesh=mesh)
            # The full parameter's storage is freed explicitly, because other objects may still reference the parameter.
            for parameter in loaded:
                parameter.untyped_storage().resize_(0)
        return task
    if world.size == 1:
        return task
    # Every process reads the frozen parts from the same files, so DDP does not need to broadcast gigabytes at startup.
    frozen = [name for name, parameter in task.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in task.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, [*frozen, *buffers])
    ids = [world.device.index] if world.device.type == "cuda" else None
    # DDP does not need to synchronize the model's buffers, because they never change.
    # In newer versions of torch, the option `broadcast_buffers` is named `forward_sync_buffers`.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(task, device_ids=ids, **options)


def on_meta_device(task: TrainTask) -> TrainTask:
    """Copy a training task, and return the copy with its parameters on the meta device (shapes without values).

    Buffers keep their values, because buffers are small and some of them are not part of the state dict.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in task.parameters()
    }
    return copy.deepcopy(task, memo)


class _UnitLoader:
    """Materializes an FSDP model's meta-device parameters on this process's device, one unit at a time.

    Args:
        values: parameter name -> value. Only rank 0 has the values, and broadcasts them.
    """

    def __init__(self, task: TrainTask, world: World, values: Mapping[str, Tensor]) -> None:
        self.world, self.values = world, values
        self.names = {id(parameter): name for name, parameter in task.named_parameters()}

    def __call__(self, unit: nn.Module) -> list[nn.Parameter]:
        """Materialize the parameters of an FSDP unit that are still on the meta device, and return them."""
        loaded: dict[int, nn.Parameter] = {}  # by the id of the meta parameter, so that tied weights stay tied
        for module in unit.modules():
            for name, old in list(module.named_parameters(recurse=False)):
                if old.is_meta:
                    if id(old) not in loaded:
                        loaded[id(old)] = self._load(old)
                    setattr(module, name, loaded[id(old)])
        return list(loaded.values())

    def _load(self, old: nn.Parameter) -> nn.Parameter:
        # FSDP requires contiguous tensors, but the weights of a CNN may be stored in channels-last format.
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
        raise OsmError(f"--fsdp_shard_size {shards} must evenly divide the number of processes ({world.size})")
    return init_device_mesh(kind, (world.size // shards, shards), mesh_dim_names=("copy", "shard"))


def exchanges_gradients(module: nn.Module, exchange: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context for one forward and backward pass, with or without gradient synchronization between ranks.

    Args:
        exchange: whether the backward pass synchronizes gradients. If not, gradients accumulate on each rank until a
            later backward pass synchronizes them.
    """
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(exchange)
    elif isinstance(module, DistributedDataParallel) and not exchange:
        return module.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Disable gradients and switch a module to eval mode inside the context, and restore its mode on exit."""
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
    """Enable gradient checkpointing for every layer of the bridge and the frozen LLM, to save memory."""
    task.model.bridge.recompute(recomputed)
    for layer in decoder_layers(task.model.llm):
        layer.forward = recomputed(layer.forward)  # type: ignore[method-assign]


def recomputed(forward: Any) -> Any:
    """Wrap a `forward` method so that its activations are recomputed in the backward pass instead of stored.

    This function is used because a frozen LLM is in eval mode, in which transformers disables its own gradient
    checkpointing.
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
    """Copy a tensor's shards to CPU memory, gather the full tensor there, and move it back to the shards' device.

    All ranks must call this function together.
    """
    mesh, local = tensor.device_mesh, tensor.to_local().cpu()
    on_cpu = DTensor.from_local(
        local, _cpu_mesh(mesh), tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return on_cpu.full_tensor().to(tensor.device)


def exchanged_by_gloo(mesh: DeviceMesh) -> bool:
    """Return whether the ranks of a device mesh communicate through the gloo backend."""
    group = mesh.get_group(0)
    return group._get_backend(torch.device(mesh.device_type)).name() == "gloo"


@lru_cache
def _cpu_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return a CPU mesh with the same ranks and layout as `mesh`. The first call for each mesh is collective."""
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)


def distribute_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Move a full tensor to a parameter's device. If the parameter is sharded, shard the tensor in the same way."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
