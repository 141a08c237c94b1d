"""Build safe paths from the untrusted file names in annotation files."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from osm.errors import OsmError, shown
from osm.storage.locations import is_path
from osm.terminal import printable

IMAGE_NAMES = ("file_name", "coco_url", "cityscapes")
"""The rules by which the file name of an image is found.

With `file_name`, it is the value of the field `file_name`, or the last folder and file name in `coco_url` if there is
no `file_name`. With `coco_url`, it is the last folder and file name in the field `coco_url`, even if there is a
`file_name`. With `cityscapes`, it is derived from the file name of the panoptic PNG.
"""
_FRAME = "_gtFine_panoptic.png"
_NAME_BYTES = 120


def check_local(path: str, where: str) -> None:
    """Raise OsmError if `path` is a URL or a command instead of a local path."""
    if not is_path(path):
        raise OsmError(
            f"{where} {path[:200]!r}: expected a local path; URLs and commands like `pipe:` are not supported "
            "(if this is the name of a file, put ./ before it)"
        )


def safe_join(root: Path, name: str) -> Path:
    """Join a folder and a file name from a JSON file into a path. The file name may include subfolders.

    Raises:
        OsmError: the name is empty or absolute, or leaves the folder with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise OsmError(f"file name {name!r} is not valid; expected a path inside {root}")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or relative == PurePosixPath("."):
        raise OsmError(f"file name {name!r} leads out of its folder; expected a path inside {root}")
    return root / relative


def image_name(naming: str, image: dict[str, Any], mask_name: Any, where: str) -> Any:
    """Return an image's path relative to the image folder, as given in the JSON file. It may have any JSON type.

    Args:
        naming: the rule for the file name, one of `IMAGE_NAMES`.
        image: the image's entry in the JSON.
        mask_name: the file name of the image's panoptic PNG, or None if the image has no panoptic PNG.
        where: the beginning of error messages.

    Raises:
        OsmError: the URL or the file name of the PNG has an unexpected format.
    """
    if naming == "coco_url":
        return name_by_url(image, where)
    if naming == "cityscapes" and mask_name is not None:
        return name_by_frame(mask_name, where)
    if image.get("file_name") is None and "coco_url" in image:
        return name_by_url(image, where)
    return image.get("file_name")


def name_by_url(image: dict[str, Any], where: str) -> str:
    """Return the last folder and the file name in `coco_url`.

    In LVIS, the field `file_name` is not the actual file name.
    """
    url = image.get("coco_url")
    try:
        parts = PurePosixPath(urlsplit(url).path).parts if isinstance(url, str) else ()
    except ValueError:
        parts = ()
    if len(parts) < 3:
        expected = "expected an address that ends in a folder and a file (.../train2017/000000155379.jpg)"
        raise OsmError(f"{where}: coco_url {shown(url)}: {expected}")
    return "/".join(parts[-2:])


def name_by_frame(mask_name: Any, where: str) -> str:
    """Return the image file name that corresponds to a Cityscapes frame's panoptic PNG.

    For example, the image of `aachen_000000_000019_gtFine_panoptic.png` is
    `aachen/aachen_000000_000019_leftImg8bit.png`.
    """
    frame = mask_name.removesuffix(_FRAME) if isinstance(mask_name, str) else mask_name
    if frame == mask_name or "_" not in frame:
        raise OsmError(f"{where}: the PNG name {shown(mask_name)} does not have the format CITY_SEQUENCE_FRAME{_FRAME}")
    return f"{frame.split('_')[0]}/{frame}_leftImg8bit.png"


def safe_file_name(name: str) -> str:
    """Convert an untrusted file name to a name that is safe to use on disk and in messages."""
    plain = re.sub(r'[\\/:*?"<>|]', "", printable(name.replace("\\", "/").rsplit("/", 1)[-1])).strip(". ")
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, suffix) if dot and len(suffix) < 10 else (plain, "")
    while len(stem.encode()) > _NAME_BYTES:
        stem = stem[:-1]
    return (f"{stem}.{suffix}" if suffix else stem) or "image"
