"""The sample images that the page offers: photos that come with the package, the user's own, and drawn scenes."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path

from PIL import Image

from osm.errors import OsmError
from osm.files import read_json
from osm.io.images import SUFFIXES, as_rgb
from osm.terminal import printable

_SCENES, _SIZE, _SEED = 4, 512, 2024
_THUMBNAIL = 192
_KEPT = 64  # the first so many JPEGs are kept


class PageSamples:
    """The sample images of the page.

    Args:
        folder: a folder with the user's own images, which are shown first.

    Raises:
        OsmError: the folder does not exist or contains no image.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._makers: dict[str, Callable[[], Image.Image]] = {}
        self._titles: dict[str, str] = {}
        self._jpegs: dict[tuple[str, bool], bytes] = {}
        if folder is not None:
            for path in _images_of(folder):
                self._add(printable(path.name), partial(as_rgb, path))
        photos = Path(str(resources.files("osm.labeling"))) / "photos"
        document, _ = read_json(photos / "photos.json", "photos")
        for row in document["photos"]:
            title = f"{Path(row['file']).stem.capitalize()} ({row['by']}, {row['license']})"
            self._add(title, partial(as_rgb, photos / row["file"]))
        for number in range(_SCENES):
            self._add(f"Drawn scene {number + 1}", partial(drawn_scene, number))

    def __contains__(self, sample: str) -> bool:
        return sample in self._makers

    def listing(self) -> list[dict[str, str]]:
        """Return the id and the title of each sample image."""
        return [{"id": sample, "title": title} for sample, title in self._titles.items()]

    def jpeg(self, sample: str, thumbnail: bool = False) -> bytes:
        """Return a sample image as a JPEG, in full size or small.

        Raises:
            OsmError: the image cannot be read.
        """
        key = (sample, thumbnail)
        found = self._jpegs.get(key)
        if found is None:
            image = self._makers[sample]()
            if thumbnail:
                image.thumbnail((2 * _THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=92)
            found = buffer.getvalue()
            if len(self._jpegs) < _KEPT:
                self._jpegs[key] = found
        return found

    def _add(self, title: str, make: Callable[[], Image.Image]) -> None:
        sample = str(len(self._makers))
        self._makers[sample], self._titles[sample] = make, title


def drawn_scene(number: int) -> Image.Image:
    """Draw the synthetic sample scene with index `number` as an RGB image of 512 x 512 pixels."""
    from osm.synthetic.scenes.compose import draw_scene
    from osm.synthetic.scenes.scene_names import choose_pairs

    return Image.fromarray(draw_scene(_SIZE, choose_pairs("all"), _SEED, number).image)


def _images_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise OsmError(f"--samples {folder}: no such folder")
    # macOS stores metadata in files named `._<image>` beside the images.
    paths = (path for path in folder.iterdir() if not path.name.startswith("._"))
    files = sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
    if not files:
        raise OsmError(f"--samples {folder}: the folder contains no images ({', '.join(SUFFIXES)})")
    return files
