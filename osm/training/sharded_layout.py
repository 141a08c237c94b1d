"""Stores a checkpoint as a step folder, `<run_name>/checkpoints/step_<n>/`, where each rank writes its tensor shards.

`torch.distributed.checkpoint` writes the trained parameters and the optimizer state (`.metadata` and `*.distcp`). A
step folder can be read by any number of ranks. The file `run.json` in a step folder contains the run's progress, the
model config, and the size and SHA-256 of every other file. A step folder is complete when it contains a `run.json` and
its name no longer ends in `.tmp`.

The file `.metadata` in a step folder is a pickle. Up to version 2.14, torch's `FileSystemReader` unpickles `.metadata`
without restrictions, so a malicious checkpoint could run arbitrary code. `torch.load(weights_only=True)` cannot read
`.metadata`, because `.metadata` is not written by `torch.save`. For safety, `_TensorReader` reads `.metadata` with an
unpickler that accepts only the classes needed to describe dense tensors.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint import metadata as dcp_metadata

from osm.errors import OsmError
from osm.files import read_json, write_atomically
from osm.models import checkpoint as files
from osm.models.osm import OmniScientModel
from osm.training.checkpoint_layout import Checkpoint, CheckpointLayout, UnreadableCheckpoint, config_in, read_count
from osm.training.distributed import World
from osm.training.run_position import RunPosition

STEPS_FOLDER = "checkpoints"
RUN_FILE = "run.json"
DCP_ERRORS = (Exception, dcp.CheckpointException)  # torch's exception does not derive from Exception
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_SHARD_FILE = re.compile(r"\.metadata|__\d+_\d+\.distcp")
_READ_BYTES = 16 << 20
_MAX_METADATA_BYTES = 64 << 20


# -- names ------------------------------------------------------------------------------------------------------------


def step_folder(folder: Path, step: int) -> Path:
    """Return the path of the step folder written after `step` optimizer steps."""
    return folder / STEPS_FOLDER / f"step_{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """Return all step folders in a run's folder, ordered by step, including corrupt step folders."""
    return sorted(path for path in (folder / STEPS_FOLDER).glob("step_*") if is_step_name(path.name))


def is_step_name(name: str) -> bool:
    """Return whether `name` is the name of a step folder."""
    return _STEP_FOLDER.fullmatch(name) is not None


def unfinished_folders(folder: Path) -> list[Path]:
    """Return incomplete step folders, which were being written or removed when the run was killed."""
    return list((folder / STEPS_FOLDER).glob("step_*.tmp"))


def shard_files(names: Any) -> list[str] | None:
    """Return the data files listed in the `files` entry of a `run.json`, or None if the entry is missing or invalid."""
    return [name for name in names if _SHARD_FILE.fullmatch(str(name))] if isinstance(names, dict) else None


class ShardedLayout(CheckpointLayout):
    """Reads and writes step folders."""

    def paths(self, folder: Path) -> list[Path]:
        """Return the step folders in a run's folder, ordered by step."""
        return step_folders(folder)

    def read_header(self, path: Path) -> Checkpoint:
        """Read the counters of a step folder from its `run.json`; see `CheckpointLayout.read_header`."""
        progress = read_run_document(path)["progress"]
        counter, epoch, batches = (read_count(path, progress, name) for name in ("saves", "epoch", "batches"))
        return Checkpoint(counter, epoch, batches, path)

    def verify(self, path: Path) -> None:
        """Check each file of a step folder against its stored size and SHA-256; see `CheckpointLayout.verify`.

        A step folder written by an older version contains no checksums, and is accepted without verification.
        """
        expected_files = read_run_document(path).get("files")
        if expected_files is None:
            return
        if not isinstance(expected_files, dict) or not all(_SHARD_FILE.fullmatch(str(name)) for name in expected_files):
            raise UnreadableCheckpoint(
                f"checkpoint {path / RUN_FILE}: the key 'files' must map file names to checksums"
            )
        for name, expected in expected_files.items():
            file = path / name
            if file.is_symlink() or not file.is_file():
                raise UnreadableCheckpoint(f"checkpoint {path} is broken: the file {name} is missing")
            try:
                found = _size_and_digest(file)
            except OSError as error:
                raise UnreadableCheckpoint(f"checkpoint {path} cannot be read ({name}: {error.strerror})") from None
            if found[0] != expected[0]:
                raise UnreadableCheckpoint(
                    f"checkpoint {path} is broken: the file {name} has {found[0]} bytes instead of {expected[0]}"
                )
            if found != expected:
                raise UnreadableCheckpoint(
                    f"checkpoint {path} is broken: the file {name} does not match its stored checksum"
                )

    def write_shards(self, folder: Path, tensors: Mapping[str, Tensor], world: World) -> Future[Any]:
        """Copy a checkpoint's tensors, and start writing this rank's shards to disk in the background.

        All ranks must call this method together.

        Args:
            folder: the temporary folder, which must exist.
            tensors: see `checkpoint_tensors`. Their values may change as soon as this method returns.

        Returns:
            a future that completes when the shards of all ranks are written.
        """
        _ignore_single_process_warning()
        written = dcp.async_save(
            dict(tensors), checkpoint_id=folder, process_group=world.checkpoint_group, no_dist=world.size == 1
        )
        assert isinstance(written, Future)
        return written

    def load(
        self, path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer
    ) -> tuple[RunPosition, Mapping[str, Any]]:
        """Load a step folder that was written by any number of ranks; see `CheckpointLayout.load`."""
        document, where = read_run_document(path), f"checkpoint {path}"
        files.check_frozen(model, document.get("model", {}), where)
        _load_tensors(path, checkpoint_tensors(model, optimizer))
        files.check_meaning(model, document.get("model"), where)
        return RunPosition.read(document["progress"], where), config_in(document["progress"])


