"""The record of a labeling run: one line for each finished image, so that a killed run loses at most one image.

The lines are in files of the folder `.osm_label` in the output folder, one file for each process. All output files are
written from these lines at the end, in the order of the input, so that they do not depend on how often the run was
killed or how many processes it had.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError, SampleError, shown
from osm.files import read_json, write_atomically
from osm.labeling.corrections import Corrections
from osm.labeling.formats.label_format import LabeledImage, LabelShape

FOLDER = ".osm_label"
CORRECTIONS, TRACKS = "corrections.json", "tracks.jsonl"
SETTINGS = "settings.json"
Record = dict[str, Any]


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return the content of the file with the settings of a run."""
    return json.dumps(dict(settings), indent=1) + "\n"


def check_settings(stored: bytes | None, settings: Mapping[str, Any], out: str) -> bool:
    """Return whether an output folder has the settings of an earlier run.

    Raises:
        OsmError: they differ from the settings of this run.
    """
    if stored is None:
        return False
    try:
        before = parse_json(stored)
    except ValueError as error:
        raise OsmError(f"{out}/{FOLDER}/{SETTINGS}: not valid json ({error}); label again with --overwrite") from None
    before, now = before if isinstance(before, dict) else {}, json.loads(json.dumps(dict(settings)))
    different = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    if different:
        key = different[0]
        raise OsmError(
            f"{out}: holds labels made with {key} {shown(before.get(key))}, but it is now {shown(now.get(key))}; "
            "choose another output folder, or label everything again with --overwrite"
        )
    return True


class LabelJournal:
    """The finished images of a labeling run.

    Args:
        out: the output folder.
        settings: everything that affects the labels, as JSON values.
        overwrite: whether to discard the record of an earlier run.

    Raises:
        OsmError: the folder has the record of a run with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder = out / FOLDER
        if overwrite and self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS
        if not check_settings(file.read_bytes() if file.is_file() else None, settings, str(out)):
            write_atomically(file, [settings_text(settings)])

    @classmethod
    def existing(cls, out: Path) -> LabelJournal:
        """Return the record of an earlier run, with its settings."""
        found = cls.__new__(cls)
        found.folder = out / FOLDER
        return found

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run that made these labels."""
        document: dict[str, Any] = read_json(self.folder / SETTINGS, "settings")[0]
        return document

    def append(self, record: Record, process: int) -> None:
        """Add a finished image to the file of a process, and sync the file to disk."""
        _append(self.folder / f"images_{process}.jsonl", record)

    def append_track(self, record: Record) -> None:
        """Add a named object of a video, and sync the file to disk."""
        _append(self.folder / TRACKS, record)

    def tracks(self) -> dict[str, Record]:
        """Return the named objects of a video by their ids."""
        file = self.folder / TRACKS
        rows = [parse_json(line) for line in file.read_bytes().splitlines()] if file.is_file() else []
        return {row["id"]: row for row in rows}

    def repair(self) -> None:
        """Remove an incomplete last line, which a killed process leaves behind. No process may be appending."""
        for path in (*self._files(), *self.folder.glob(TRACKS)):
            with path.open("rb+") as file:
                data_end = 0
                for line in file:
                    data_end += len(line) if line.endswith(b"\n") else 0
                file.truncate(data_end)

    def places(self, failed: bool = True) -> dict[int, tuple[Path, int]]:
        """Return the file and the position in the file of each finished image, by the image's number.

        If an image was labeled again after it had failed, the position is that of the successful line.

        Args:
            failed: whether to include images that could not be labeled.
        """
        found: dict[int, tuple[Path, int]] = {}
        for path in self._files():
            with path.open("rb") as file:
                start = 0
                for line in file:
                    if line.endswith(b"\n"):
                        number, rest = _number(line, path)
                        bad = not rest.startswith(_GOOD)
                        if not bad or (failed and number not in found):
                            found[number] = path, start
                    start += len(line)
        return found

    def records(self) -> Iterator[Record]:
        """Yield the finished images in the order of their numbers. Only one image is in memory at a time."""
        files: dict[Path, Any] = {}
        try:
            for _, (path, start) in sorted(self.places().items()):
                if path not in files:
                    files[path] = path.open("rb")
                files[path].seek(start)
                yield parse_json(files[path].readline(), nesting=None)
        finally:
            for file in files.values():
                file.close()

    def corrections(self) -> Corrections:
        """Return what a person has corrected."""
        file = self.folder / CORRECTIONS
        return Corrections.read(file, "corrections") if file.is_file() else Corrections()

    def correct(self, corrections: Corrections) -> None:
        """Add corrections to those of earlier runs. They replace earlier corrections of the same objects."""
        found = self.corrections()
        found.add(corrections)
        found.write(self.folder / CORRECTIONS)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("images_*.jsonl"))


def _append(path: Path, record: Record) -> None:
    with path.open("ab") as file:
        file.write((json.dumps(record, separators=(",", ":")) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


_GOOD = b'"failed":"",'


def _number(line: bytes, path: Path) -> tuple[int, bytes]:
    """Return the number of a line's image, with which each line begins, and what follows, without parsing the masks."""
    prefix = b'{"number":'
    digits, _, rest = line[len(prefix) :].partition(b",")
    if not line.startswith(prefix) or not digits.isdigit():
        raise OsmError(f"{path}: is damaged; label everything again with --overwrite")
    return int(digits), rest


def image_record(
    image: LabeledImage, unread: Sequence[SampleError] = (), failed: str = "", stated_masks: int = 0
) -> Record:
    """Return the line of an image.

    Args:
        image: the image with its objects.
        unread: the errors of the masks that could not be read.
        failed: why the image could not be labeled.
        stated_masks: the number of masks of an image that could not be labeled, as far as it is known.
    """
    return {
        "number": image.number,
        "failed": failed,
        "file_name": image.file_name,
        "path": image.path,
        "size": list(image.size),
        **({} if image.member is None else {"member": list(image.member)}),
        **({"stated_masks": stated_masks} if failed else {}),
        "unread": [[error.row, error.reason] for error in unread],
        "shapes": [_shape_record(shape) for shape in image.shapes],
    }


def failed_image(record: Record) -> str:
    """Return the path of a line's image, or its name if the path is that of a file with many images."""
    return str(record["file_name"] if "member" in record else record["path"])


def unread_reasons(record: Record) -> list[str]:
    """Return the reason for each mask of a line's image that could not be read."""
    return [reason for _, reason in record["unread"]]


def _shape_record(shape: LabelShape) -> Record:
    found: Record = {"counts": shape.rle["counts"]}
    for name, value in vars(shape).items():
        if name != "rle" and value != getattr(LabelShape, name):
            found[name] = value
    return found


def image_of(record: Record) -> LabeledImage:
    """Return the image of a line. `image_record` is the inverse."""
    width, height = record["size"]
    shapes = []
    for row in record["shapes"]:
        facts = {name: value for name, value in row.items() if name != "counts"}
        if "box" in facts:
            facts["box"] = tuple(facts["box"])
        shapes.append(LabelShape({"size": [height, width], "counts": row["counts"]}, **facts))
    member = (record["member"][0], record["member"][1]) if "member" in record else None
    place = record["number"], record["file_name"], record["path"]
    return LabeledImage(*place, (width, height), tuple(shapes), member)
