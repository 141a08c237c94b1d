"""Masks of objects that were tracked through the frames of a video, as SAM 2 and 3 and similar programs write them.

Four forms are read:

- a folder with a folder for each object, which has a PNG for each frame (`<object>/<frame>.png`),
- a folder with a PNG for each frame, whose pixels are the ids of the objects (as in DAVIS),
- a json `{frame: {object: RLE}}`,
- an `.npz` file with `masks`, logits or bools of the shape (frames, objects, H, W) or (frames, objects, 1, H, W), and
  optionally `frames` and `object_ids`, the frame of each row and the id of each column.

A frame is named like its image without the extension, or by its position among the sorted images, from 0.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from osm.errors import OsmError, shown
from osm.files import check_regular_file, read_json
from osm.io.images import SUFFIXES, read_ids, read_mask
from osm.io.segmentation import decode_segmentation, encode_rle
from osm.labeling.formats.label_format import LabelFormat, LabelShape, MaskSource, Size, check_map_size, shape_of
from osm.labeling.label_tasks import LabelInput, LabelTask
from osm.labeling.stored_images import StoredImage
from osm.labeling.video import FRAMES, extract_frames, is_video

_MAX_NPZ_BYTES = 4 << 30


@dataclass(frozen=True)
class TrackedFrame:
    """The masks of one frame.

    Attributes:
        frame: the name or the position of the frame.
        masks: the object's id -> its mask, as an RLE or a PNG file. If the frame has one PNG for all objects, its id is
            empty.
    """

    frame: str
    masks: dict[str, Any]


class TrackMasks(LabelFormat):
    """The masks of a frame. The id of a shape is the id of its object."""

    name, title = "tracks", "tracked objects"
    writes = False

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        for one in read_tracks(path):
            yield MaskSource(one.frame, f"{path}: frame {one.frame}, object", tuple(one.masks.items()))

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        rows: list[tuple[str, Any]] = []
        for number, mask in source.rows:
            if number:
                rows.append((number, mask))
            else:  # one PNG for all objects
                ids = read_ids(mask)
                check_map_size(ids, size, source.where)
                rows += [(str(one), encode_rle(ids == one)) for one in np.unique(ids).tolist() if one]
        return replace(source, rows=tuple(rows))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        number, stored = row
        if isinstance(stored, Path):
            mask = read_mask(stored) > 0
            check_map_size(mask, size, where)
        else:
            mask = decode_segmentation(stored, size[::-1], where)
        return [shape_of(mask, where, id=number)] if mask.any() else []


def read_tracks(path: Path) -> list[TrackedFrame]:
    """Read the masks of all frames without decoding PNGs, in the order of the frames.

    Raises:
        OsmError: the path has none of the known forms.
    """
    if path.is_dir():
        found = _of_folder(path)
    elif path.suffix.lower() == ".json":
        document, _ = read_json(path, "--tracks", nesting=None)
        found = _of_document(document, path)
    elif path.suffix.lower() == ".npz":
        found = _of_arrays(path)
    else:
        raise OsmError(f"--tracks {path}: expected a folder of PNGs, a .json or an .npz file")
    if not found:
        raise OsmError(f"--tracks {path}: has no masks")
    return [TrackedFrame(frame, masks) for frame, masks in sorted(found.items(), key=lambda one: _order(one[0]))]


def _order(frame: str) -> tuple[int, str]:
    return (int(frame) if frame.isdecimal() else -1, frame)


def _of_folder(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(path.rglob("*.png")):
        number = "" if file.parent == path else file.parent.relative_to(path).as_posix()
        found.setdefault(file.stem, {})[number] = file
    return found


def _of_document(document: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(document, Mapping):
        raise OsmError(f"--tracks {path}: expected an object {{frame: {{object: RLE}}}}, found {shown(document)}")
    for frame, masks in document.items():
        if not isinstance(masks, Mapping):
            raise OsmError(f"--tracks {path}: frame {shown(frame)} is {shown(masks)}, not {{object: RLE}}")
    return {str(frame): {str(number): mask for number, mask in masks.items()} for frame, masks in document.items()}


def _of_arrays(path: Path) -> dict[str, dict[str, Any]]:
    check_regular_file(path, "--tracks")
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(one.file_size for one in archive.infolist())
        if total > _MAX_NPZ_BYTES:
            raise OsmError(
                f"--tracks {path}: holds {total} bytes, more than {_MAX_NPZ_BYTES}; write PNGs or RLEs instead"
            )
        with np.load(path, allow_pickle=False) as arrays:
            masks = np.asarray(arrays["masks"])
            frames = arrays["frames"].tolist() if "frames" in arrays else list(range(len(masks)))
            numbers = arrays["object_ids"].tolist() if "object_ids" in arrays else list(range(1, masks.shape[1] + 1))
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise OsmError(f"--tracks {path}: is not an .npz file with 'masks' ({error})") from None
    if masks.ndim == 5 and masks.shape[2] == 1:
        masks = masks[:, :, 0]
    if (
        masks.ndim != 4
        or len(frames) != masks.shape[0]
        or len(numbers) != masks.shape[1]
        or masks.dtype.kind not in "bf"
    ):
        raise OsmError(
            f"--tracks {path}: masks have the shape {masks.shape} and the dtype {masks.dtype}, with {len(frames)} "
            f"frames and {len(numbers)} object_ids; expected logits or bools (frames, objects, H, W)"
        )
    return {
        str(frame): {str(number): encode_rle(mask > 0) for number, mask in zip(numbers, of_frame, strict=True)}
        for frame, of_frame in zip(frames, masks, strict=True)
    }


def track_tasks(path: Path, images: str, out: Path) -> LabelInput:
    """Return a task for each frame that has masks. The frames of a video are extracted to `out/frames`.

    Args:
        path: the file or folder of the tracks.
        images: a folder of frames, or a video.
        out: the folder of the labels.

    Raises:
        OsmError: the frames or the tracks cannot be read, or do not belong together.
    """
    if not path.exists():
        raise OsmError(f"--tracks {path}: no such file or folder")
    sources = list(TrackMasks.sources(path))
    folder = Path(images)
    if is_video(images):
        wanted = [int(one.image) for one in sources if one.image.isdecimal()]
        if len(wanted) < len(sources):
            odd = next(one.image for one in sources if not one.image.isdecimal())
            raise OsmError(f"--tracks {path}: frame {shown(odd)} is not the position of a frame in {folder}")
        folder = extract_frames(folder, out / FRAMES, wanted)
    elif not folder.is_dir():
        raise OsmError(f"images {folder}: --tracks needs a folder of frames, or a video")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    files.sort(key=lambda file: _order(file.stem))
    of_stem = {file.stem: file for file in files}
    tasks = []
    for number, source in enumerate(sources):
        file = of_stem.get(source.image)
        if file is None and is_video(images):
            file = of_stem.get(f"{int(source.image):06d}")
        elif file is None and source.image.isdecimal() and int(source.image) < len(files):
            file = files[int(source.image)]
        if file is None:
            raise OsmError(f"{source.where}: {folder} has no frame of this name or position ({len(files)} frames)")
        tasks.append(LabelTask(number, file.name, StoredImage(str(file)), source))
    return LabelInput(tasks, TrackMasks)
