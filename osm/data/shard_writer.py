"""Write WebDataset shards. The output is byte-reproducible, and an interrupted conversion can be resumed."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from osm.data.shard_index import index_document, index_name, index_text
from osm.documents import parse_json
from osm.errors import OsmError, not_one_of
from osm.storage.output import open_output

LAYOUTS = ("webdataset", "published")
SIZES, SUMMARY, PROGRESS = "sizes.json", "summary.json", "progress.json"
CATEGORIES = "categories.json"
MAX_NAME_BYTES = 100  # the longest member name that the USTAR format allows
_TEMPORARY = ".tmp"
_SHARD = re.compile(r"\d{9}\.tar")
_EXAMPLES = 5  # the number of example messages kept per reason
_LOCK_SECONDS = 3.0  # the workers of a killed run hold its lock until they notice that their parent process has ended


@dataclass
class Tally:
    """Counts of the items processed so far, with example messages.

    Attributes:
        written: number of samples written.
        annotations: number of annotations in the written samples.
        left_out: number of skipped items, by reason.
        warnings: number of faults in written samples, by reason.
        examples: the first few messages for each reason.
    """

    written: int = 0
    annotations: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, counts: Counter[str], reason: str, message: str, count: int = 1) -> bool:
        """Count a message under its reason, and return whether it is among the first few for that reason."""
        counts[reason] += count
        kept = self.examples.setdefault(reason, [])
        if len(kept) >= _EXAMPLES:
            return False
        kept.append(message)
        return True

    def as_json(self) -> dict[str, Any]:
        """Return the counts and messages as a JSON object."""
        return {
            "written": self.written,
            "annotations": self.annotations,
            "left_out": dict(sorted(self.left_out.items())),
            "warnings": dict(sorted(self.warnings.items())),
            "examples": {reason: list(messages) for reason, messages in sorted(self.examples.items())},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """Restore the counts and messages from the result of `as_json`."""
        examples = {reason: list(messages) for reason, messages in value["examples"].items()}
        left_out, warnings = Counter(value["left_out"]), Counter(value["warnings"])
        return cls(value["written"], value["annotations"], left_out, warnings, examples)


def shard_name(number: int) -> str:
    """Return the file name of a shard, such as `000000000.tar`."""
    return f"{number:09d}.tar"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Context manager that writes samples to `000000000.tar`, `000000001.tar`, ... in `output_dir`.

    The caller iterates over a fixed list of input items, starting at index `next_item`, and calls `write` or
    `leave_out` with the index of each item. At the end, the caller calls `finish`. A shard is written under a temporary
    name and renamed once it is complete. The file `progress.json` records each complete shard, so that a restarted
    conversion resumes at the first item after the last complete shard.

    For an output folder on `s3://` or `gs://`, each shard is written to a local staging folder and uploaded once it is
    complete.

    Args:
        output_dir: local folder or remote location of the shards.
        layout: one of `LAYOUTS`. The layout is part of the recorded arguments.
        num_files_per_shard: number of samples per shard.
        arguments: all other arguments that determine the content of the shards. If `output_dir` holds shards that were
            made with different arguments, the writer raises OsmError.

    Raises:
        OsmError: an argument is invalid, `output_dir` holds shards of a different conversion, or another process is
            writing to `output_dir`.
        RunStopped: the server of a remote folder does not respond. All methods that write files can raise RunStopped
            too.
    """

    def __init__(
        self,
        output_dir: str | Path,
        layout: str,
        num_files_per_shard: int = 1000,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise not_one_of("layout", layout, LAYOUTS)
        if num_files_per_shard < 1:
            raise OsmError(f"num_files_per_shard {num_files_per_shard} must be 1 or more")
        self.num_files_per_shard = num_files_per_shard
        self.arguments = {**(arguments or {}), "layout": layout, "num_files_per_shard": num_files_per_shard}
        self.tally = Tally()
        self.next_item = 0
        self.finished = False
        self._shards: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None
        self._file: IO[bytes] | None = None
        self._in_shard = 0
        self._output = open_output(output_dir, "output_dir")
        self._output.lock(_LOCK_SECONDS)
        try:
            self._resume()
        except BaseException:
            self._output.unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the lock on the output folder, and delete the last shard if it is incomplete."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk, flushing the remaining data fails again
                self._file.close()
            self._temporary.unlink(missing_ok=True)
        self._output.unlock()

    @property
    def where(self) -> str:
        """The output folder, as displayed in messages."""
        return self._output.where

    @property
    def sizes(self) -> dict[str, int]:
        """A dict that maps the file name of each complete shard to its number of samples."""
        return {shard["name"]: shard["samples"] for shard in self._shards}

    def write(self, item: int, key: str, members: Iterable[tuple[str, bytes]], annotations: int = 0) -> None:
        """Add a sample.

        Args:
            item: index of the item that the sample was made from.
            key: key of the sample.
            members: (extension, bytes) pairs. Each pair becomes the member `<key>.<extension>`.
            annotations: number of annotations of the sample, for the tally.
        """
        if self._tar is None:
            self._file = self._temporary.open("wb")
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8")
        for extension, data in members:
            info = tarfile.TarInfo(f"{key}.{extension}")  # owner and times default to 0, so the bytes are reproducible
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self._in_shard += 1
        self.tally.written += 1
        self.tally.annotations += annotations
        self.next_item = item + 1
        if self._in_shard == self.num_files_per_shard:
            self._close_shard()

    def leave_out(self, item: int, reason: str, message: str) -> bool:
        """Count a skipped input item, and return whether its message should be printed."""
        self.next_item = item + 1
        return self.tally.note(self.tally.left_out, reason, message)

    def warn(self, reason: str, message: str, count: int = 1) -> bool:
        """Count a fault in a sample that is written despite the fault, and return whether to print its message.

        Call this method before calling `write` for the same sample.
        """
        return self.tally.note(self.tally.warnings, reason, message, count)

    def finish(
        self, left_out: Mapping[str, int] | None = None, warnings: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Close the last shard, write `sizes.json` and `summary.json`, and return the summary.

        Args:
            left_out: reason -> number of items that were skipped before the list of items was made. These counts are
                added to the summary.
            warnings: reason -> number of faults that were found before the list of items was made. These counts are
                added to the summary.
        """
        if self._tar is not None:
            self._close_shard()
        summary = self.tally.as_json()
        summary["left_out"] = dict(sorted((Counter(left_out or {}) + self.tally.left_out).items()))
        summary["warnings"] = dict(sorted((Counter(warnings or {}) + self.tally.warnings).items()))
        summary |= {"shards": len(self._shards), "arguments": self.arguments}
        self.put_json(SIZES, self.sizes)
        self.put_json(SUMMARY, summary)
        self.finished = True
        self._write_progress()
        return summary

    def start_over(self) -> None:
        """Delete the shards of a finished conversion from the output folder, and start over from the first item."""
        for name in (*self.sizes, *map(index_name, self.sizes), SIZES, SUMMARY):
            self._output.remove(name)
        self._shards, self.tally, self.next_item, self.finished = [], Tally(), 0, False
        self._write_progress()

    @property
    def _temporary(self) -> Path:
        return self._output.path / (shard_name(len(self._shards)) + _TEMPORARY)

    def _close_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        temporary, name = self._temporary, shard_name(len(self._shards))
        size = temporary.stat().st_size
        with temporary.open("rb") as stream:
            index = index_text(index_document(name, stream))
        os.replace(temporary, self._output.path / name)
        (self._output.path / index_name(name)).write_text(index, encoding="utf-8")
        self._output.put(name, index_name(name))
        self._shards.append(
            {
                "name": name,
                "samples": self._in_shard,
                "bytes": size,
                "next_item": self.next_item,
                "tally": self.tally.as_json(),
            }
        )
        self._tar, self._file, self._in_shard = None, None, 0
        self._write_progress()

    def put_json(self, name: str, value: Any) -> None:
        """Write a JSON file next to the shards."""
        write_json(self._output.path / name, value)
        self._output.put(name)

    def _write_progress(self) -> None:
        final = {"next_item": self.next_item, "tally": self.tally.as_json()} if self.finished else None
        self.put_json(PROGRESS, {"arguments": self.arguments, "shards": self._shards, "finished": final})

    def _resume(self) -> None:
        """Resume an interrupted conversion that was started with the same arguments, and keep its complete shards.

        Raise OsmError if the output folder contains shards from a different conversion.
        """
        there = self._output.sizes()
        found = {name for name in there if name.endswith(".tar")}
        record = self._read_progress()
        recorded = [] if record is None else record["shards"]
        # The conversion may have been killed after a shard was renamed, but before it was recorded in progress.json.
        # A shard that is not recorded in progress.json is written again.
        strangers = found - {shard["name"] for shard in recorded}
        if record is not None:
            strangers -= {shard_name(len(recorded))}
        if strangers:
            raise OsmError(
                f"output_dir {self.where} contains {min(strangers)}, which progress.json does not list as the "
                "output of a conversion; use an empty folder"
            )
        for shard in recorded:
            if there.get(shard["name"]) != shard["bytes"]:
                break
            self._shards.append(shard)
        whole = record is not None and len(self._shards) == len(recorded)
        self.finished = whole and record is not None and record["finished"] is not None
        last = (
            record["finished"] if self.finished and record is not None else self._shards[-1] if self._shards else None
        )
        if last is not None:
            self.tally, self.next_item = Tally.from_json(last["tally"]), last["next_item"]
        for pattern in ("*.tar", index_name("*.tar")):
            self._output.forget(pattern)
        for path in self._output.path.glob(f"*{_TEMPORARY}"):
            if _SHARD.fullmatch(path.name.removesuffix(_TEMPORARY)):
                path.unlink()
        for name in {SIZES, SUMMARY} & there.keys() if not self.finished else ():
            self._output.remove(name)
        self._write_progress()

    def _read_progress(self) -> dict[str, Any] | None:
        try:
            data = self._output.read(PROGRESS, "progress")
            if data is None:
                return None
            record = parse_json(data.decode())
            made_with = dict(record["arguments"])
            for shard in record["shards"]:
                Tally.from_json(shard["tally"])
        except OsmError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = self._output.location(PROGRESS)
            raise OsmError(f"{path} is not a valid conversion record ({error!r}); use an empty output_dir") from None
        ours = json.loads(json.dumps(self.arguments))
        for name in sorted(made_with.keys() | ours.keys()):
            if made_with.get(name) != ours.get(name):
                raise OsmError(
                    f"output_dir {self.where} contains shards from a run with different arguments (argument {name} was "
                    f"{made_with.get(name)!r}, but is now {ours.get(name)!r}); use an empty folder "
                    "or the same arguments"
                )
        return record
