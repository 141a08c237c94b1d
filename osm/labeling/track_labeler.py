"""Gives each tracked object one name, from several frames, and records the name for all frames of the object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from osm.errors import OsmError, SampleError
from osm.files import write_atomically
from osm.labeling.formats.label_format import LabeledImage, LabelShape
from osm.labeling.label_journal import LabelJournal, image_record
from osm.labeling.label_options import LabelOptions, load_labeler
from osm.labeling.label_rules import KeepRules
from osm.labeling.label_tasks import LabelTask
from osm.labeling.labeler import answered
from osm.labeling.tracks import TrackMasks
from osm.recognition.recognizer import Recognizer
from osm.recognition.several_views import EncodedViews
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

Places = dict[str, list[tuple[int, int]]]
"""Maps the id of each object to its frames. A frame is (index in `tasks`, area of the object's mask in pixels)."""


def label_tracks(
    options: LabelOptions, tasks: Sequence[LabelTask], left: Sequence[LabelTask], journal: LabelJournal
) -> None:
    """Name all tracked objects, and add the frames that are left to the journal. Frames that fail are left out.

    Args:
        tasks: all frames.
        left: the frames that are not in the journal yet.

    Raises:
        OsmError: no frame has a mask.
    """
    known = journal.tracks()
    places = _places(tasks)
    wanted = [one for one in places if one not in known]
    if wanted:
        recognizer = load_labeler(options, None).recognizer
        with ProgressBar("naming", len(wanted), "objects") as progress:
            for one in wanted:
                record = _named(one, places[one], tasks, recognizer, options)
                journal.append_track(record)
                known[one] = record
                progress.step()
    for task in left:
        journal.append(_frame(task, known, options.rules), 0)


def write_tracks(journal: LabelJournal, out: Path) -> None:
    """Write `tracks.json`: each object's name, probability, number of frames, and the names of single frames."""
    rows = sorted(journal.tracks().values(), key=lambda row: (len(row["id"]), row["id"]))
    write_atomically(out / "tracks.json", [json.dumps({"tracks": rows}, indent=1, ensure_ascii=False), "\n"])


def _places(tasks: Sequence[LabelTask]) -> Places:
    """Find the frames of each object. Every mask is decoded once, and only its area is kept."""
    found: Places = {}
    for k, task in enumerate(tasks):
        try:
            shapes = _read(task)[1]
        except OsmError as error:
            logger.warning(f"{task.image.location}: left out ({error})")
            continue
        for shape in shapes:
            if isinstance(shape, LabelShape):
                found.setdefault(str(shape.id), []).append((k, shape.area))
    if not found:
        raise OsmError("--tracks: no mask has a pixel inside its frame")
    return found


def _read(task: LabelTask) -> tuple[Image.Image, list[LabelShape | SampleError]]:
    """Return a frame and its masks. Raises OsmError if the frame cannot be read."""
    assert task.source is not None
    photo = task.image.photo(None)
    return photo, list(TrackMasks.shapes(task.source, photo.size))


def chosen_frames(frames: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Split a track into `count` parts of equal length, and choose the frame with the largest mask in each part.

    Args:
        frames: (index, pixels of the mask) of each frame of the object.
    """
    count = min(count, len(frames))
    bounds = [round(k * len(frames) / count) for k in range(count + 1)]
    parts = [frames[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
    return [max(part, key=lambda one: (one[1], -one[0]))[0] for part in parts]


def _named(
    one: str, frames: list[tuple[int, int]], tasks: Sequence[LabelTask], recognizer: Recognizer, options: LabelOptions
) -> dict[str, Any]:
    """Name an object, and return its record."""
    chosen = chosen_frames(frames, options.views)
    views = []
    for k in chosen:
        photo, shapes = _read(tasks[k])
        masks = [shape.mask for shape in shapes if isinstance(shape, LabelShape) and str(shape.id) == one]
        views.append((photo, masks[0]))
    encoded = recognizer.encode_views(views)
    how: dict[str, Any] = {"modes": [options.mode], "vocabulary": list(options.vocabulary) or None}
    [answer] = recognizer.name_views(encoded, combine=options.combine, **how)
    votes = []
    for k, image, mask in zip(chosen, encoded.images, encoded.masks, strict=True):
        [vote] = recognizer.name_views(EncodedViews([image], [mask], ""), **how)
        votes.append({"frame": tasks[k].file_name, "name": vote.text, "prob": round(float(vote.prob), 6)})
    found = answered(LabelShape({}), answer)
    facts = {key: value for key, value in vars(found).items() if key in _KEPT}
    agreeing = sum(vote["name"] == found.name for vote in votes)
    return {"id": one, **facts, "frames": len(frames), "agreeing": agreeing, "votes": votes}


_KEPT = ("name", "prob", "class_id", "unsure", "skipped")


def _frame(task: LabelTask, known: dict[str, dict[str, Any]], rules: KeepRules) -> dict[str, Any]:
    """Return the journal's record of a frame, whose objects have the names of their tracks."""
    where = task.number, task.file_name, task.image.location
    try:
        photo, found = _read(task)
    except OsmError as error:
        return image_record(LabeledImage(*where, (0, 0), ()), failed=str(error))
    unread = [shape for shape in found if isinstance(shape, SampleError)]
    shapes = []
    for shape in found:
        if isinstance(shape, LabelShape):
            row = known[str(shape.id)]
            named = replace(shape, **{name: row[name] for name in _KEPT})
            shapes.append(rules.measured(named))
    return image_record(LabeledImage(*where, photo.size, tuple(shapes)), unread)
