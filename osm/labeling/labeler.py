"""Names the masks of many images, and writes the named masks in the formats of annotation tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osm.errors import OsmError, SampleError, shown
from osm.files import read_text, write_atomically
from osm.forms.locate import FileFinder
from osm.io.images import SUFFIXES, as_rgb
from osm.io.segmentation import encode_rle
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelFormat, LabelShape, MaskSource
from osm.labeling.label_journal import LabelJournal, Record, image_of, image_record
from osm.terminal import ProgressBar, message_logger

if TYPE_CHECKING:
    from osm.labeling.naming import NamingRequest
    from osm.recognition.recognizer import Recognizer
    from osm.recognition.segmenters.base import Segmenter

logger = message_logger(__name__)

UNSURE = ("keep", "drop", "review")
_AT_ONCE = 256  # the number of masks of an image that are named in one call, which bounds the memory


@dataclass(frozen=True)
class LabelTask:
    """One image to label.

    Attributes:
        number: the position of the image in the input, from 0.
        file_name: the path of the image relative to the folder of the images, with forward slashes.
        path: the image file.
        source: the masks of the image, or None if a segmenter finds them.
    """

    number: int
    file_name: str
    path: Path
    source: MaskSource | None


@dataclass(frozen=True)
class KeepRules:
    """Which objects are named, and which of the named objects are written.

    Attributes:
        min_area: smaller masks, in pixels, are not named.
        min_prob: names with a lower probability are left out.
        unsure: what happens to names whose calibrated probability is below the model's threshold: `keep`, `drop`, or
            `review`, which writes them to `review.jsonl` instead.
    """

    min_area: int = 1
    min_prob: float = 0.0
    unsure: str = "keep"

    def left_out(self, shape: LabelShape) -> str:
        """Return why an object is not written, or an empty text if it is."""
        if shape.skipped:
            return shape.skipped
        if shape.prob < self.min_prob:
            return "below min_prob"
        return "unsure" if shape.unsure and self.unsure != "keep" else ""


@dataclass
class LabelSummary:
    """What a labeling run did.

    Attributes:
        images: number of images with labels.
        masks: number of named objects that were written.
        left_out: number of objects without a name, or that were left out, by reason.
        failed: the reason for each image that could not be labeled.
        losses: for each format, what it could not hold, by reason.
    """

    images: int = 0
    masks: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Counter[str]] = field(default_factory=dict)


def mask_tasks(sources: Iterable[MaskSource], folder: Path) -> list[LabelTask]:
    """Return the tasks for masks that were read from a file, with images inside a folder."""
    listed = list(sources)
    finder = FileFinder(folder, claimed=[source.image for source in listed])
    found = [(source.image, finder.find(source.image, source.where)) for source in listed]
    places = finder.settle(found)
    if places and not any(map(finder.holds, places)):
        raise OsmError(
            f"{folder}: none of the {len(places)} images exists; the masks belong to {shown(listed[0].image)}, but "
            f"{finder.what_is_there()}; name the folder of the images with --image_dir"
        )
    return [
        LabelTask(number, finder.relative(path), path, source)
        for number, (path, source) in enumerate(zip(places, listed, strict=True))
    ]


def image_tasks_of(folder: Path, out: Path) -> list[LabelTask]:
    """Return a task without masks for each image in a folder and its subfolders, except those of the output folder."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and not path.is_relative_to(out)
    ]
    if not files:
        raise OsmError(f"{folder}: no image found ({', '.join(SUFFIXES)})")
    return [LabelTask(number, path.relative_to(folder).as_posix(), path, None) for number, path in enumerate(files)]


