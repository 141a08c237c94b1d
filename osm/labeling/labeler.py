"""Names the masks of one image after another. An image that fails does not stop the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError, RunStopped, SampleError
from osm.io.segmentation import encode_rle
from osm.labeling.formats.label_format import LabeledImage, LabelFormat, LabelShape
from osm.labeling.label_journal import LabelJournal, Record, image_record
from osm.labeling.label_rules import KeepRules
from osm.labeling.label_tasks import LabelTask
from osm.labeling.stored_images import read_ahead
from osm.terminal import ProgressBar, message_logger

if TYPE_CHECKING:
    from osm.labeling.naming import NamingRequest
    from osm.recognition.recognizer import Recognizer
    from osm.recognition.segmenters.base import Segmenter

logger = message_logger(__name__)

MAX_FAULTS = 10
"""A run ends if so many images in a row fail because of a server or an unexpected error, such as a broken GPU."""
_UNEXPECTED = "unexpected error: "
_AT_ONCE = 256  # the number of masks of an image that are named in one call, which bounds the memory


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
            for record in self.records(tasks):
                journal.append(record, process)
                progress.step()

    def records(self, tasks: Sequence[LabelTask]) -> Iterator[Record]:
        """Yield the journal's record of each image, while the files of the next ones are being fetched.

        Raises:
            RunStopped: `MAX_FAULTS` images in a row failed for reasons that are probably not those of their files.
        """
        faults = 0
        for task, source in zip(tasks, read_ahead(task.image for task in tasks), strict=True):
            record = self.label(task, source)
            # Of the machine, the model or a server, not of a file: an error that no reader of files has foreseen.
            faulty = isinstance(source, RunStopped) or record["failed"].startswith(_UNEXPECTED)
            faults = faults + 1 if faulty else 0
            if faults >= MAX_FAULTS:
                raise RunStopped(f"{faults} images in a row failed; the last: {record['failed']}")
            yield record

    def label(self, task: LabelTask, source: bytes | Path | OsmError) -> Record:
        """Return the journal's record of one image.

        Args:
            task: the image and its masks.
            source: what `read_ahead` yields for the image.
        """
        try:
            if isinstance(source, OsmError):
                raise source
            return self._label(task, source)
        except Exception as error:  # one bad image must not end the run
            reason = str(error) if isinstance(error, OsmError) else f"{_UNEXPECTED}{type(error).__name__}: {error}"
            logger.warning(f"{task.image.location}: not labeled ({reason})")
            return self.failed(task, reason)

    def failed(self, task: LabelTask, reason: str) -> Record:
        """Return the journal's record of an image that cannot be labeled."""
        empty = LabeledImage(task.number, task.file_name, task.image.location, (0, 0), (), task.image.member)
        count = 0
        if self.reader is not None and task.source is not None:
            with suppress(Exception):  # the masks cannot be read either
                count = self.reader.count(task.source)
        return image_record(empty, failed=reason, stated_masks=count)

    def _label(self, task: LabelTask, source: bytes | Path) -> Record:
        photo = task.image.photo(None if task.source is None else task.source.size, source)
        unread = []
        shapes = []
        for shape in self._shapes(task, photo):
            if isinstance(shape, SampleError):
                unread.append(shape)
            else:
                shapes.append(self.rules.measured(shape))
        named = self._named(photo, shapes)
        place = task.image.location, photo.size, named, task.image.member
        return image_record(LabeledImage(task.number, task.file_name, *place), unread)

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
                    shapes[k] = answered(shapes[k], answer)
        return tuple(shapes)


def answered(shape: LabelShape, answer: Any) -> LabelShape:
    """Return a shape with the recognizer's answer. Probabilities are rounded, so that files are short and stable."""
    if answer.skipped:
        return replace(shape, skipped=answer.skipped)
    if not answer.text:
        return replace(shape, skipped="empty name")
    facts = {"class_id": answer.class_id, "unsure": bool(answer.unsure)}
    return replace(shape, name=answer.text, prob=round(float(answer.likelihood), 6), **facts)
