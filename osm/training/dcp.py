"""Checkpoints in mid-run: `<run_name>/checkpoints/step_<n>/`, sharded, written beside the training, whole or not.

The trained parameters and the optimizer state lie in files of torch.distributed.checkpoint, all else (counters, places
in the streams) in `run.json`. There is no random state to keep: every draw derives from the seed and its place.
"""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint import metadata as dcp_metadata

from osm.errors import OsmError, RunStopped
from osm.files import sync_folder
from osm.terminal import message_logger
from osm.training.distributed import World
from osm.training.saved import (
    Unreadable,
    candidates,
    prune,
    remove_unfinished,
    replace_step,
    step_folder,
    write_run_document,
)

logger = message_logger(__name__)

_MAX_METADATA_BYTES = 64 << 20
_FAULTS = (Exception, dcp.CheckpointException)  # torch's own is none of Python's Exceptions


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The bridge and its optimizer state by name; what the optimizer has not made yet is made, as zeros."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        # A few of the bridge's are held by the files, but not trained; LoRA's are within the LLM.
        if parameter.requires_grad or not name.startswith(("tower.", "llm.")):
            state[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
            own = optimizer.state[parameter]
            if not own:
                own["step"] = torch.zeros((), dtype=torch.float32)
                own["exp_avg"] = torch.zeros_like(parameter)
                own["exp_avg_sq"] = torch.zeros_like(parameter)
            state.update({f"optimizer.{name}.{key}": value for key, value in own.items()})
    return state


class Saver:
    """Writes checkpoints of a run; all processes call it together.

    Args:
        folder: of the run. keep: so many checkpoints are kept.
    """

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = folder, keep, world
        _no_warning_of_one_process()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        if world.is_main:
            remove_unfinished(folder)
        world.barrier()

    def save(self, step: int, state: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Takes a copy of the state, and writes it while the training goes on.

        Raises:
            RunStopped: this one, or the one before, could not be written.
        """
        self.wait()
        path = step_folder(self.folder, step)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            written = dcp.async_save(
                dict(state),
                checkpoint_id=temporary,
                process_group=self.world.aside,
                no_dist=self.world.size == 1,
            )
        except _FAULTS as error:
            raise self._failed(path, error) from None
        assert isinstance(written, Future)
        self._pending = self._thread.submit(self._complete, written, temporary, path, copy.deepcopy(dict(document)))

    def _complete(self, written: Future[Any], temporary: Path, path: Path, document: Mapping[str, Any]) -> None:
        try:
            written.result()  # of all processes
            if self.world.is_main:
                write_run_document(temporary, document)
                replace_step(temporary, path)
                sync_folder(path.parent)
                prune(self.folder, self.keep, path)
                logger.info(f"checkpoint written: {path}", to_stdout=True)
        except _FAULTS as error:
            raise self._failed(path, error) from None

    def _failed(self, path: Path, error: BaseException) -> RunStopped:
        shutil.rmtree(path.with_name(path.name + ".tmp"), ignore_errors=True)
        whole = next(iter(candidates(self.folder)), None) or "none in that folder"
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return RunStopped(
            f"checkpoint {path} could not be written ({reason.strip()}). The newest whole one: {whole}. "
            "Make room, and the same command goes on from it"
        )

    def wait(self) -> None:
        """Until what is being written is whole. Raises RunStopped where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread, whatever became of its work."""
        self._thread.shutdown(wait=True)


def _no_warning_of_one_process() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def load(path: Path, state: dict[str, Tensor]) -> None:
    """Reads a checkpoint into the tensors of `state_of`, however many processes wrote it; all call it together.

    Raises:
        OsmError: it cannot be read, or is of another model (every missing, unexpected and misshapen entry by name).
    """
    reader = _Reader(path)
    try:
        kept = reader.read_metadata().state_dict_metadata
    except OSError as error:
        raise Unreadable(f"checkpoint {path}: {error}") from None
    problems = [f"missing: {name}" for name in state if name not in kept]
    problems += [f"unexpected: {name}" for name in kept if name not in state]
    for name in state.keys() & kept.keys():
        if tuple(kept[name].size) != tuple(state[name].shape):  # type: ignore[union-attr]
            sizes = f"{tuple(kept[name].size)} in the file, {tuple(state[name].shape)} in the model"  # type: ignore[union-attr]
            problems.append(f"shape of {name}: {sizes}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise OsmError(f"checkpoint {path} does not fit this model ({len(problems)} entries):\n  {listed}")
    _read_into(path, reader, state)


def read_whole(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name, in this process alone. Raises OsmError where it cannot be read."""
    reader = _Reader(path)
    try:
        kept = reader.read_metadata().state_dict_metadata
        there = sum(file.stat().st_size for file in path.glob("*.distcp"))
    except OSError as error:
        raise OsmError(f"checkpoint {path}: {error}") from None
    sizes = {name: (entry.size, entry.properties.dtype) for name, entry in kept.items()}  # type: ignore[union-attr]
    if sum(size.numel() * dtype.itemsize for size, dtype in sizes.values()) > there:
        raise OsmError(f"checkpoint {path}: its files are smaller than the tensors that it names")
    state = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in sizes.items()}
    _read_into(path, reader, state, no_dist=True)
    return state


def _read_into(path: Path, reader: _Reader, state: dict[str, Tensor], no_dist: bool = False) -> None:
    try:
        _no_warning_of_one_process()
        dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except _FAULTS as error:  # whatever torch makes of broken files
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise Unreadable(f"checkpoint {path} cannot be read ({reason.strip()})") from None


class _Reader(FileSystemReader):
    """Reads nothing but tensors: torch's own reader unpickles whatever a file names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            try:
                if path.stat().st_size > _MAX_METADATA_BYTES:
                    raise OsmError(f"checkpoint {path}: over {_MAX_METADATA_BYTES >> 20} MiB")
                metadata = _Unpickler(file).load()
            except OsmError:
                raise
            except Exception as error:  # broken pickles raise about anything
                raise Unreadable(f"checkpoint {path} is broken ({type(error).__name__}: {error})") from None
        self._check(metadata, path)
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _check(self, metadata: Any, path: Path) -> None:
        entries = getattr(metadata, "state_dict_metadata", None)
        storage = getattr(metadata, "storage_data", None)
        if not isinstance(entries, dict) or not isinstance(storage, dict) or metadata.storage_meta is None:
            raise OsmError(f"checkpoint {path} is of something else")
        for name, entry in entries.items():
            if not isinstance(name, str) or not isinstance(entry, dcp_metadata.TensorStorageMetadata):
                raise OsmError(f"checkpoint {path}: entry {str(name)[:80]!r} is no tensor")
        for place in storage.values():
            inside = re.fullmatch(r"__\d+_\d+\.distcp", str(getattr(place, "relative_path", "")))
            if not isinstance(place, dcp_files._StorageInfo) or not inside or place.transform_descriptors:
                raise OsmError(f"checkpoint {path} names a file that is not one of its own: {str(place)[:120]}")


class _Unpickler(pickle.Unpickler):
    """Of the metadata alone: the classes that it consists of."""

    _CLASSES = {
        "torch.distributed.checkpoint.metadata": (
            "Metadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size", "float32", "float64", "bfloat16", "float16", "int64", "int32"),
        "pathlib": ("PosixPath", "WindowsPath"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self._CLASSES.get(module, ()):
            raise OsmError(f"a checkpoint's .metadata asks for {module}.{name}, which none needs; it is not loaded")
        return super().find_class(module, name)