def replace_step_folder(temporary: Path, path: Path) -> None:
    """Rename a finished temporary step folder to `path`. An existing checkpoint at `path` is removed."""
    replaced = _rename_for_removal(path) if path.exists() else None
    temporary.replace(path)
    if replaced is not None:
        shutil.rmtree(replaced)


def remove_step_folder(path: Path) -> None:
    """Rename a step folder before removing it, so that a killed run leaves no incomplete folder at `path`."""
    shutil.rmtree(_rename_for_removal(path))


def _rename_for_removal(path: Path) -> Path:
    renamed = path.with_name(path.name + ".old.tmp")
    shutil.rmtree(renamed, ignore_errors=True)
    return path.rename(renamed)


# -- run.json ---------------------------------------------------------------------------------------------------------


def write_run_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write `run.json`: the document, the size and SHA-256 of each data file, and a SHA-256 over all of these."""
    sums = {file.name: _size_and_digest(file) for file in sorted(path.iterdir()) if _SHARD_FILE.fullmatch(file.name)}
    content = {**document, "files": sums}
    write_atomically(path / RUN_FILE, [json.dumps({**content, "sha256": _document_digest(content)})])


def read_run_document(path: Path) -> dict[str, Any]:
    """Return the content of a step folder's `run.json`.

    Raises:
        UnreadableCheckpoint: the file is missing, is broken, or has changed since it was written.
    """
    try:
        document, _ = read_json(path / RUN_FILE, "checkpoint")
    except OsmError as error:
        raise UnreadableCheckpoint(str(error)) from None
    if not isinstance(document, dict) or not isinstance(document.get("progress"), dict):
        raise UnreadableCheckpoint(
            f"checkpoint {path / RUN_FILE}: the key 'progress' (the run's progress) is missing or invalid"
        )
    digest = document.pop("sha256", None)
    if digest is not None and digest != _document_digest(document):
        raise UnreadableCheckpoint(
            f"checkpoint {path / RUN_FILE} is broken: its content does not match its stored checksum"
        )
    return document


def _document_digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _size_and_digest(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
        return [file.tell(), digest.hexdigest()]


# -- tensors ----------------------------------------------------------------------------------------------------------


def checkpoint_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: trained parameters, frozen bridge parameters and optimizer state.

    If the optimizer has no state yet (before the first step), the state is initialized with zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        # Frozen bridge parameters are stored too, because published files contain a few of them.
        # LoRA parameters belong to the LLM, but they are stored because they are trained.
        if parameter.requires_grad or not name.startswith(("tower.", "llm.")):
            tensors[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors.update({f"optimizer.{name}.{key}": value for key, value in state.items()})
    return tensors


def _load_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read the tensors of a checkpoint into preallocated tensors. All ranks must call this function together.

    Raises:
        OsmError: the checkpoint belongs to a different model. The message lists every entry that is missing,
            unexpected or has the wrong shape.
    """
    reader, stored = _open(path, UnreadableCheckpoint)
    problems = [f"missing: {name}" for name in tensors if name not in stored]
    problems += [f"unexpected: {name}" for name in stored if name not in tensors]
    for name in tensors.keys() & stored.keys():
        if tuple(stored[name].size) != tuple(tensors[name].shape):
            sizes = f"{tuple(stored[name].size)} in the file, {tuple(tensors[name].shape)} in the model"
            problems.append(f"shape of {name}: {sizes}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise OsmError(f"checkpoint {path} does not fit this model ({len(problems)} mismatched entries):\n  {listed}")
    _read_into(path, reader, tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Load all tensors of a step folder by name, as full (unsharded) tensors, without involving other ranks.

    Raises:
        OsmError: the checkpoint cannot be read.
    """
    reader, stored = _open(path, OsmError)
    sizes = {name: (entry.size, entry.properties.dtype) for name, entry in stored.items()}
    try:
        available = sum(file.stat().st_size for file in path.glob("*.distcp"))
    except OSError as error:
        raise OsmError(f"checkpoint {path}: {error}") from None
    if sum(size.numel() * dtype.itemsize for size, dtype in sizes.values()) > available:
        raise OsmError(f"checkpoint {path}: its files are smaller than the tensors listed in its metadata")
    tensors = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in sizes.items()}
    _read_into(path, reader, tensors, no_dist=True)
    return tensors


def _open(path: Path, missing: type[OsmError]) -> tuple[_TensorReader, dict[str, dcp_metadata.TensorStorageMetadata]]:
    """Open the `.metadata` file of a step folder, and return a reader and a mapping from tensor names to metadata.

    Raises:
        missing: the `.metadata` file cannot be opened. `missing` is a class of exceptions.
        OsmError: the metadata is corrupt, or contains a class that is not allowed.
    """
    reader = _TensorReader(path)
    try:
        return reader, reader.read_metadata().state_dict_metadata  # type: ignore[return-value]  # checked by the reader
    except OSError as error:
        raise missing(f"checkpoint {path}: {error}") from None


def _read_into(path: Path, reader: _TensorReader, tensors: dict[str, Tensor], no_dist: bool = False) -> None:
    try:
        _ignore_single_process_warning()
        dcp.load(tensors, storage_reader=reader, no_dist=no_dist)
    except DCP_ERRORS as error:  # torch raises many different exceptions for broken files
        raise UnreadableCheckpoint(f"checkpoint {path} cannot be read ({last_line(error)})") from None


def last_line(error: BaseException) -> str:
    """Return the last non-blank line of an exception's message. If the message is blank, return the class name."""
    lines = (line for line in reversed(str(error).splitlines()) if line.strip())
    return next(lines, type(error).__name__).strip()


def _ignore_single_process_warning() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class _TensorReader(FileSystemReader):
    """Reads only tensors and, unlike torch's `FileSystemReader`, never runs code from a checkpoint file."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            try:
                if path.stat().st_size > _MAX_METADATA_BYTES:
                    raise OsmError(
                        f"checkpoint {path}: the file exceeds the maximum size of {_MAX_METADATA_BYTES >> 20} MiB"
                    )
                metadata = _MetadataUnpickler(file).load()
            except OsmError:
                raise
            except Exception as error:  # a broken pickle can raise any exception
                raise UnreadableCheckpoint(f"checkpoint {path} is broken ({type(error).__name__}: {error})") from None
        self._check(metadata, path)
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _check(self, metadata: Any, path: Path) -> None:
        entries = getattr(metadata, "state_dict_metadata", None)
        storage = getattr(metadata, "storage_data", None)
        if not isinstance(entries, dict) or not isinstance(storage, dict) or metadata.storage_meta is None:
            raise OsmError(f"checkpoint {path} was not written by a training run: its metadata is incomplete")
        for name, entry in entries.items():
            if not isinstance(name, str) or not isinstance(entry, dcp_metadata.TensorStorageMetadata):
                raise OsmError(f"checkpoint {path}: entry {str(name)[:80]!r} is not a tensor")
        for location in storage.values():
            inside = re.fullmatch(r"__\d+_\d+\.distcp", str(getattr(location, "relative_path", "")))
            if not isinstance(location, dcp_files._StorageInfo) or not inside or location.transform_descriptors:
                raise OsmError(f"checkpoint {path} refers to a file outside its folder: {str(location)[:120]}")


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles only the classes needed to describe dense tensors, and raises OsmError for any other class."""

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
            raise OsmError(f".metadata refers to {module}.{name}, which is not allowed; the checkpoint was not loaded")
        return super().find_class(module, name)
