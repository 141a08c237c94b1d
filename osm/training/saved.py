"""The checkpoints in a run's folder: their order, whether each is whole, and what happens to a broken one.

Every checkpoint, after an epoch (`checkpoint_<epoch>.pt`) or within one (`checkpoints/step_<n>/`), carries a counter
that only grows. The newest checkpoint has the highest counter: step and epoch numbers may go down when a run
goes on with another batch size or number of processes. Checkpoints of older code have the counter 0 and are ordered by
epoch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import check_regular_file, read_json, write_atomically
from osm.models.checkpoint import FILES, read_published
from osm.storage.cache import localize, user_cache
from osm.storage.locations import check_location, is_remote, join, suffix_of
from osm.terminal import message_logger
from osm.training.distributed import World

logger = message_logger(__name__)

FOLDER = "checkpoints"
RUN_FILE = "run.json"
_STEP = re.compile(r"step_(\d{8,})")
_EPOCH = re.compile(r"checkpoint_(\d+)\.pt")
_PART = re.compile(r"\.metadata|__\d+_\d+\.distcp")
_CHUNK = 16 << 20


class Unreadable(OsmError):
    """A checkpoint that is broken, as opposed to one that does not fit."""


@dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint in a run's folder; a later one is greater.

    Attributes:
        counter: how many checkpoints the run had written by then, this one included; 0 in files of older code.
        epoch, batches: where the run goes on from it.
    """

    counter: int
    epoch: int
    batches: int
    path: Path


