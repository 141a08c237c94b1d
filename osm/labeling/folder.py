"""Pictures of a folder, named whole: for each a picture with masks and names, and a json file with all of it."""

from __future__ import annotations

import json
import os
import sys
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
from osm.labeling.naming import MapRequest, NamedPicture, box_of, name_picture
from osm.recognition.draw import draw_ids
from osm.recognition.panoptic import as_png
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters.base import Segmenter
from osm.terminal import echo


@dataclass
class Outcome:
    """What a run did: how many pictures it named and how many were there, and why each failed one did."""

    named: int = 0
    there: int = 0
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One picture, and the files that come of it (`<name>_vis.png`, `<name>.json`, `<name>_panoptic.png`)."""

    image: Path
    folder: Path
    name: str

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.name}{ending}"


def images_of(places: Sequence[Path], output: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of folders (not of folders in them) and single files, in order, and what was left out.

    Raises:
        OsmError: a place that is not there, the output among them, or no picture at all.
    """
    images, others = [], []
    for place in places:
        if place.is_dir():
            if place.resolve() == output.resolve():
                raise OsmError(f"--output_dir {output} is a folder of pictures itself: the next run would name its own")
            # `._A.JPG` is what macOS keeps beside A.JPG on disks of others: no picture, and nobody's file.
            files = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("._"))
            images += [path for path in files if path.suffix.lower() in SUFFIXES]
            others += [path for path in files if path.suffix.lower() not in SUFFIXES]
        elif place.is_file():
            images.append(place)
        else:
            raise OsmError(f"{place}: no such folder or picture")
    if not images:
        raise OsmError(f"{', '.join(map(str, places))}: no picture ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(images)), others


def works_of(images: Sequence[Path], output: Path) -> list[Work]:
    """A name for each: its stem, with the suffix where another has that stem, and a number where that is taken too."""
    stems = Counter(image.stem.lower() for image in images)  # some disks do not tell A from a
    taken: set[str] = set()
    works = []
    for image in images:
        name = plain = image.stem if stems[image.stem.lower()] == 1 else image.name
        number = 2
        while name.lower() in taken or (name != image.stem and name.lower() in stems):
            name, number = f"{plain}_{number}", number + 1
        taken.add(name.lower())
        works.append(Work(image, output, name))
    return works


class FolderDemo:
    """Names pictures one after the other; one that fails does not end the run.

    Args:
        settings: what the results depend on; a picture's json has them, and a later run with the same ones leaves that
            picture alone.
        overwrite: names all again. panoptic: writes `<name>_panoptic.png` too. alpha: of the masks' colours.
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
        self.settings = json.loads(json.dumps(dict(settings)))  # as it is read back
        self.overwrite, self.panoptic, self.alpha = overwrite, panoptic, alpha

    def run(self, works: Sequence[Work]) -> Outcome:
        """Names all that is not done; says what it does on standard error.

        Raises:
            OSError: a result cannot be written.
        """
        outcome = Outcome()
        for number, work in enumerate(works, 1):
            where = f"[{number}/{len(works)}] {work.image}"
            if not self.overwrite and self._is_done(work):
                outcome.there += 1
                echo(f"{where}: is there", file=sys.stderr)
                continue
            try:
                picture = name_picture(as_rgb(work.image), self.recognizer, self.segmenter, self.request)
            except Exception as error:  # whatever is the matter with it, the others are to be named
                reason = str(error) if isinstance(error, OsmError) else f"{type(error).__name__}: {error}"
                outcome.failed[work.image] = reason
                echo(f"{where}: failed ({reason})", file=sys.stderr)
                continue
            self._write(work, picture)
            outcome.named += 1
            echo(f"{where}: {summary(picture)}", file=sys.stderr)
        return outcome

    def _is_done(self, work: Work) -> bool:
        try:
            document = parse_json(work.file(".json").read_bytes())
            made = document["made_by"], document["file"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        endings = ["_vis.png", *(["_panoptic.png"] if self.panoptic else [])]
        return made == (self.settings, _facts(work.image)) and all(work.file(end).is_file() for end in endings)

    def _write(self, work: Work, picture: NamedPicture) -> None:
        """The json last: where it is whole, so is the rest."""
        work.file(".json").unlink(missing_ok=True)
        names = [label_of(picture, k) for k in picture.merged.segments]
        _save(draw_ids(picture.scene, picture.merged.ids, names, self.alpha), work.file("_vis.png"))
        if self.panoptic:
            _save(as_png(picture.merged.ids), work.file("_panoptic.png"))
        document = {"image": str(work.image), "file": _facts(work.image), "made_by": self.settings, **record(picture)}
        write_atomically(work.file(".json"), [json.dumps(document, indent=1), "\n"])


def record(picture: NamedPicture) -> dict[str, Any]:
    """A named picture as its json file has it: every named segment, and which of them are in the map."""
    ids = {k: number for number, k in enumerate(picture.merged.segments, 1)}
    segments = []
    for k, (segment, answer) in enumerate(zip(picture.segments, picture.answers, strict=True)):
        rle = picture.rle(segment.mask)
        found: dict[str, Any] = {"name": answer.text, "prob": answer.prob}
        if answer.skipped:
            found = {"skipped": answer.skipped}
        found |= {"score": segment.score, "area": segment.area, "bbox": box_of(rle), "segmentation": rle}
        if k in ids:
            found |= {"id": ids[k], "visible": picture.rle(picture.merged.ids == ids[k])}
        elif k in picture.merged.dropped:
            found["dropped"] = picture.merged.dropped[k]
        segments.append(found)
    return {
        "size": list(picture.size),
        "scene_size": list(picture.scene.size),
        "too_small": picture.small,
        "segments": segments,
    }


def label_of(picture: NamedPicture, k: int) -> str:
    """What is written on a segment."""
    return picture.answers[k].text or "(nothing)"


def summary(picture: NamedPicture) -> str:
    """A line that counts all that became of the segments."""
    skipped = sum(bool(answer.skipped) for answer in picture.answers)
    total = len(picture.segments) + picture.small
    parts = [f"{total} segments", f"{picture.small} too small", f"{len(picture.answers) - skipped} named"]
    parts += [f"{skipped} without a name"] if skipped else []
    return ", ".join([*parts, f"{len(picture.merged.segments)} in the picture"])


def _facts(image: Path) -> dict[str, int]:
    """What tells whether a file is the one that was named."""
    facts = os.stat(image)
    return {"bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as file:
        image.save(file, "PNG")
