"""Images of a labeling run: files on disk, URLs, members of tar files, and cells of Parquet tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from osm.data.shard_lists import expand_shards
from osm.data.tar import TarReader
from osm.errors import OsmError, SampleError, shown
from osm.files import read_text
from osm.forms.picture import Picture
from osm.io.images import SUFFIXES
from osm.labeling.image_tables import TableRow, image_cell, rows_of_table
from osm.storage import remote
from osm.storage.cache import RemoteFolder, localize, user_cache
from osm.storage.locations import check_location, is_path, is_remote, join, public, sibling

Size = tuple[int, int]
MAX_IMAGE_BYTES = 1 << 29  # the maximum size of a remote image file
_READ_AHEAD = 8  # the number of remote images that are fetched while one is named
_LISTS = (".txt", ".lst")
_LABEL_MAPS = ("png", "part.png", "whole.png", "tif")  # members of samples that are label maps beside an image


@dataclass(frozen=True)
class StoredImage:
    """Where the bytes of an image are.

    Attributes:
        location: the path or URL of the image file, or of the tar file or Parquet table that contains it.
        member: (offset, number of bytes) of the image in a tar file, or (row group, row in the group) in a Parquet
            table, or None if the file is the image.
        fault: why the image must not be read, or an empty text.
    """

    location: str
    member: tuple[int, int] | None = None
    fault: str = ""

    def source(self) -> bytes | Path:
        """Return a local image file, or the bytes of a remote image, or of an image in a tar file or table.

        A remote image is read once in a run, so it is not cached. Remote tar files and tables are.

        Raises:
            OsmError: the file cannot be fetched, or the tar file has become shorter.
        """
        if self.fault:
            raise SampleError("image_unreadable", self.fault)
        if self.member is None and is_remote(self.location):
            url = check_location(self.location, "image")
            with remote.as_user_error(url, "image"):
                return remote.read_whole(url, MAX_IMAGE_BYTES)
        path = localize(self.location, "image")
        if self.member is None:
            return path
        if is_table(self.location):
            return image_cell(path, *self.member)
        start, size = self.member
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) != size:
            raise SampleError("image_unreadable", f"image {self.location}: the tar file is truncated")
        return data

    def photo(self, stated: Size | None, source: bytes | Path | None = None) -> Image.Image:
        """Read the image as RGB, rotated by its EXIF orientation unless the masks refer to the stored pixels.

        Args:
            stated: the (width, height) that the masks state, which decides between stored and rotated pixels.
            source: the result of `source()`, if it has been called before.
        """
        return Picture.by_rule(source or self.source(), "auto", lambda: stated, lambda: None).rgb()


@dataclass(frozen=True)
class ImageCollection:
    """The images of a run by their names, which are paths with forward slashes.

    Attributes:
        names: name -> image, in the order in which the images are labeled.
        title: what contains the images, for messages.
    """

    names: dict[str, StoredImage]
    title: str


def images_of_folder(folder: Path, out: Path | None = None) -> ImageCollection:
    """Return the images in a folder and its subfolders, except those of the output folder."""
    inside = None if out is None else out.resolve()
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith("._")
        and not (inside is not None and path.resolve().is_relative_to(inside))
    ]
    found = {path.relative_to(folder).as_posix(): StoredImage(str(path)) for path in files}
    return _checked(ImageCollection(found, str(folder)))


def images_of_url(url: str) -> ImageCollection:
    """Return the images in a remote folder and its subfolders. Each image is fetched when it is read.

    Raises:
        OsmError: the server cannot list the folder, or the folder has no image.
    """
    listed = RemoteFolder(url, user_cache()).names
    if listed is None:
        raise OsmError(f"images {public(url)}: the server does not list the folder; pass a file that lists the images")
    names = [name for name in sorted(listed) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    found = {name: StoredImage(join(url, name)) for name in names}
    return _checked(ImageCollection(found, public(url)))


def images_of_list(file: Path, folder: Path | None) -> ImageCollection:
    """Return the images that a text file lists, one path or URL per line.

    Args:
        folder: relative paths are relative to this folder; None = the folder of the file.
    """
    lines = [line.strip() for line in read_text(file, "images").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    base = (folder or file.parent).resolve()
    places = [line if is_remote(line) else (base / line).as_posix() for line in lines]
    found: dict[str, StoredImage] = {}
    for line, name, place in zip(lines, _names_of(places), places, strict=True):
        if name in found:
            raise OsmError(f"images {file}: lists {shown(line)} twice")
        found[name] = StoredImage(place)
    return _checked(ImageCollection(found, str(file)))


def _names_of(places: Sequence[str]) -> list[str]:
    """Return the locations without the folders that all of them share."""
    parts = [place.split("/") for place in places]
    shared = min((len(one) - 1 for one in parts), default=0)
    while shared and len({tuple(one[:shared]) for one in parts}) > 1:
        shared -= 1
    return ["/".join(one[shared:]) for one in parts]


def images_of_tables(pattern: str) -> ImageCollection:
    """Return the images in Parquet tables."""
    return _collected(pattern, images_of_table)


def images_of_shards(pattern: str) -> ImageCollection:
    """Return the images in WebDataset shards. The name of an image is the name of its shard and of its member."""
    return _collected(pattern, images_of_shard)


def _collected(pattern: str, images_of: Callable[[str], dict[str, StoredImage]]) -> ImageCollection:
    found: dict[str, StoredImage] = {}
    for file in expand_shards(pattern):
        for name, image in images_of(file).items():
            if name in found:
                raise OsmError(
                    f"images {public(file)}: an earlier file has an image {shown(name)} too; label it by itself"
                )
            found[name] = image
    return _checked(ImageCollection(found, pattern))


def images_of_table(table: str) -> dict[str, StoredImage]:
    """Return the images of a Parquet table by their names."""
    rows = rows_of_table(localize(table, "images"), masks=False)
    return {row.name: stored_row(table, row) for row in rows}


def images_of_shard(shard: str) -> dict[str, StoredImage]:
    """Return the images of a shard by their names."""
    samples = [sample for sample in samples_of(shard) if sample.image]
    return {sample.image: StoredImage(shard, sample.members[sample.image_extension]) for sample in samples}


def stored_row(table: str, row: TableRow) -> StoredImage:
    """Return the image of a row of a Parquet table: a cell of the table, or the file or URL that the row names."""
    if row.location is None:
        return StoredImage(table, row.place)
    if is_remote(row.location):
        return StoredImage(row.location)
    parts = PurePosixPath(row.location).parts
    if not parts or parts[0] == "/" or ".." in parts or not is_path(row.location):
        where = f"{public(table)}: the image {shown(row.location)} is not in the folder of the table"
        return StoredImage(table, fault=f"{where}; use URLs, or move it")
    return StoredImage(sibling(table, row.location))


@dataclass
class ShardSample:
    """The members of a tar file that have one key, the part of their names before the first dot.

    Attributes:
        key: the name of the shard and the key, separated by a slash.
        members: extension -> (offset, number of bytes).
    """

    key: str
    members: dict[str, tuple[int, int]]

    @property
    def image_extension(self) -> str:
        """The extension of the image; empty if there is none. `png` is a label map if there is another image."""
        images = [name for name in self.members if f".{name.rpartition('.')[2].lower()}" in SUFFIXES]
        photos = [name for name in images if name not in _LABEL_MAPS]
        return next(iter([*photos, *(name for name in images if name == "png")]), "")

    @property
    def image(self) -> str:
        """The name of the image; empty if there is none."""
        return f"{self.key}.{self.image_extension}" if self.image_extension else ""


def samples_of(shard: str) -> list[ShardSample]:
    """Return the samples of a WebDataset shard, without reading their data. Raises OsmError as `members_of`."""
    found: dict[str, ShardSample] = {}
    for name, place in members_of(shard):
        folder, _, base = name.rpartition("/")
        key, _, extension = base.partition(".")
        # The name becomes that of files in the output folder, which a member `../a.jpg` must not leave.
        folders = [part for part in folder.split("/") if part not in ("", ".", "..")]
        whole = "/".join([PurePosixPath(shard).stem, *folders, key])
        found.setdefault(whole, ShardSample(whole, {})).members[extension] = place
    return list(found.values())


def members_of(shard: str) -> list[tuple[str, tuple[int, int]]]:
    """Return the name, offset and size of each regular member of a tar file.

    Raises:
        OsmError: the file cannot be read, or is not a complete tar file.
    """
    path = localize(shard, "images")
    try:
        with path.open("rb") as stream:
            reader = TarReader(stream)
            found = [(one.name, (one.start, one.size)) for one in reader if one.is_regular]
    except OSError as error:
        raise OsmError(f"images {public(shard)}: cannot be read ({error.strerror or error})") from None
    if reader.fault:
        raise OsmError(f"images {public(shard)}: {reader.fault}")
    return found


def is_list(place: str) -> bool:
    """Return whether a location is that of a text file that lists images."""
    return PurePosixPath(place).suffix.lower() in _LISTS


def is_table(place: str) -> bool:
    """Return whether a location names Parquet tables: one or more `.parquet` paths or patterns."""
    return place.lower().endswith(".parquet")


def read_ahead(images: Iterable[StoredImage]) -> Iterator[bytes | Path | OsmError]:
    """Yield the source of each image, or the error why it cannot be read, in order.

    While one image is in use, the next remote ones are fetched by threads.
    """
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        waiting: deque[Future[bytes | Path | OsmError]] = deque()
        for image in images:
            if is_remote(image.location):
                waiting.append(pool.submit(_source, image))
            else:
                waiting.append(Future())
                waiting[-1].set_result(_source(image))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _source(image: StoredImage) -> bytes | Path | OsmError:
    try:
        return image.source()
    except OsmError as error:
        return error
    except Exception as error:  # such as a file that vanished: it must not end the run
        return SampleError("image_unreadable", f"{public(image.location)}: {type(error).__name__}: {error}")


def is_shards(place: str) -> bool:
    """Return whether a location names WebDataset shards: one or more `.tar` paths or patterns."""
    return place.lower().endswith(".tar") or "::" in place


def _checked(found: ImageCollection) -> ImageCollection:
    if not found.names:
        raise OsmError(f"images {found.title}: no image found ({', '.join(SUFFIXES)})")
    return found
