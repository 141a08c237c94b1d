"""Names all segments of the images in a folder, and writes a visualization and a JSON file for each image."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import replacing, write_atomically
from osm.io.images import SUFFIXES, as_rgb
from osm.io.segmentation import rle_box
from osm.labeling.naming import MapRequest, NamedImage, name_image
from osm.recognition.draw import draw_ids
from osm.recognition.panoptic import as_png
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters.base import Segmenter
from osm.terminal import message_logger

logger = message_logger(__name__)


@dataclass
class FolderOutcome:
    """The result of naming the images in a folder: how many were named, how many were skipped, and which failed.

    Attributes:
        named: number of images named in this run.
        existing: number of images that were skipped because their results already exist.
        failed: for each image that could not be named, the reason.
    """

    named: int = 0
    existing: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageTask:
    """One image and the paths of its output files `<name>_vis.png`, `<name>.json` and `<name>_panoptic.png`.

    Attributes:
        image: path of the image.
        folder: output folder.
        name: common prefix of the output files.
    """

    image: Path
    folder: Path
    name: str

    def file(self, ending: str) -> Path:
        """Return the path of the output file whose name ends with `ending`, such as `_vis.png`."""
        return self.folder / f"{self.name}{ending}"


def find_images(places: Sequence[Path], output: Path) -> tuple[list[Path], list[Path]]:
    """Find all images in a list of files and folders. Subfolders are not searched.

    Returns:
        The images without duplicates, and the files that were skipped because they are not images. Both lists are in
            the order of the given paths, and sorted within a folder.

    Raises:
        OsmError: a path does not exist, a path is the output folder, or no image was found.
    """
    images, others = [], []
    for place in places:
        if place.is_dir():
            if place.resolve() == output.resolve():
                raise OsmError(
                    f"--output_dir {output} is also an input folder, so the next run would treat output files "
                    "as input images; use another folder"
                )
            # Files like `._A.JPG` are ignored, because macOS stores the metadata of A.JPG in them.
            files = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("._"))
            images += [path for path in files if path.suffix.lower() in SUFFIXES]
            others += [path for path in files if path.suffix.lower() not in SUFFIXES]
        elif place.is_file():
            images.append(place)
        else:
            raise OsmError(f"{place}: no such folder or image")
    if not images:
        raise OsmError(f"{', '.join(map(str, places))}: no image found ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(images)), others


def image_tasks(images: Sequence[Path], output: Path) -> list[ImageTask]:
    """Choose a unique output name for each image.

    The output name is the stem of the image's file name. If several images have the same stem, their full file names
    are used as output names. If the output name is already in use, a number is appended.
    """
    stems = Counter(image.stem.lower() for image in images)  # some file systems ignore case
    taken: set[str] = set()
    tasks = []
    for image in images:
        name = plain = image.stem if stems[image.stem.lower()] == 1 else image.name
        number = 2
        while name.lower() in taken or (name != image.stem and name.lower() in stems):
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.lower())
        tasks.append(ImageTask(image, output, name))
    return tasks


class FolderDemo:
    """Names the segments of each image in a folder. An image that fails does not stop the run.

    Args:
        recognizer: names the segments.
        segmenter: finds the segments.
        request: options for naming and merging the segments.
        settings: all settings that affect the results. They are recorded in the JSON file of each image, and a later
            run with equal settings skips the image.
        overwrite: whether to process images again whose results already exist.
        panoptic: whether to write `<name>_panoptic.png` as well.
        alpha: opacity of the mask colors, 0 to 1.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        segmenter: Segmenter,
        request: MapRequest,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        panoptic: bool = False,
        alpha: float = 0.7,
    ) -> None:
        self.recognizer, self.segmenter, self.request = recognizer, segmenter, request
        self.settings = json.loads(json.dumps(dict(settings)))  # normalized for comparison with a parsed JSON file
        self.overwrite, self.panoptic, self.alpha = overwrite, panoptic, alpha

    def run(self, tasks: Sequence[ImageTask]) -> FolderOutcome:
        """Name the segments of all images whose results are missing or outdated. Report progress on standard error.

        Raises:
            OSError: a result cannot be written.
        """
        outcome = FolderOutcome()
        for number, task in enumerate(tasks, 1):
            where = f"[{number}/{len(tasks)}] {task.image}"
            if not self.overwrite and self._is_done(task):
                outcome.existing += 1
                logger.info(f"{where}: skipped, its results exist")
                continue
            try:
                named = name_image(as_rgb(task.image), self.recognizer, self.segmenter, self.request)
            except Exception as error:  # a failure of one image must not prevent naming other images
                reason = str(error) if isinstance(error, OsmError) else f"{type(error).__name__}: {error}"
                outcome.failed[task.image] = reason
                logger.info(f"{where}: failed ({reason})")
                continue
            self._write(task, named)
            outcome.named += 1
            logger.info(f"{where}: {summary(named)}")
        return outcome

    def _is_done(self, task: ImageTask) -> bool:
        try:
            document = parse_json(task.file(".json").read_bytes())
            made = document["made_by"], document["file"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        endings = ["_vis.png", *(["_panoptic.png"] if self.panoptic else [])]
        return made == (self.settings, _file_identity(task.image)) and all(task.file(end).is_file() for end in endings)

    def _write(self, task: ImageTask, named: NamedImage) -> None:
        """Write the output files of an image.

        The JSON file is written last, because its existence marks the results as complete.
        """
        task.file(".json").unlink(missing_ok=True)
        names = [segment_label(named, k) for k in named.merged.segments]
        _save(draw_ids(named.scene, named.merged.ids, names, self.alpha), task.file("_vis.png"))
        if self.panoptic:
            _save(as_png(named.merged.ids), task.file("_panoptic.png"))
        document = {
            "image": str(task.image),
            "file": _file_identity(task.image),
            "made_by": self.settings,
            **record(named),
        }
        write_atomically(task.file(".json"), [json.dumps(document, indent=1), "\n"])


def record(named: NamedImage) -> dict[str, Any]:
    """Return the JSON record of an image, which lists all segments and marks those that are in the label map."""
    ids = {k: number for number, k in enumerate(named.merged.segments, 1)}
    segments = []
    for k, (segment, answer) in enumerate(zip(named.segments, named.answers, strict=True)):
        rle = named.rle(segment.mask)
        found: dict[str, Any] = {"name": answer.text, "prob": answer.prob}
        if answer.calibrated_prob is not None:
            found |= {"calibrated_prob": answer.calibrated_prob, "unsure": answer.unsure}
        if answer.class_id is not None:
            found["class_id"] = answer.class_id
        if answer.skipped:
            found = {"skipped": answer.skipped}
        found |= {"score": segment.score, "area": segment.area, "bbox": rle_box(rle), "segmentation": rle}
        if k in ids:
            found |= {"id": ids[k], "visible": named.rle(named.merged.ids == ids[k])}
        elif k in named.merged.dropped:
            found["dropped"] = named.merged.dropped[k]
        segments.append(found)
    return {
        "size": list(named.size),
        "scene_size": list(named.scene.size),
        "too_small": named.small,
        "segments": segments,
    }


def segment_label(named: NamedImage, k: int) -> str:
    """Return the text to draw on segment `k`."""
    return named.answers[k].text or "(nothing)"


def summary(named: NamedImage) -> str:
    """Return a line stating how many segments were found, named, and included in the label map."""
    skipped = sum(bool(answer.skipped) for answer in named.answers)
    total = len(named.segments) + named.small
    parts = [f"{total} segments", f"{named.small} too small", f"{len(named.answers) - skipped} named"]
    parts += [f"{skipped} without a name"] if skipped else []
    return ", ".join([*parts, f"{len(named.merged.segments)} in the map"])


def _file_identity(image: Path) -> dict[str, int]:
    """Return the size and modification time of an image file, so that later changes to the file can be detected."""
    facts = os.stat(image)
    return {"bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as file:
        image.save(file, "PNG")
