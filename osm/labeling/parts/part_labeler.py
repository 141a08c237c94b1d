"""Labels the images of partitions, and writes their parts.

A part is written at once when all of its images are labeled, under a name that only depends on the input. Labeling a
part again, on whatever machine, therefore replaces a file with the same rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from osm.documents import parse_json
from osm.errors import OsmError, RunStopped
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_journal import Record
from osm.labeling.label_options import LabelOptions, load_labeler
from osm.labeling.label_tasks import LabelTask
from osm.labeling.labeler import ImageLabeler
from osm.labeling.parts.part_rows import PartCounts, part_bytes, part_records
from osm.labeling.parts.part_store import PartStore
from osm.labeling.parts.partitions import LabelPartition, in_parts, tasks_of_partition
from osm.storage.cache import user_cache
from osm.storage.locations import is_remote, public
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_ATTEMPTS = 2
"""After a part was begun so often without being finished, its images are marked one by one as they are begun."""
MAX_DEATHS = 2
"""An image during which the worker died so often is not tried again."""
KILLED = f"the worker ended {MAX_DEATHS} times while it labeled this image (out of memory?)"

_UNTRIED: Record = {"failed": "not tried yet"}


@dataclass
class _Attempts:
    """How often a part was begun, so that an image that kills its worker is left out in the end."""

    store: PartStore
    name: str
    begun: int = 0
    image: int | None = None
    deaths: Counter[int] = field(default_factory=Counter)

    @classmethod
    def begin(cls, store: PartStore, name: str) -> _Attempts:
        """Read the attempts of a part, and add one."""
        found = cls(store, name)
        stored = store.read(name)
        if stored is not None:
            try:
                values = parse_json(stored)
                found.begun = int(values["begun"])
                found.deaths.update({int(key): int(count) for key, count in values["deaths"].items()})
                if values["image"] is not None:
                    found.deaths[int(values["image"])] += 1
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.warning(f"{store.where(name)}: is damaged, and counts as no attempt")
        found.begun += 1
        found._write()
        return found

    @property
    def careful(self) -> bool:
        """Whether the images are marked one by one."""
        return self.begun > MAX_ATTEMPTS

    def mark(self, image: int | None) -> None:
        """Note that an image is begun, or that none is in progress."""
        self.image = image
        self._write()

    def take_back(self) -> None:
        """Do not count this attempt, because the worker was told to stop, or raised an error that it could report."""
        self.begun -= 1
        self.mark(None)

    def _write(self) -> None:
        values = {"begun": self.begun, "image": self.image, "deaths": self.deaths}
        self.store.write(self.name, json.dumps(values).encode())


class PartLabeler:
    """Labels partitions. The model is loaded by `load`, or when the first image is labeled.

    Args:
        options: what is labeled, and how.
        reader: the format of the masks; None if a segmenter finds them.
    """

    def __init__(self, options: LabelOptions, reader: type[LabelFormat] | None) -> None:
        self.options, self.reader = options, reader
        self.store = PartStore(options.destination)
        self._labeler: ImageLabeler | None = None

    @property
    def labeler(self) -> ImageLabeler:
        """The model, and what else names the masks of an image."""
        self.load_model()
        assert self._labeler is not None
        return self._labeler

    def load_model(self) -> None:
        """Load the model, unless it is loaded. Raises OsmError if it cannot be loaded."""
        if self._labeler is None:
            self._labeler = load_labeler(self.options, self.reader)

    def label(self, partition: LabelPartition) -> PartCounts:
        """Label the images of a partition that are not in its parts yet, and write the parts.

        Images that an earlier run could not label are tried again, unless they ended their worker.

        Raises:
            OsmError: the file of the partition cannot be read, or a part cannot be written.
        """
        tasks = tasks_of_partition(partition, self.reader)
        counts = PartCounts(numbers=max((task.number for task in tasks), default=-1) + 1)
        for part, own in in_parts(tasks, self.options.part_images):
            counts.parts += 1
            for record in self._part(partition, part, own):
                counts.add_record(record)
        self.store.write(partition.done_name, json.dumps(counts.as_dict()).encode())
        if partition.file and is_remote(partition.file):
            user_cache().forget(partition.file)  # the disk would fill up with shards
        return counts

    def _part(self, partition: LabelPartition, part: int, tasks: Sequence[LabelTask]) -> list[Record]:
        name = partition.part_name(part)
        stored = self.store.read(name)
        before = {} if stored is None else _by_number(part_records(stored, self.store.where(name)))
        names = {number: record["file_name"] for number, record in before.items()}
        if stored is not None and names != {task.number: task.file_name for task in tasks}:
            where = self.store.where(name)
            raise OsmError(f"{where}: has other images than the input; choose another output folder, or --overwrite")
        left = [task for task in tasks if before.get(task.number, _UNTRIED)["failed"] not in ("", KILLED)]
        if stored is None or left:
            if left:
                self.load_model()  # before the attempt is counted
            attempts = _Attempts.begin(self.store, partition.attempts_name(part))
            try:
                for record in self._records(left, attempts):
                    if partition.file and is_remote(partition.file) and "member" in record:
                        record["path"] = public(partition.file)  # instead of the file in the cache
                    before[record["number"]] = record
                self._keep_better(name, before)
                self.store.write(name, part_bytes(before[task.number] for task in tasks))
            except (Exception, KeyboardInterrupt, SystemExit):
                attempts.take_back()
                raise
            self.store.remove(attempts.name)
        return [before[task.number] for task in tasks]

    def _keep_better(self, name: str, records: dict[int, Record]) -> None:
        """Replace failed images by what another worker has meanwhile written, if it could label them."""
        if not any(record["failed"] for record in records.values()):
            return
        stored = self.store.read(name)
        for record in part_records(stored, self.store.where(name)) if stored is not None else ():
            if records.get(record["number"], {}).get("failed") and not record["failed"]:
                records[record["number"]] = record

    def _records(self, tasks: Sequence[LabelTask], attempts: _Attempts) -> Iterator[Record]:
        if not tasks:
            return
        if not attempts.careful:
            yield from self.labeler.records(tasks)
            return
        for task in tasks:
            if attempts.deaths[task.number] >= MAX_DEATHS:
                logger.warning(f"{task.image.location}: not labeled ({KILLED})")
                yield self.labeler.failed(task, KILLED)
                continue
            attempts.mark(task.number)
            yield from self.labeler.records([task])
        attempts.mark(None)


def _by_number(records: Sequence[Record]) -> dict[int, Record]:
    return {record["number"]: record for record in records}


class PartitionResult(NamedTuple):
    """What became of a partition.

    Attributes:
        number: the number of the partition.
        error: why it was not finished, or an empty text.
        stopped: whether a disk or server failed, as opposed to the partition's file.
    """

    number: int
    error: str = ""
    stopped: bool = False


def result_of(labeler: PartLabeler, partition: LabelPartition) -> PartitionResult:
    """Label a partition, and return what became of it."""
    try:
        labeler.label(partition)
    except OsmError as error:
        return PartitionResult(partition.number, str(error), isinstance(error, RunStopped))
    except Exception as error:  # a file that no reader has foreseen must not stop the other partitions
        return PartitionResult(partition.number, f"unexpected error: {type(error).__name__}: {error}")
    return PartitionResult(partition.number)


def done_counts(store: PartStore, name: str) -> PartCounts:
    """Return what a complete partition holds.

    Raises:
        OsmError: the file is damaged.
    """
    stored: Any = store.read(name)
    if stored is None:
        raise OsmError(
            f"{store.where(name)}: there is no such file, because the run is not complete; complete it first"
        )
    try:
        return PartCounts.of(parse_json(stored))
    except (TypeError, ValueError, KeyError):
        raise OsmError(f"{store.where(name)}: is damaged; remove it, and run the same command again") from None
