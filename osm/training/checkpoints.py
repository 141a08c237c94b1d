"""Writes the checkpoints of a training run, and finds the newest intact checkpoint.

`osm.training.checkpoint_layout` defines the contents and the two on-disk layouts of checkpoints. The functions in this
module support both checkpoint layouts. A checkpoint is written under a temporary name and renamed once it is complete.
A broken checkpoint in a run's folder is renamed to `<name>.broken`, and the run resumes from the newest intact
checkpoint instead.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from osm.errors import OsmError, RunStopped
from osm.files import sync_folder
from osm.models.checkpoint import FILES, config_document
from osm.models.osm import OmniScientModel
from osm.storage.cache import localize, user_cache
from osm.storage.locations import check_location, is_remote, join, suffix_of
from osm.terminal import message_logger
from osm.training.checkpoint_layout import Checkpoint, CheckpointLayout, UnreadableCheckpoint
from osm.training.distributed import World
from osm.training.published_layout import PublishedLayout, epoch_file
from osm.training.sharded_layout import (
    DCP_ERRORS,
    RUN_FILE,
    ShardedLayout,
    checkpoint_tensors,
    is_step_name,
    last_line,
    read_run_document,
    remove_step_folder,
    replace_step_folder,
    shard_files,
    step_folder,
    step_folders,
    unfinished_folders,
    write_run_document,
)

logger = message_logger(__name__)

_PUBLISHED, _SHARDED = PublishedLayout(), ShardedLayout()


def layout_of(path: Path) -> CheckpointLayout:
    """Return the layout of a checkpoint: `ShardedLayout` for a folder, `PublishedLayout` for a file."""
    return _SHARDED if path.is_dir() else _PUBLISHED


def verify(path: Path) -> None:
    """Verify the checksums of a checkpoint's files. Raises UnreadableCheckpoint if a checksum does not match."""
    layout_of(path).verify(path)


# -- finding checkpoints ----------------------------------------------------------------------------------------------