class ImageLabeler:
    """Names the masks of one image after another. An image that fails does not stop the run.

    Args:
        recognizer: names the masks.
        request: how masks are named.
        rules: which masks are named.
        reader: the format of the masks; None if a segmenter finds them.
        segmenter: finds the masks if there is no reader.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        request: NamingRequest,
        rules: KeepRules,
        reader: type[LabelFormat] | None,
        segmenter: Segmenter | None = None,
    ) -> None:
        self.recognizer, self.request, self.rules = recognizer, request, rules
        self.reader, self.segmenter = reader, segmenter

    def run(self, tasks: Sequence[LabelTask], journal: LabelJournal, process: int = 0) -> None:
        """Label images, and add each finished image to the journal."""
        with ProgressBar("labeling", len(tasks), "images", enabled=process == 0) as progress:
            for task in tasks:
                journal.append(self.label(task), process)
                progress.step()

    def label(self, task: LabelTask) -> Record:
        """Return the journal's record of one image."""
        try:
            return self._label(task)
        except Exception as error:  # one bad image must not end the run
            reason = str(error) if isinstance(error, OsmError) else f"{type(error).__name__}: {error}"
            logger.warning(f"{task.path}: not labeled ({reason})")
            empty = LabeledImage(task.number, task.file_name, str(task.path), (0, 0), ())
            return image_record(empty, {}, reason)

    def _label(self, task: LabelTask) -> Record:
        photo = as_rgb(task.path)
        lost: Counter[str] = Counter()
        shapes = []
        for shape in self._shapes(task, photo):
            if isinstance(shape, SampleError):
                lost[shape.reason] += 1
            elif shape.area < self.rules.min_area:
                shapes.append(replace(shape, skipped="below min_area"))
            else:
                shapes.append(shape)
        named = self._named(photo, shapes)
        return image_record(LabeledImage(task.number, task.file_name, str(task.path), photo.size, named), lost)

    def _shapes(self, task: LabelTask, photo: Any) -> Iterator[LabelShape | SampleError]:
        if task.source is not None:
            assert self.reader is not None
            stated = task.source.size
            if stated is not None and stated != photo.size:
                raise OsmError(
                    f"{task.source.where}: states {stated[0]} x {stated[1]} pixels, but the image has "
                    f"{photo.size[0]} x {photo.size[1]}"
                )
            yield from self.reader.shapes(task.source, photo.size)
            return
        assert self.segmenter is not None
        self.segmenter.set_image(photo)
        for number, segment in enumerate(self.segmenter.everything(), 1):
            yield LabelShape(encode_rle(segment.mask), id=number)

    def _named(self, photo: Any, shapes: list[LabelShape]) -> tuple[LabelShape, ...]:
        wanted = [k for k, shape in enumerate(shapes) if not shape.skipped]
        if wanted:
            self.recognizer.set_image(photo)
        for boxed in (False, True):  # boxes are named with the prompt for boxes
            chosen = [k for k in wanted if (shapes[k].box is not None) == boxed]
            for start in range(0, len(chosen), _AT_ONCE):
                part = chosen[start : start + _AT_ONCE]
                masks = [dict(shapes[k].rle) for k in part] if not boxed else []
                boxes = [shapes[k].box for k in part] if boxed else []
                for k, answer in zip(part, self.request.run(self.recognizer, masks, boxes), strict=True):
                    shapes[k] = _answered(shapes[k], answer)
        return tuple(shapes)


def _answered(shape: LabelShape, answer: Any) -> LabelShape:
    """Return a shape with the recognizer's answer. Probabilities are rounded, so that files are short and stable."""
    if answer.skipped:
        return replace(shape, skipped=answer.skipped)
    if not answer.text:
        return replace(shape, skipped="empty name")
    prob = answer.prob if answer.calibrated_prob is None else answer.calibrated_prob
    facts = {"class_id": answer.class_id, "unsure": bool(answer.unsure)}
    return replace(shape, name=answer.text, prob=round(float(prob), 6), **facts)


class _KeptImages:
    """The images of a journal, with the objects that are written. They can be iterated several times."""

    def __init__(self, journal: LabelJournal, rules: KeepRules) -> None:
        self.journal, self.rules = journal, rules

    def __iter__(self) -> Iterator[LabeledImage]:
        for record in self.journal.records():
            if not record["failed"]:
                image = image_of(record)
                kept = tuple(shape for shape in image.shapes if not self.rules.left_out(shape))
                yield replace(image, shapes=kept)


