"""Paths built from names that stand in other people's files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from osm.errors import OsmError, shown
from osm.storage.locations import is_path

IMAGE_NAMES = ("file_name", "coco_url", "cityscapes")
"""`file_name`: that field (the end of `coco_url` where it is absent); `coco_url`: its end, whatever `file_name` says;
`cityscapes`: after the panoptic PNG."""
_FRAME = "_gtFine_panoptic.png"


def check_local(path: str, where: str) -> None:
    """Raises OsmError for a URL or a command, where nothing but a local file can be meant."""
    if not is_path(path):
        raise OsmError(
            f"{where} {path[:200]!r}: expected the path of a local file; URLs and commands like `pipe:` are refused "
            "(./ before it, for a file that is called so)"
        )


def safe_join(root: Path, name: str) -> Path:
    """Joins a file name from a json to the folder it belongs in; it may name a subfolder, but nothing outside.

    Raises:
        OsmError: the name is empty, absolute or climbs out with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise OsmError(f"file name {name!r} is not a file name; expected a path below {root}")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or relative == PurePosixPath("."):
        raise OsmError(f"file name {name!r} leads out of its folder; expected a path below {root}")
    return root / relative


def image_name(naming: str, image: dict[str, Any], mask_name: Any, where: str) -> Any:
    """The name of an image, not checked: it may lead anywhere, or be no name at all.

    Args:
        naming: one of `IMAGE_NAMES`.
        image: the json's entry. mask_name: of its panoptic PNG; None where there is none.

    Raises:
        OsmError: the name that it follows from has another form.
    """
    if naming == "coco_url":
        return name_by_url(image, where)
    if naming == "cityscapes" and mask_name is not None:
        return name_by_frame(mask_name, where)
    if image.get("file_name") is None and "coco_url" in image:
        return name_by_url(image, where)
    return image.get("file_name")


def name_by_url(image: dict[str, Any], where: str) -> str:
    """LVIS: the folder and the file that `coco_url` ends in. (Its `file_name`, if any, is not what they are called.)"""
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
    """`aachen_000000_000019_gtFine_panoptic.png` is of `aachen/aachen_000000_000019_leftImg8bit.png`."""
    frame = mask_name.removesuffix(_FRAME) if isinstance(mask_name, str) else mask_name
    if frame == mask_name or "_" not in frame:
        raise OsmError(f"{where}: its PNG {shown(mask_name)} is not called CITY_SEQUENCE_FRAME{_FRAME}")
    return f"{frame.split('_')[0]}/{frame}_leftImg8bit.png"