def step_folder(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step_{step:08d}"


def epoch_files(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints after epochs in a run's folder, by epoch, whether or not they are whole."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_*.pt") if (match := _EPOCH.fullmatch(path.name))]
    return dict(sorted(found))


def step_folders(folder: Path) -> list[Path]:
    """Returns the folders of checkpoints within epochs, whether or not they are whole."""
    return sorted(path for path in (folder / FOLDER).glob("step_*") if _STEP.fullmatch(path.name))


def scan(folder: Path) -> tuple[list[Saved], dict[Path, str]]:
    """Returns the checkpoints of a run's folder, the newest first, and those that cannot be opened, with the reason.

    Only headers are read: `check_whole` compares the checksums.
    """
    found, broken = [], dict[Path, str]()
    for path in [*epoch_files(folder).values(), *step_folders(folder)]:
        try:
            found.append(_of_step(path) if path.is_dir() else _of_epoch(path))
        except OsmError as error:
            broken[path] = str(error)
    return sorted(found, reverse=True), broken


def candidates(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run's folder that can be opened, the newest first."""
    return [saved.path for saved in scan(folder)[0]]


def _of_step(path: Path) -> Saved:
    progress = run_document(path)["progress"]
    counter, epoch, batches = (_count(path, progress, name) for name in ("saves", "epoch", "batches"))
    return Saved(counter, epoch, batches, path)


def _of_epoch(path: Path) -> Saved:
    try:
        document = read_published(path, device="meta")  # without the values of its tensors
    except OsmError as error:
        raise Unreadable(str(error)) from None
    progress = document.get("progress")
    match = _EPOCH.fullmatch(path.name)
    assert match is not None
    return Saved(_count(path, progress, "saves"), int(match[1]) + 1, 0, path)


def _count(path: Path, progress: Any, name: str) -> int:
    count = progress.get(name, 0) if isinstance(progress, Mapping) else 0
    if type(count) is not int or not 0 <= count < 1 << 62:
        raise Unreadable(f"checkpoint {path}: progress.{name} is {shown(count)}, a count is needed")
    return count


# -- the document of a step folder, with checksums ------------------------------------------------------------------


def write_run_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes `run.json`, with the size and SHA-256 of every other file of the checkpoint, and with its own SHA-256."""
    parts = {part.name: _sum(part) for part in sorted(path.iterdir()) if _PART.fullmatch(part.name)}
    whole = {**document, "files": parts}
    write_atomically(path / RUN_FILE, [json.dumps({**whole, "sha256": _digest(whole)})])


def run_document(path: Path) -> dict[str, Any]:
    """Returns the document of a step folder. Raises Unreadable where it is missing, broken, or has been changed."""
    try:
        document, _ = read_json(path / RUN_FILE, "checkpoint")
    except OsmError as error:
        raise Unreadable(str(error)) from None
    if not isinstance(document, dict) or not isinstance(document.get("progress"), dict):
        raise Unreadable(f"checkpoint {path / RUN_FILE}: no progress of a run in it")
    digest = document.pop("sha256", None)
    if digest is not None and digest != _digest(document):
        raise Unreadable(f"checkpoint {path / RUN_FILE} is broken: its content does not have the checksum it names")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _sum(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return [file.tell(), digest.hexdigest()]


def check_whole(path: Path) -> None:
    """Compares a checkpoint with its checksums: SHA-256 of a step folder's files, CRC-32 of a `.pt` file's records.

    Raises:
        Unreadable: it is not what was written. Step folders of older code have no checksums and pass.
    """
    if path.is_dir():
        _check_parts(path, run_document(path).get("files"))
        return
    check_regular_file(path, "checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()
    except OSError as error:
        raise Unreadable(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise Unreadable(f"checkpoint {path} is broken ({type(error).__name__}: {error})") from None
    if spoilt is not None:
        raise Unreadable(f"checkpoint {path} is broken: its record {spoilt!r} does not have the checksum of the file")


def _check_parts(path: Path, parts: Any) -> None:
    if parts is None:
        return
    if not isinstance(parts, dict) or not all(_PART.fullmatch(str(name)) for name in parts):
        raise Unreadable(f"checkpoint {path / RUN_FILE}: 'files' is no table of its files")
    for name, expected in parts.items():
        part = path / name
        if part.is_symlink() or not part.is_file():
            raise Unreadable(f"checkpoint {path} is broken: {name} is missing")
        try:
            found = _sum(part)
        except OSError as error:
            raise Unreadable(f"checkpoint {path} cannot be read ({name}: {error.strerror})") from None
        if found[0] != expected[0]:
            raise Unreadable(f"checkpoint {path} is broken: {name} has {found[0]} bytes, {expected[0]} were written")
        if found != expected:
            raise Unreadable(
                f"checkpoint {path} is broken: {name} does not have the checksum with which it was written"
            )


@functools.cache
def local_checkpoint(location: str) -> Path:
    """The local path of a checkpoint to go on from: of a remote one its copy, which is fetched once a run.

    Raises:
        OsmError: there is no such file. RunStopped: it cannot be fetched.
    """
    flag = "--resume_from_checkpoint"
    if not is_remote(location):
        return Path(location)
    url = check_location(location, flag)
    if suffix_of(url) in FILES:
        return localize(url, flag)
    folder = localize(join(url, RUN_FILE), flag).parent
    parts = run_document(folder).get("files")
    names = [name for name in parts if _PART.fullmatch(str(name))] if isinstance(parts, dict) else None
    if names is None:  # of older code
        return localize(url, flag, folder=True)
    user_cache().get_all({join(url, name): None for name in names}, url, missing=True)  # `check_whole` tells of it
    return folder


# -- which one a run goes on from -------------------------------------------------------------------------------------


def newest_whole(folder: Path, world: World, passed_over: Mapping[Path, str]) -> Path | None:
    """Finds the newest whole checkpoint of a run's folder; a collective call.

    Broken ones are set aside under another name, with a warning, once a whole one is found.

    Args:
        passed_over: checkpoints that turned out to be broken when they were loaded, with the reason.

    Raises:
        OsmError: there are checkpoints, but none is whole.
    """
    return world.from_main(lambda: _newest_whole(folder, passed_over))


def _newest_whole(folder: Path, passed_over: Mapping[Path, str]) -> Path | None:
    _finish_renaming(folder)
    entries, broken = scan(folder)
    broken |= passed_over
    for entry in entries:
        if entry.path in broken:
            continue
        try:
            check_whole(entry.path)
        except Unreadable as error:
            broken[entry.path] = str(error)
            continue
        for path, reason in broken.items():
            logger.warning(f"{reason}; {_set_aside(path)}; going on from {entry.path}", to_stdout=True)
        return entry.path
    if broken:
        raise OsmError(
            f"none of the {len(broken)} checkpoints in --run_name {folder} is whole; to begin anew, choose another "
            "folder or remove them:\n  " + "\n  ".join(broken.values())
        )
    return None


def _set_aside(path: Path) -> str:
    """Renames a broken checkpoint; returns what a message says about it."""
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
    """Gives a step folder its name where a kill came after its last file was written and before it was renamed."""
    for left in (folder / FOLDER).glob("step_*.tmp"):
        path = left.with_suffix("")
        if not _STEP.fullmatch(path.name) or path.exists():
            continue
        try:
            check_whole(left)
            left.rename(path)
        except (OsmError, OSError):
            continue  # not finished: the next save removes it


def replace_step(temporary: Path, path: Path) -> None:
    """Gives a finished step folder its name, in place of whatever has it (a broken or an older one)."""
    doomed = _moved_away(path) if path.exists() else None
    temporary.replace(path)
    if doomed is not None:
        shutil.rmtree(doomed)


def _moved_away(path: Path) -> Path:
    """Renames a step folder that is about to be removed, so that a kill leaves no part of it under its name."""
    doomed = path.with_name(path.name + ".old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    return path.rename(doomed)


def prune(folder: Path, keep: int, written: Path) -> None:
    """Removes all step folders but the `keep` newest ones; never `written`, the one that was just written."""
    whole = []
    for path in step_folders(folder):
        with contextlib.suppress(Unreadable):  # left for the next start, which sets it aside
            whole.append(_of_step(path))
    for old in sorted(whole, reverse=True)[keep:]:
        if old.path != written:
            shutil.rmtree(_moved_away(old.path))


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed run was writing or removing."""
    for left in (folder / FOLDER).glob("step_*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
