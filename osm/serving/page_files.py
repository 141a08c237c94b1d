"""Image files for the demo page: sample images, uploads, and a private temporary folder for each running page.

The temporary folder is removed when the page's server stops. If a server is killed, its temporary folder is removed by
the next server that starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO
from uuid import uuid4

from PIL import Image

from osm.errors import OsmError, SampleError
from osm.files import lock
from osm.io.images import FORMATS, SUFFIXES, as_rgb, open_image
from osm.terminal import printable

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so folders of killed pages are not removed on Windows.
    fcntl = None  # type: ignore[assignment]

PREFIX = "osm_demo_"
_NEW = PREFIX + "new_"
_LOCK = "lock"
_BLOCK = 4096  # minimum disk usage of a file in bytes
# The page normally reads an uploaded file right after the upload.
# Uploaded files older than `_UNREAD_SECONDS` are deleted if space is needed.
# Uploaded files older than `_MAX_SECONDS` are always deleted.
_UNREAD_SECONDS, _MAX_SECONDS = 60, 3600
_NAME_BYTES = 120
_SCENES, _SIZE, _SEED = 4, 512, 2024


class UploadsFull(Exception):
    """Raised if the total size of all pending uploads would exceed the limit."""


class PageFolder:
    """A private folder in the system's temporary folder, removed by `close` or when the object is garbage-collected.

    Each private folder contains a lock file, which the running page keeps locked. If the lock file is not locked, the
    page was killed, and the private folder is removed when the next page starts.

    Attributes:
        path: the private folder.
        uploads: subfolder for uploaded files, each in a folder of its own.
        cache: subfolder for gradio's files.
        answers: subfolder for result files that visitors can download.
    """

    def __init__(self) -> None:
        remove_leftovers()
        new = Path(tempfile.mkdtemp(prefix=_NEW)).resolve()
        self._lock = (new / _LOCK).open("w") if fcntl is not None else None
        if self._lock is not None:
            lock(self._lock)
            # The folder is locked before it gets its final name, so that no other page removes it as a leftover.
            new = new.rename(new.with_name(PREFIX + uuid4().hex))
        self.path = new
        self.cache = self.path / "cache"
        self.uploads = self.cache / "uploads"  # gradio accepts only files inside its cache
        self.answers = self.path / "answers"
        for folder in (self.uploads, self.answers):
            folder.mkdir(parents=True)
        self._remove = weakref.finalize(self, _remove_locked, self.path, self._lock)

    def close(self) -> None:
        """Remove the folder and its content."""
        self._remove()


class Uploads:
    """Uploaded files that the page has not read yet, with a limit on their total size.

    Args:
        folder: the folder in which uploads are stored.
        max_bytes: maximum total size in bytes, including uploads in progress.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._arriving = 0

    @contextlib.contextmanager
    def arriving(self) -> Iterator[list[int]]:
        """Count the bytes of one upload request while it is in progress.

        The context manager yields a list whose only element is the byte count, which the method `take` increases.
        """
        count = [0]
        self._remove_older(_MAX_SECONDS)
        try:
            yield count
        finally:
            self._arriving -= count[0]

    def take(self, count: list[int], size: int) -> None:
        """Add the size of the received data to an upload request's byte count.

        Raises:
            UploadsFull: the total size of uploads would exceed the limit.
        """
        if self._stored() + self._arriving + size > self.max_bytes:
            self._remove_older(_UNREAD_SECONDS)
            if self._stored() + self._arriving + size > self.max_bytes:
                raise UploadsFull(f"the pending uploads have reached the limit of {self.max_bytes / 2**20:g} MiB")
        count[0] += size
        self._arriving += size

    def new_path(self, name: str) -> Path:
        """Return a path for an upload in a new folder, so that uploads with identical content never share a file."""
        folder = self.folder / uuid4().hex
        folder.mkdir()
        return folder / safe_name(name)

    def holds(self, path: Path) -> bool:
        """Return whether a path is inside the uploads folder."""
        return path.parent.parent == self.folder and ".." not in path.parts

    def remove(self, path: Path) -> None:
        """Remove an uploaded file that has been read. Paths outside the uploads folder are ignored."""
        if self.holds(path):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _stored(self) -> int:
        total = 0
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):  # the upload is being removed by another thread
                total += sum(max(_BLOCK, path.stat().st_size) for path in folder.iterdir())
        return total

    def _remove_older(self, seconds: float) -> None:
        before = time.time() - seconds
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """Convert an untrusted file name to a name that is safe to use on disk and in messages."""
    plain = re.sub(r'[\\/:*?"<>|]', "", printable(name.replace("\\", "/").rsplit("/", 1)[-1])).strip(". ")
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, suffix) if dot and len(suffix) < 10 else (plain, "")
    while len(stem.encode()) > _NAME_BYTES:
        stem = stem[:-1]
    return (f"{stem}.{suffix}" if suffix else stem) or "picture"


def remove_leftovers() -> None:
    """Remove the temporary folders of killed pages. Folders of running pages and of other users are kept."""
    if fcntl is None:
        return
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if path.name.startswith(_NEW) and time.time() - path.stat().st_mtime < 3600:
                continue  # the folder may not be locked yet
            with (path / _LOCK).open("r+") as file:
                # `flock` raises OSError if the page is running, or if the file system does not support locks.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


def _remove_locked(path: Path, file: IO[str] | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if file is not None:
        file.close()


def drawn_scene(number: int) -> Image.Image:
    """Draw the synthetic sample scene with index `number` as an RGB image of 512 x 512 pixels."""
    from osm.synthetic.scenes.compose import draw_scene
    from osm.synthetic.scenes.scene_names import choose_pairs

    return Image.fromarray(draw_scene(_SIZE, choose_pairs("all"), _SEED, number).image)


def sample_images(folder: Path | None = None) -> dict[str, Callable[[], Image.Image]]:
    """Map each sample image's title to a function that creates the image.

    The images in `folder` come first, with their file names as titles, followed by drawn synthetic scenes.

    Raises:
        OsmError: the folder does not exist or contains no image.
    """
    found: dict[str, Callable[[], Image.Image]] = {}
    if folder is not None:
        if not folder.is_dir():
            raise OsmError(f"--samples {folder}: no such folder")
        # macOS stores metadata in files named `._<image>` beside the images.
        paths = (path for path in folder.iterdir() if not path.name.startswith("._"))
        files = sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
        if not files:
            raise OsmError(f"--samples {folder}: the folder contains no images ({', '.join(SUFFIXES)})")
        found |= {printable(path.name): partial(as_rgb, path) for path in files}
    return found | {f"Drawn scene {k + 1}": partial(drawn_scene, k) for k in range(_SCENES)}


def read_upload(path: Path, max_pixels: int) -> Image.Image:
    """Decode an uploaded file as an RGB image. The number of pixels is checked before any pixel is decoded.

    Raises:
        OsmError: the file is not a readable image, is damaged, or has too many pixels. The message states the file
            name without its folder.
    """
    try:
        image = open_image(path)
    except SampleError as error:
        if error.reason == "image_too_large":
            raise OsmError(f"{path.name} is too large: the maximum is {max_pixels / 1e6:g} million pixels") from None
        raise OsmError(f"{path.name} is not a readable image: expected a {FORMATS}") from None
    if image.width * image.height > max_pixels:
        raise OsmError(
            f"{path.name} has {image.width} x {image.height} pixels, but the maximum is {max_pixels / 1e6:g} million"
        )
    try:
        return as_rgb(path)
    except OsmError:
        raise OsmError(f"{path.name} is damaged: its data is truncated or corrupt") from None
