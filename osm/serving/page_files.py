"""The page's files: one private folder for each running page, which is removed when the page ends, however it ends."""

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
except ImportError:  # Windows: what a killed page left behind stays
    fcntl = None  # type: ignore[assignment]

PREFIX = "osm_demo_"
_NEW = PREFIX + "new_"
_LOCK = "lock"
_BLOCK = 4096  # the least that a file takes
# An upload is read right after it arrived. An older one gives way when room is short, and a much older one always.
_UNREAD_SECONDS, _MOST_SECONDS = 60, 3600
_NAME_BYTES = 120
_SCENES, _SIZE, _SEED = 4, 512, 2024


class UploadsFull(Exception):
    """There is no room for another upload at present."""


class PageFolder:
    """A folder of this process's own in the system's temporary one; it is removed by `close` or with the object.

    A lock tells the folders of running pages from those that a killed page left behind; the latter are removed when the
    next page starts.

    Attributes:
        uploads: files that visitors sent, each in a folder of its own. cache: gradio's files. answers: what can be
            downloaded.
    """

    def __init__(self) -> None:
        remove_leftovers()
        new = Path(tempfile.mkdtemp(prefix=_NEW)).resolve()
        self._lock = (new / _LOCK).open("w") if fcntl is not None else None
        if self._lock is not None:
            lock(self._lock)
            # The folder takes its name once it is locked: nobody else may take it for a leftover.
            new = new.rename(new.with_name(PREFIX + uuid4().hex))
        self.path = new
        self.cache = self.path / "cache"
        self.uploads = self.cache / "uploads"  # gradio takes files of its cache alone
        self.answers = self.path / "answers"
        for folder in (self.uploads, self.answers):
            folder.mkdir(parents=True)
        self._remove = weakref.finalize(self, _remove_locked, self.path, self._lock)

    def close(self) -> None:
        """Removes the folder and all that is in it."""
        self._remove()


class Uploads:
    """Files that visitors sent and that were not read yet; all of them together are bounded.

    Args:
        folder: where they lie. most: bytes of all files, those that are just arriving included.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._arriving = 0

    @contextlib.contextmanager
    def arriving(self) -> Iterator[list[int]]:
        """For the time of one request: what it gives counts bytes in its only element, and `take` adds to it."""
        count = [0]
        self._remove_older(_MOST_SECONDS)
        try:
            yield count
        finally:
            self._arriving -= count[0]

    def take(self, count: list[int], size: int) -> None:
        """Counts bytes that arrive. Raises UploadsFull where there is no room for them."""
        if self._stored() + self._arriving + size > self.most:
            self._remove_older(_UNREAD_SECONDS)
            if self._stored() + self._arriving + size > self.most:
                raise UploadsFull(f"the uploads that wait to be read take up all of {self.most / 2**20:g} MiB")
        count[0] += size
        self._arriving += size

    def new_path(self, name: str) -> Path:
        """A path for a file of that name, in a new folder: no two uploads share one, whatever is in them."""
        folder = self.folder / uuid4().hex
        folder.mkdir()
        return folder / safe_name(name)

    def holds(self, path: Path) -> bool:
        """Whether the path is that of an upload."""
        return path.parent.parent == self.folder and ".." not in path.parts

    def remove(self, path: Path) -> None:
        """Removes an upload that was read; other paths are left alone."""
        if self.holds(path):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _stored(self) -> int:
        total = 0
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):  # one that is being removed
                total += sum(max(_BLOCK, path.stat().st_size) for path in folder.iterdir())
        return total

    def _remove_older(self, seconds: float) -> None:
        before = time.time() - seconds
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """A file's name from a stranger, fit for the disk and for messages."""
    plain = re.sub(r'[\\/:*?"<>|]', "", printable(name.replace("\\", "/").rsplit("/", 1)[-1])).strip(". ")
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, suffix) if dot and len(suffix) < 10 else (plain, "")
    while len(stem.encode()) > _NAME_BYTES:
        stem = stem[:-1]
    return (f"{stem}.{suffix}" if suffix else stem) or "picture"


def remove_leftovers() -> None:
    """Removes what pages left behind that were killed; those of running pages and of other users stay."""
    if fcntl is None:
        return
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if path.name.startswith(_NEW) and time.time() - path.stat().st_mtime < 3600:
                continue  # it may not be locked yet
            with (path / _LOCK).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: it runs, or there are no locks here
                shutil.rmtree(path, ignore_errors=True)


def _remove_locked(path: Path, file: IO[str] | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if file is not None:
        file.close()


def drawn_scene(number: int) -> Image.Image:
    """Scene `number` of those that the demos show, 512 x 512."""
    from osm.synthetic.scenes.compose import draw_scene
    from osm.synthetic.scenes.words import choose_pairs

    return Image.fromarray(draw_scene(_SIZE, choose_pairs("all"), _SEED, number).image)


def sample_images(folder: Path | None = None) -> dict[str, Callable[[], Image.Image]]:
    """Titles and what makes each picture: those of the folder by their file names, then the drawn scenes.

    Raises:
        OsmError: the folder is none, or holds no picture.
    """
    found: dict[str, Callable[[], Image.Image]] = {}
    if folder is not None:
        if not folder.is_dir():
            raise OsmError(f"--samples {folder}: no such folder")
        there = (path for path in folder.iterdir() if not path.name.startswith("._"))  # macOS's, beside pictures
        files = sorted(path for path in there if path.suffix.lower() in SUFFIXES)
        if not files:
            raise OsmError(f"--samples {folder}: no picture in it ({', '.join(SUFFIXES)})")
        found |= {printable(path.name): partial(as_rgb, path) for path in files}
    return found | {f"Drawn scene {k + 1}": partial(drawn_scene, k) for k in range(_SCENES)}


def read_upload(path: Path, max_pixels: int) -> Image.Image:
    """Somebody's file as an RGB picture, its size checked before a pixel is decoded.

    Raises:
        OsmError: names the file alone, not where it lies, and what would be right.
    """
    try:
        image = open_image(path)
    except SampleError as error:
        if error.reason == "image_too_large":
            raise OsmError(f"{path.name} is too large: at most {max_pixels / 1e6:g} million pixels are taken") from None
        raise OsmError(f"{path.name} is not a picture that can be read: a {FORMATS} is needed") from None
    if image.width * image.height > max_pixels:
        raise OsmError(
            f"{path.name} has {image.width} x {image.height} pixels: at most {max_pixels / 1e6:g} million are taken"
        )
    try:
        return as_rgb(path)
    except OsmError:
        raise OsmError(f"{path.name} is damaged: its data end early or are broken") from None
