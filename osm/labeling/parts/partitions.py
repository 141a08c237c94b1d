"""Divides the images of a run into partitions, each of which is labeled by one worker at a time.

A shard or a Parquet table is a partition, which the worker lists itself, so that the driver never reads it. Other
images are divided into partitions of `--part_images` images. A worker writes a part after each `--part_images` images,
so a worker that is killed loses at most one part of its partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osm.data.shard_lists import expand_shards
from osm.errors import OsmError
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_options import LabelOptions
from osm.labeling.label_tasks import LabelTask, contained_format, find_tasks, holds_images, tasks_of
from osm.labeling.stored_images import StoredImage, images_of_shard, images_of_table, is_table
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, sibling


@dataclass(frozen=True)
class LabelPartition:
    """Images that are labeled by one worker at a time.

    Attributes:
        number: the position of the partition in the input, from 0.
        tasks: the images, if the driver has listed them.
        file: the path or URL of the shard or table whose images the worker lists; empty if `tasks` lists them.
    """

    number: int
    tasks: tuple[LabelTask, ...] = ()
    file: str = ""

    def part_name(self, part: int) -> str:
        """Return the name of one of the partition's parts. The names are sorted as the images are."""
        return f"parts/part-{self.number:06d}-{part:05d}.parquet"

    @property
    def done_name(self) -> str:
        """The name of the file that is written once the partition is complete."""
        return f".osm_label/done/{self.number:06d}.json"

    def attempts_name(self, part: int) -> str:
        """Return the name of the file that counts how often a part was begun."""
        return f".osm_label/attempts/{self.number:06d}-{part:05d}.json"


@dataclass(frozen=True)
class PartitionPlan:
    """The partitions of a run.

    Attributes:
        partitions: the partitions, in the order of the input.
        reader: the format of the masks; None if a segmenter finds them.
        masks: the local file or folder with the masks, if it is a single one.
        images: the number of images, or None if workers list them.
        identity: what the partitions are, for comparing the settings of runs.
        left_out: the number of images with masks that are not in the list of images.
    """

    partitions: list[LabelPartition]
    reader: type[LabelFormat] | None
    masks: Path | None
    images: int | None
    identity: Sequence[tuple[str, int]]
    left_out: int = 0


def plan_partitions(options: LabelOptions) -> PartitionPlan:
    """Find the images of a run, and divide them into partitions.

    Raises:
        OsmError: the images or the masks are not found.
    """
    if holds_images(options.images) and not options.masks:
        reader = None if options.auto else contained_format(options.images, options.form or None)
        files = expand_shards(options.images)  # a file that is missing fails when it is labeled
        if len(set(files)) < len(files):
            raise OsmError(f"images {public(options.images)}: lists a file twice")
        partitions = [LabelPartition(number, file=file) for number, file in enumerate(files)]
        return PartitionPlan(partitions, reader, None, None, [(public(file), 0) for file in files])
    out = None if is_remote(options.out) else options.out
    found = find_tasks(options.images, options.masks, options.image_dir, options.form or None, options.auto, out)
    size = options.part_images
    starts = range(0, len(found.tasks), size)
    partitions = [LabelPartition(k, tuple(found.tasks[start : start + size])) for k, start in enumerate(starts)]
    identity = [(task.file_name, task.stated_masks) for task in found.tasks]
    return PartitionPlan(partitions, found.reader, found.masks, len(found.tasks), identity, found.left_out)


def tasks_of_partition(partition: LabelPartition, reader: type[LabelFormat] | None) -> list[LabelTask]:
    """Return the images of a partition. Shards and tables on object stores are fetched first.

    Raises:
        OsmError: the file of the partition cannot be read.
    """
    if not partition.file:
        return list(partition.tasks)
    path = localize(partition.file, "images")
    if reader is not None:
        tasks = tasks_of(reader.sources(path))
    else:
        found = (images_of_table if is_table(partition.file) else images_of_shard)(str(path))
        tasks = [LabelTask(number, name, image, None) for number, (name, image) in enumerate(found.items())]
    return [_beside(task, partition.file, path) for task in tasks] if is_remote(partition.file) else tasks


def _beside(task: LabelTask, file: str, copy: Path) -> LabelTask:
    """Return a task of a remote table. Its image files are beside the table, not beside the copy in the cache."""
    image = task.image
    if image.member is not None or image.fault or is_remote(image.location):
        return task
    name = Path(image.location).relative_to(copy.parent).as_posix()
    return replace(task, image=StoredImage(sibling(file, name)))


def in_parts(tasks: Sequence[LabelTask], size: int) -> Iterator[tuple[int, Sequence[LabelTask]]]:
    """Yield the number and the images of each part of a partition. A partition without images has one empty part."""
    for part, start in enumerate(range(0, max(1, len(tasks)), size)):
        yield part, tasks[start : start + size]
