"""A labeling run from its options: finds the images, names their masks in one or more processes, writes the labels."""

from __future__ import annotations

import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from osm.errors import not_one_of
from osm.labeling.corrections import Corrections
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_journal import FOLDER, LabelJournal
from osm.labeling.label_options import LabelOptions, load_labeler
from osm.labeling.label_output import LabelSummary, write_labels
from osm.labeling.label_processes import for_process, run_processes
from osm.labeling.label_tasks import LabelInput, LabelTask, find_tasks
from osm.labeling.video import FRAMES, extract_frames, is_video
from osm.quiet import quiet_command
from osm.storage.locations import is_remote
from osm.terminal import message_logger

logger = message_logger(__name__)


def find_input(options: LabelOptions) -> LabelInput:
    """Find the images and the masks of a run. Frames of a video are extracted to the output folder."""
    options.check()
    if options.tracks:
        from osm.labeling.tracks import track_tasks

        found = track_tasks(Path(options.tracks), options.images, options.out)
    else:
        images, out = options.images, options.out
        if is_video(images):
            images, out = str(extract_frames(Path(images), out / FRAMES)), out / FOLDER
        found = find_tasks(images, options.masks, options.image_dir, options.form or None, options.auto, out)
    options.check_same(found.reader, found.masks)
    return found


def label_images(options: LabelOptions, found: LabelInput | None = None) -> tuple[LabelSummary, float]:
    """Name the masks of all images, and write the labels. Images that an earlier run has labeled are not named again.

    Args:
        options: what is labeled, and how.
        found: the result of `find_input`.

    Returns:
        what was written, and the number of images per second, or 0 if no image was left.

    Raises:
        OsmError: an option or a file is invalid, or the folder has labels that were made with other options.
        RunStopped: a process ended early.
    """
    if options.in_parts and found is None:
        from osm.labeling.parts.part_run import label_parts

        return label_parts(options)
    found = found or find_input(options)
    corrections = Corrections.read(options.corrections, "--corrections") if options.corrections is not None else None
    journal = LabelJournal(
        options.out, options.settings([(task.file_name, task.stated_masks) for task in found.tasks]), options.overwrite
    )
    journal.repair()
    if corrections is not None:
        journal.correct(corrections)
    if found.left_out:
        logger.info(f"{found.left_out} images with masks are not in the list of images, and are left out")
    done = journal.places(failed=False)
    left = [task for task in found.tasks if task.number not in done]
    if done:
        logger.info(f"{len(done)} of {len(found.tasks)} images have been labeled before, and are not named again")
    started = time.monotonic()
    if left and options.tracks:
        from osm.labeling.track_labeler import label_tracks

        label_tracks(options, found.tasks, left, journal)
    elif left:
        _label(options, left, found.reader, journal)
    seconds = time.monotonic() - started
    if options.tracks:
        from osm.labeling.track_labeler import write_tracks

        write_tracks(journal, options.out)
    target = options.target(found.reader, found.masks)
    return write_labels(journal, options.rules, options.out, target), len(left) / seconds if left else 0.0


def _label(
    options: LabelOptions, tasks: list[LabelTask], reader: type[LabelFormat] | None, journal: LabelJournal
) -> None:
    """Label images in this process, or in several processes that each take every n-th image."""
    count = min(options.processes, len(tasks))
    if count == 1:
        load_labeler(for_process(options, 0, 1), reader).run(tasks, journal)
        return
    run_processes(_work, [(options, tasks[k::count], reader, journal, k, count) for k in range(count)])


@quiet_command
def _work(
    options: LabelOptions,
    tasks: list[LabelTask],
    reader: type[LabelFormat] | None,
    journal: LabelJournal,
    process: int,
    count: int,
) -> int:
    load_labeler(for_process(options, process, count), reader).run(tasks, journal, process)
    return 0


def label(images: str | Path, out: str | Path, **options: Any) -> LabelSummary:
    """Name the masks of many images, and write the names in the formats of annotation tools, as `osm label` does.

    >>> osm.label("photos", "labels", masks="instances.json", to=("coco", "yolo"))

    Args:
        images: a folder, a URL of a folder, a text file that lists images, a pattern of WebDataset shards, a video, or
            the file with the masks.
        out: the folder of the labels. A run that was killed continues.
        options: the attributes of `osm.labeling.label_options.LabelOptions`, which are the flags of `osm label`.

    Raises:
        OsmError: an option or a file is invalid.
    """
    known = [one.name for one in fields(LabelOptions)]
    for name in options:
        if name not in known:
            raise not_one_of("option", name, known[2:])
    for name in ("to", "vocabulary"):
        if isinstance(options.get(name), str):
            options[name] = tuple(part.strip() for part in options[name].split(","))
        elif name in options:
            options[name] = tuple(options[name])
    for name in ("masks", "tracks", "image_dir"):
        if options.get(name) is not None:
            options[name] = os.fspath(options[name])
    if options.get("corrections") is not None:
        options["corrections"] = Path(options["corrections"])
    place = os.fspath(images)
    return label_images(LabelOptions(place if is_remote(place) else str(Path(place)), Path(out), **options))[0]
