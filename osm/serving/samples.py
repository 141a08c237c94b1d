"""Pictures to try: drawn scenes, which need no download, and those of a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from osm.errors import OsmError, SampleError
from osm.io.images import FORMATS, SUFFIXES, as_rgb, open_image
from osm.terminal import printable

_SCENES, _SIZE, _SEED = 4, 512, 2024


def drawn_scene(number: int) -> Image.Image:
    """Scene `number` of those that the demos show, 512 x 512."""
    from osm.synthetic.scenes.compose import draw_scene
    from osm.synthetic.scenes.scene_names import choose_pairs

    return Image.fromarray(draw_scene(_SIZE, choose_pairs("all"), _SEED, number).image)


def samples(folder: Path | None = None) -> dict[str, Callable[[], Image.Image]]:
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


def uploaded(path: Path, max_pixels: int) -> Image.Image:
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
