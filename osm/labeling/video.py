"""Extracts the frames of a video as JPEG files, as the video predictors of SAM 2 and 3 expect them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import check_regular_file, replacing, write_atomically

FRAMES = "frames"
"""The folder of the frames of a video, in the output folder."""
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
MAX_FRAMES = 100_000
MAX_SIDE = 16_384  # pixels
_QUALITY = 95
_DONE = "frames.json"


def is_video(place: str) -> bool:
    """Return whether a path is that of a video, judging by its suffix."""
    return place.lower().endswith(SUFFIXES)


def extract_frames(video: Path, folder: Path, wanted: Collection[int] | None = None) -> Path:
    """Write the frames of a video to a folder, as `000000.jpg`, `000001.jpg`, and so on.

    A folder that already has all wanted frames of this video stays as it is.

    Args:
        video: the video file.
        folder: the folder of the frames, which is created.
        wanted: the positions of the frames that are written, from 0; None = all.

    Returns:
        the folder.

    Raises:
        OsmError: the file cannot be decoded, or has too many frames.
    """
    check_regular_file(video, "images")
    facts = video.stat()
    numbers = None if wanted is None else sorted(wanted)
    made = {"video": video.name, "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns, "frames": numbers}
    done = folder / _DONE
    if done.is_file() and _read(done) == made:
        return folder
    av = _av()
    folder.mkdir(parents=True, exist_ok=True)
    last = None if numbers is None else max(numbers, default=-1)
    chosen = None if numbers is None else set(numbers)
    found = 0
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            if max(stream.codec_context.width, stream.codec_context.height) > MAX_SIDE:
                raise OsmError(f"images {video}: its frames have more than {MAX_SIDE} pixels on a side")
            for number, frame in enumerate(container.decode(stream)):
                if (last is not None and number > last) or number >= MAX_FRAMES:
                    break
                if chosen is None or number in chosen:
                    with replacing(folder / f"{number:06d}.jpg") as file:
                        frame.to_image().save(file, "JPEG", quality=_QUALITY)
                    found += 1
    except (av.FFmpegError, IndexError) as error:
        raise OsmError(
            f"images {video}: is not a video that can be decoded ({getattr(error, 'strerror', None) or error})"
        ) from None
    if not found:
        raise OsmError(f"images {video}: has none of the frames that the tracks belong to")
    write_atomically(done, [json.dumps(made), "\n"])
    return folder


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except ValueError:
        return None


def _av() -> Any:
    try:
        import av  # type: ignore[import-not-found]
    except ImportError:
        raise OsmError("reading a video needs the package av: pip install av; or pass a folder of frames") from None
    return av