def scan(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """List the checkpoints in a run's folder.

    Only the checkpoint headers are read. The function `verify` checks a checkpoint's files for corruption.

    Returns:
        the checkpoints, newest first; and the checkpoints whose header cannot be read, as path -> reason.
    """
    found, broken = [], dict[Path, str]()
    for layout in (_PUBLISHED, _SHARDED):
        for path in layout.paths(folder):
            try:
                # A folder named `checkpoint_<n>.pt` is read as a step folder; without a `run.json`, it is broken.
                found.append(layout_of(path).read_header(path))
            except OsmError as error:
                broken[path] = str(error)
    return sorted(found, reverse=True), broken


def readable_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints with a readable header in a run's folder, newest first."""
    return [checkpoint.path for checkpoint in scan(folder)[0]]


def newest_intact(folder: Path, world: World, known_broken: Mapping[Path, str]) -> Path | None:
    """Find the newest checkpoint in a run's folder whose checksums match. All ranks must call this function together.

    Once an intact checkpoint is found, broken checkpoints are renamed, and a warning is logged for each.

    Args:
        known_broken: checkpoints that could not be loaded although their checksums match, as path -> reason.

    Returns:
        the path of the checkpoint; None if the folder has no checkpoints.

    Raises:
        OsmError: the folder has checkpoints, but none of them is intact.
    """
    return world.from_main(lambda: _newest_intact(folder, known_broken))


def _newest_intact(folder: Path, known_broken: Mapping[Path, str]) -> Path | None:
    _finish_renaming(folder)
    checkpoints, broken = scan(folder)
    broken |= known_broken
    for checkpoint in checkpoints:
        if checkpoint.path in broken:
            continue
        try:
            verify(checkpoint.path)
        except UnreadableCheckpoint as error:
            broken[checkpoint.path] = str(error)
            continue
        for path, reason in broken.items():
            logger.warning(f"{reason}; {_set_aside(path)}; resuming from {checkpoint.path}", to_stdout=True)
        return checkpoint.path
    if broken:
        raise OsmError(
            f"none of the {len(broken)} checkpoints in --run_name {folder} is intact; to start from scratch, choose a "
            "different folder or remove the checkpoints:\n  " + "\n  ".join(broken.values())
        )
    return None


def _set_aside(path: Path) -> str:
    """Rename a broken checkpoint to `<name>.broken`, and return the part of the warning that gives the new name."""
    for number in range(1, 1000):
        target = path.with_name(f"{path.name}.broken{number if number > 1 else ''}")
        if not target.exists():
            break
    try:
        path.rename(target)
    except OSError as error:
        return f"it could not be set aside ({error.strerror})"
    return f"it was set aside as {target.name}"


def _finish_renaming(folder: Path) -> None:
    """Rename complete step folders that still have a temporary name because the run was killed before the rename."""
    for temporary in unfinished_folders(folder):
        path = temporary.with_suffix("")
        if path.exists() or not is_step_name(path.name):
            continue
        try:
            verify(temporary)
            temporary.rename(path)
        except (OsmError, OSError):
            continue  # an incomplete folder, which `CheckpointWriter` removes


@functools.cache
def local_checkpoint(location: str) -> Path:
    """Return the local path of the checkpoint given by `--resume_from_checkpoint`.

    A remote checkpoint is downloaded to the cache once per run.

    Raises:
        OsmError: the remote file does not exist.
        RunStopped: the remote file cannot be downloaded.
    """
    flag = "--resume_from_checkpoint"
    if not is_remote(location):
        return Path(location)
    url = check_location(location, flag)
    if suffix_of(url) in FILES:
        return localize(url, flag)
    folder = localize(join(url, RUN_FILE), flag).parent
    names = shard_files(read_run_document(folder).get("files"))
    if names is None:  # a checkpoint of older code, which does not list its files
        return localize(url, flag, folder=True)
    # Missing files are ignored during the download, because `verify` reports them later.
    user_cache().get_all({join(url, name): None for name in names}, url, missing=True)
    return folder


# -- writing checkpoints ----------------------------------------------------------------------------------------------


class CheckpointWriter:
    """Writes a run's checkpoints. All ranks must call each method together, because every method is collective.

    Args:
        folder: the run's folder.
        keep: number of step folders to keep; older step folders are removed.
        delete_previous: remove the previous `.pt` checkpoint after a new `.pt` checkpoint is written.
    """

    def __init__(self, folder: Path, keep: int, delete_previous: bool, world: World) -> None:
        self.folder, self.keep, self.delete_previous, self.world = folder, keep, delete_previous, world
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        if world.is_main:
            for left in unfinished_folders(folder):
                shutil.rmtree(left, ignore_errors=True)
        world.barrier()

    def write_epoch(
        self,
        epoch: int,
        model: OmniScientModel,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        progress: Mapping[str, Any],
    ) -> Path:
        """Write the `.pt` checkpoint of a finished epoch, and return its path.

        Raises:
            OSError: the file cannot be written.
        """
        path = epoch_file(self.folder, epoch)
        previous = None
        if self.delete_previous and self.world.is_main:  # otherwise no existing checkpoint needs to be opened
            previous = next((p for p in readable_checkpoints(self.folder) if p.is_file()), None)
        _PUBLISHED.write(path, epoch, model, optimizer, schedule, progress, self.world)
        if previous is not None and previous != path:
            previous.unlink()
        return path

    def start_step(
        self, step: int, model: OmniScientModel, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
    ) -> None:
        """Copy the training state, and start writing it to a step folder in the background while training continues.

        Raises:
            RunStopped: this checkpoint or the previous checkpoint could not be written.
        """
        self.wait()
        path = step_folder(self.folder, step)
        temporary = path.with_name(path.name + ".tmp")
        document = copy.deepcopy({"progress": dict(progress), "model": config_document(model)})
        tensors = checkpoint_tensors(model, optimizer)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            written = _SHARDED.write_shards(temporary, tensors, self.world)
        except DCP_ERRORS as error:
            raise self._failure(path, error) from None
        self._pending = self._thread.submit(self._complete, written, temporary, path, document)

    def _complete(self, written: Future[Any], temporary: Path, path: Path, document: Mapping[str, Any]) -> None:
        try:
            written.result()  # waits for the shards of all ranks
            if self.world.is_main:
                write_run_document(temporary, document)
                replace_step_folder(temporary, path)
                sync_folder(path.parent)
                self._prune(path)
                logger.info(f"checkpoint written: {path}", to_stdout=True)
        except DCP_ERRORS as error:
            raise self._failure(path, error) from None

    def _prune(self, written: Path) -> None:
        """Remove all step folders except the newest `keep` folders and the folder that was just written."""
        readable = []
        for path in step_folders(self.folder):
            # Broken step folders are not removed, because resuming the run renames them to `<name>.broken`.
            with contextlib.suppress(UnreadableCheckpoint):
                readable.append(_SHARDED.read_header(path))
        for old in sorted(readable, reverse=True)[self.keep :]:
            if old.path != written:
                remove_step_folder(old.path)

    def _failure(self, path: Path, error: BaseException) -> RunStopped:
        shutil.rmtree(path.with_name(path.name + ".tmp"), ignore_errors=True)
        newest = next(iter(readable_checkpoints(self.folder)), None) or "none in that folder"
        return RunStopped(
            f"checkpoint {path} could not be written ({last_line(error)}). The newest intact checkpoint: {newest}. "
            "Free disk space, and run the same command to resume from it"
        )

    def wait(self) -> None:
        """Wait until the background thread has written the step folder.

        Raises RunStopped if the step folder could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Shut down the background writer thread, whether or not its last checkpoint could be written."""
        self._thread.shutdown(wait=True)