def write_labels(
    journal: LabelJournal,
    rules: KeepRules,
    formats: Sequence[type[LabelFormat]],
    out: Path,
    model: str,
    vocabulary: Mapping[str, int] | None = None,
    strict: bool = False,
) -> LabelSummary:
    """Write the labels of a journal in each format, and return what was written.

    Args:
        vocabulary: the ids of the names, if the names are limited to a list with ids.
        strict: raise OsmError instead of losing holes, parts, scores or ids that a format cannot hold.

    Raises:
        OsmError: with `strict`, a format cannot hold something.
    """
    summary = LabelSummary()
    names = _count(journal, rules, summary)
    categories = dict(vocabulary) if vocabulary is not None else grown_names(out / "names.txt", names)
    labels = LabeledImages(_KeptImages(journal, rules), categories, model)
    facts = _facts(labels)
    for one in formats:
        found = Counter({reason: facts[held] for held, reason in _LOST.items() if not getattr(one.holds, held)})
        losses = Counter({reason: count for reason, count in found.items() if count})
        if strict and losses:
            told = "; ".join(f"{count} {reason}" for reason, count in losses.items())
            raise OsmError(f"--to {one.name}: {one.title} cannot hold {told}. Choose another format, or no --strict")
        one.write(labels, out)
        summary.losses[one.name] = losses
    if rules.unsure == "review":
        write_atomically(out / "review.jsonl", _review_lines(journal, rules))
    return summary


_LOST = {
    "holes": "masks with holes, which are filled",
    "parts": "masks of several parts, which become several objects",
    "overlaps": "masks that overlap others, which lose the common pixels to the more probable name",
    "scores": "probabilities",
    "ids": "ids of the source",
}


def _facts(labels: LabeledImages) -> Counter[str]:
    """Count what a format may not be able to hold, by the attribute of `Holds`."""
    from osm.labeling.outlines import outlines

    found: Counter[str] = Counter()
    for image in labels.images:
        covered = np.zeros(image.size[::-1], bool)
        for shape in image.shapes:
            mask = shape.mask
            found["overlaps"] += bool((mask & covered).any())
            covered |= mask
            lines = outlines(mask)
            holes = sum(line.hole for line in lines)
            found["holes"] += holes > 0
            found["parts"] += len(lines) - holes > 1
            found["scores"] += 1
            found["ids"] += shape.id is not None
    return found


def _count(journal: LabelJournal, rules: KeepRules, summary: LabelSummary) -> list[str]:
    """Fill a summary, and return all names that are written, in the order of their first use."""
    names: dict[str, None] = {}
    for record in journal.records():
        if record["failed"]:
            summary.failed[record["path"]] = record["failed"]
            continue
        summary.images += 1
        summary.left_out.update(record["lost"])
        for shape in image_of(record).shapes:
            reason = rules.left_out(shape)
            if reason:
                summary.left_out[reason] += 1
            else:
                summary.masks += 1
                names[shape.name] = None
    return list(names)


def grown_names(file: Path, names: Iterable[str]) -> dict[str, int]:
    """Append new names to a file with one name per line, and return the ids of all names: their lines, from 1.

    Names that are in the file keep their ids, even if they are no longer used.
    """
    before = read_text(file, "names").splitlines() if file.is_file() else []
    listed = list(dict.fromkeys([*before, *names]))
    if listed != before:
        write_atomically(file, [f"{name}\n" for name in listed])
    return {name: number for number, name in enumerate(listed, 1)}


def _review_lines(journal: LabelJournal, rules: KeepRules) -> Iterator[str]:
    import json

    for record in journal.records():
        for number, (row, shape) in enumerate(zip(record["shapes"], image_of(record).shapes, strict=True)):
            if rules.left_out(shape) == "unsure":
                place = {"file_name": record["file_name"], "size": record["size"], "shape": number}
                yield json.dumps({**place, **row}) + "\n"
