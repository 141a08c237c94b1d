"""Finds the images and the masks of a labeling run, whatever form they have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from osm.data.shard_lists import expand_shards
from osm.errors import OsmError, shown
from osm.files import read_json
from osm.forms.locate import FileFinder
from osm.labeling.formats import FORMATS, recognized
from osm.labeling.formats.label_format import LabelFormat, MaskSource
from osm.labeling.stored_images import (
    ImageCollection,
    StoredImage,
    images_of_folder,
    images_of_list,
    images_of_shards,
    images_of_tables,
    images_of_url,
    is_list,
    is_shards,
    is_table,
)
from osm.storage.cache import RemoteFolder, localize, user_cache
from osm.storage.locations import is_remote, join, public, suffix_of
from osm.terminal import message_logger

logger = message_logger(__name__)

_LAST_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class LabelTask:
    """One image to label.

    Attributes:
        number: the position of the image in the input, from 0.
        file_name: the path of the image relative to the folder of the images, with forward slashes.
        image: where the image is.
        source: the masks of the image, or None if a segmenter finds them.
    """

    number: int
    file_name: str
    image: StoredImage
    source: MaskSource | None

    @property
    def stated_masks(self) -> int:
        """The number of masks, as far as it is known without reading further files."""
        return 0 if self.source is None else self.source.stated_count or len(self.source.rows)


@dataclass(frozen=True)
class LabelInput:
    """The images and the masks of a labeling run.

    Attributes:
        tasks: the images.
        reader: the format of the masks; None if a segmenter finds them.
        masks: the local file or folder with the masks, if it is a single one.
        left_out: the number of images with masks that are not in the list of images.
    """

    tasks: list[LabelTask]
    reader: type[LabelFormat] | None
    masks: Path | None = None
    left_out: int = 0


def find_tasks(
    images: str,
    masks: str | None = None,
    image_dir: str | None = None,
    form: str | None = None,
    auto: bool = False,
    out: Path | None = None,
) -> LabelInput:
    """Find the images and their masks.

    Args:
        images: a folder, a URL of a folder, a text file that lists images, a pattern of shards, or the file with the
            masks.
        masks: the file or folder with the masks; None if they are in `images`.
        image_dir: the folder or URL of the images, if `images` is a file.
        form: the name of the masks' format; None = recognized by its content.
        auto: whether a segmenter finds the masks.
        out: the output folder, whose images are not labeled; None if it is not a local folder.

    Raises:
        OsmError: the images or the masks are not found, or do not belong together.
    """
    if auto:
        found = _collection(images, image_dir, out)
        tasks = [LabelTask(k, name, image, None) for k, (name, image) in enumerate(found.names.items())]
        return LabelInput(tasks, None)
    if holds_images(images) and not masks:
        return _contained_tasks(images, form)
    place, reader = _masks(images, masks, form)
    sources = list(reader.sources(place))
    if not sources:
        raise OsmError(f"--masks {place}: lists no image")
    if masks and _is_document(images):
        sources = _named(sources, localize(images, "images"))
        images = image_dir or str(Path(images).parent)
    if is_list(images) or holds_images(images):
        tasks = _listed_tasks(sources, _collection(images, image_dir, out))
    else:
        folder = image_dir or (images if _is_folder(images) else _parent(images))
        tasks = _folder_tasks(sources, folder)
    return LabelInput(tasks, reader, place, len(sources) - len(tasks))


def holds_images(images: str) -> bool:
    """Return whether a location names files that contain images: WebDataset shards, or Parquet tables."""
    return is_shards(images) or is_table(images)


def _collection(images: str, image_dir: str | None, out: Path | None) -> ImageCollection:
    if is_table(images):
        return images_of_tables(images)
    if is_shards(images):
        return images_of_shards(images)
    if is_list(images):
        return images_of_list(localize(images, "images"), Path(image_dir) if image_dir else None)
    if is_remote(images):
        return images_of_url(images)
    if not Path(images).exists():
        raise OsmError(f"images {images}: no such file or folder")
    if not Path(images).is_dir():
        raise OsmError(f"images {images}: --auto needs a folder of images, a text file that lists them, or shards")
    return images_of_folder(Path(images), out)


def _contained_tasks(pattern: str, form: str | None) -> LabelInput:
    """Return the tasks of shards or tables that contain their own masks."""
    reader = contained_format(pattern, form)
    sources = [source for one in expand_shards(pattern) for source in reader.sources(localize(one, "images"))]
    tasks = tasks_of(sources)
    if not tasks:
        raise OsmError(
            f"images {pattern}: no sample has an image and a json with masks; add --auto to name what a segmenter "
            "finds, or --masks"
        )
    return LabelInput(tasks, reader)


def contained_format(pattern: str, form: str | None) -> type[LabelFormat]:
    """Return the format of the masks in shards or tables."""
    return FORMATS.get(form or ("image_tables" if is_table(pattern) else "shards"))


def tasks_of(sources: Iterable[MaskSource]) -> list[LabelTask]:
    """Return a task for each source that contains its image."""
    return [LabelTask(k, one.image, one.stored, one) for k, one in enumerate(sources) if one.stored is not None]


def _masks(images: str, masks: str | None, form: str | None) -> tuple[Path, type[LabelFormat]]:
    """Return the local file or folder with the masks, and its format."""
    where = masks or images
    if masks is None and is_list(images):
        raise OsmError(f"images {images}: is a list of images; name their masks with --masks, or add --auto")
    if masks is None and is_remote(images) and _is_folder(images):
        raise OsmError(f"images {images}: name the file with the masks with --masks, or add --auto")
    place = localize(where, "--masks" if masks else "images", folder=not suffix_of(where))
    if not place.exists():
        raise OsmError(f"{'--masks' if masks else 'images'} {where}: no such file or folder")
    try:
        return place, FORMATS.get(form) if form else recognized(place, alone=masks is None)
    except OsmError:
        if masks or form or place.is_file():
            raise
        raise OsmError(
            f"images {images}: the folder holds no masks in a known format; name the file or folder with the "
            "masks with --masks, or add --auto to name what a segmenter finds"
        ) from None


def _is_folder(place: str) -> bool:
    return not suffix_of(place) if is_remote(place) else Path(place).is_dir()


def _is_document(images: str) -> bool:
    return suffix_of(images) == ".json"


def _parent(place: str) -> str:
    return place.rpartition("/")[0] if is_remote(place) else str(Path(place).parent)


def _named(sources: list[MaskSource], document: Path) -> list[MaskSource]:
    """Replace the ids of images by the names that a COCO json lists."""
    content, _ = read_json(document, "images", nesting=None)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise OsmError(f"images {document}: has no list 'images' with the names of the images")
    names = {str(row.get("id")): row.get("file_name") for row in rows if isinstance(row, dict)}
    found = []
    for source in sources:
        if source.by_id:
            name = names.get(source.image)
            if not isinstance(name, str):
                raise OsmError(f"{source.where}: {document} lists no image with this id")
            source = replace(source, image=name, by_id=False)
        found.append(source)
    return found


def _folder_tasks(sources: list[MaskSource], folder: str) -> list[LabelTask]:
    """Return the tasks for masks whose images are in a folder. Images that do not exist fail when they are read."""
    remote = RemoteFolder(folder, user_cache()) if is_remote(folder) else None
    root = Path(folder) if remote is None else remote.root
    if remote is None and not root.is_dir():
        raise OsmError(f"--image_dir {folder}: no such folder")
    names = None if remote is None else remote.names
    finder = FileFinder(root, claimed=[one.image for one in sources if not one.by_id], listed=names)
    by_id = _ids(finder) if any(source.by_id for source in sources) else {}
    wanted = [_image_of(source, by_id) for source in sources]
    found = [(name, finder.find(name, source.where)) for name, source in zip(wanted, sources, strict=True)]
    places = finder.settle(found)
    if (remote is None or names is not None) and not any(map(finder.holds, places)):
        raise OsmError(
            f"{public(folder)}: none of the {len(places)} images exists; the masks belong to {shown(wanted[0])}, but "
            f"{finder.what_is_there()}; name the folder of the images with --image_dir"
        )
    tasks = []
    for number, (path, source) in enumerate(zip(places, sources, strict=True)):
        name = finder.relative(path)
        location = str(path) if remote is None else join(folder, name)
        tasks.append(LabelTask(number, name, StoredImage(location), source))
    return tasks


def _listed_tasks(sources: list[MaskSource], images: ImageCollection) -> list[LabelTask]:
    """Return the tasks for masks whose images are listed one by one. Masks of other images are left out."""
    root = Path(os.sep)
    finder = FileFinder(root, claimed=[one.image for one in sources if not one.by_id], listed=images.names)
    by_id = _ids(finder) if any(source.by_id for source in sources) else {}
    found = [(name := _image_of(one, by_id), finder.find(name, one.where)) for one in sources]
    tasks = []
    for number, (path, source) in enumerate(zip(finder.settle(found), sources, strict=True)):
        name = PurePosixPath(finder.relative(path)).as_posix()
        if name in images.names:
            tasks.append(LabelTask(number, name, images.names[name], source))
    if not tasks:
        raise OsmError(
            f"images {images.title}: lists none of the {len(sources)} images with masks; the masks belong to "
            f"{shown(sources[0].image)}, but {finder.what_is_there()}"
        )
    return tasks


def _ids(finder: FileFinder) -> dict[int, str]:
    """Return the files by the last number in their names. Numbers of several files are left out."""
    found: dict[int, str] = {}
    repeated = set()
    for name in finder.files:
        number = _LAST_NUMBER.search(PurePosixPath(name).stem)
        if number:
            key = int(number[1])
            repeated |= {key} & found.keys()
            found[key] = name
    return {key: name for key, name in found.items() if key not in repeated}


def _image_of(source: MaskSource, by_id: dict[int, str]) -> str:
    if not source.by_id or not source.image.isdecimal():
        return source.image
    return by_id.get(int(source.image), source.image)


def counted(found: LabelInput) -> int:
    """Return the number of masks of all tasks. Masks whose file cannot be read are reported, and not counted."""
    count = 0
    for task in found.tasks:
        if found.reader is not None and task.source is not None:
            try:
                count += found.reader.count(task.source)
            except OsmError as error:
                logger.warning(f"{task.image.location}: its masks are not counted ({error})")
    return count
