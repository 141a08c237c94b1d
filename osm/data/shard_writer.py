"""Writes WebDataset shards: the same samples give the same bytes, and a killed run goes on where it stopped."""

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
from osm.errors import OsmError
from osm.storage.output import open_output

LAYOUTS = ("webdataset", "published")
SIZES, SUMMARY, PROGRESS = "sizes.json", "summary.json", "progress.json"
CATEGORIES = "categories.json"
MAX_NAME_BYTES = 100  # of a member, in USTAR
_TEMPORARY = ".tmp"
_SHARD = re.compile(r"\d{9}\.tar")
_EXAMPLES = 5  # messages kept of each reason: thousands of missing files say no more than five
_LOCK_SECONDS = 3.0  # the worker processes of a killed run hold its lock until they notice


@dataclass
class Tally:
    """Counts of the items processed so far, and the first few messages of each reason.

    Attributes:
        written: samples. annotations: that they have.
    """

    written: int = 0
    annotations: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, counts: Counter[str], reason: str, message: str, count: int = 1) -> bool:
        """Counts a reason; true while its messages are few enough to be worth printing."""
        counts[reason] += count
        kept = self.examples.setdefault(reason, [])
        if len(kept) >= _EXAMPLES:
            return False
        kept.append(message)
        return True

    def as_json(self) -> dict[str, Any]:
        return {
            "written": self.written,
            "annotations": self.annotations,
            "left_out": dict(sorted(self.left_out.items())),
            "warnings": dict(sorted(self.warnings.items())),
            "examples": {reason: list(messages) for reason, messages in sorted(self.examples.items())},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        examples = {reason: list(messages) for reason, messages in value["examples"].items()}
        left_out, warnings = Counter(value["left_out"]), Counter(value["warnings"])
        return cls(value["written"], value["annotations"], left_out, warnings, examples)


def shard_name(number: int) -> str:
    return f"{number:09d}.tar"


def write_json(path: Path, value: Any) -> None:
    """Writes a json file that is at no time half there."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Writes samples to `000000000.tar`, `000000001.tar`, ... in `output_dir`; use it in a `with` block.

    The caller goes through a fixed list of items, from `next_item` on, and calls `write` or `leave_out` with each
    item's index, then `finish`. A shard is written under a temporary name and renamed when whole; then `progress.json`
    is told of it, so that the same run, started again, begins with the first item after the last whole shard.

    A folder on `s3://` or `gs://` is written the same way: a shard is made in a staging folder of this machine, and
    uploaded when whole.

    Args:
        arguments: whatever else decides the content of the shards. A folder that holds the shards of other arguments
            is refused.

    Raises:
        OsmError: an argument is wrong, `output_dir` holds other shards, or another process is writing there.
        RunStopped: the server of a remote folder does not answer; so do all methods that write.
    """

    def __init__(
        self,
        output_dir: str | Path,
        layout: str,
        num_files_per_shard: int = 1000,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise OsmError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        if num_files_per_shard < 1:
            raise OsmError(f"num_files_per_shard {num_files_per_shard} has to be 1 or more")
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
        """Drops an unfinished shard: only `finish` closes one that is not full."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk, what is left to write fails once more
                self._file.close()
            self._temporary.unlink(missing_ok=True)
        self._output.unlock()

    @property
    def where(self) -> str:
        """The folder as messages call it."""
        return self._output.where

    @property
    def sizes(self) -> dict[str, int]:
        """The whole shards and their numbers of samples."""
        return {shard["name"]: shard["samples"] for shard in self._shards}

    def write(self, item: int, key: str, members: Iterable[tuple[str, bytes]], annotations: int = 0) -> None:
        """Adds a sample: each (extension, bytes) becomes the member `<key>.<extension>`; it has so many annotations."""
        if self._tar is None:
            self._file = self._temporary.open("wb")
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8")
        for extension, data in members:
            info = tarfile.TarInfo(f"{key}.{extension}")  # owner and times are 0 and stay so: fixed bytes
            info.size, info.mode = len(data), 0o644
            self._tar.addfile(info, io.BytesIO(data))
        self._in_shard += 1
        self.tally.written += 1
        self.tally.annotations += annotations
        self.next_item = item + 1
        if self._in_shard == self.num_files_per_shard:
            self._close_shard()

    def leave_out(self, item: int, reason: str, message: str) -> bool:
        """Counts an item that gives no sample; true where the message should be shown."""
        self.next_item = item + 1
        return self.tally.note(self.tally.left_out, reason, message)

    def warn(self, reason: str, message: str, count: int = 1) -> bool:
        """Counts a fault of a sample that is kept (before its `write`); true where the message should be shown."""
        return self.tally.note(self.tally.warnings, reason, message, count)

    def finish(
        self, left_out: Mapping[str, int] | None = None, warnings: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Closes the last shard, writes `sizes.json` and `summary.json`, and returns the summary.

        Args:
            left_out: by reason, what was left out before it became an item. warnings: what was found by then.
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
        """Deletes the shards of the finished run found here, and begins anew."""
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
        """Writes a json file beside the shards."""
        write_json(self._output.path / name, value)
        self._output.put(name)

    def _write_progress(self) -> None:
        final = {"next_item": self.next_item, "tally": self.tally.as_json()} if self.finished else None
        self.put_json(PROGRESS, {"arguments": self.arguments, "shards": self._shards, "finished": final})

    def _resume(self) -> None:
        """Takes over the whole shards of a run with the same arguments; refuses a folder with any others."""
        there = self._output.sizes()
        found = {name for name in there if name.endswith(".tar")}
        record = self._read_progress()
        recorded = [] if record is None else record["shards"]
        # A shard may have been renamed just before the run was killed, so that the record lacks it: written again.
        strangers = found - {shard["name"] for shard in recorded}
        if record is not None:
            strangers -= {shard_name(len(recorded))}
        if strangers:
            raise OsmError(
                f"output_dir {self.where} holds {min(strangers)}, which a run of this kind did not write: "
                "give an empty folder"
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
            raise OsmError(f"{path}: not the record of a conversion ({error!r}): give an empty output_dir") from None
        ours = json.loads(json.dumps(self.arguments))
        for name in sorted(made_with.keys() | ours.keys()):
            if made_with.get(name) != ours.get(name):
                raise OsmError(
                    f"output_dir {self.where} holds the shards of another run: its {name} was "
                    f"{made_with.get(name)!r}, now it is {ours.get(name)!r}; give an empty folder or the same arguments"
                )
        return record
