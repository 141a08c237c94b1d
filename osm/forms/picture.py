"""An image file whose size is known before its pixels are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from osm.io.images import open_image, orientation, read_pixels, read_rgb

Size = tuple[int, int]
_TURNING = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Picture:
    """An image file that has not been decoded yet.

    Attributes:
        source: the bytes or the path of the file.
        upright: whether to apply the EXIF orientation when the image is decoded.
        size: (width, height) after applying the orientation, if `upright`.
    """

    def __init__(self, source: bytes | Path, upright: bool = False) -> None:
        self.source, self.upright = source, upright
        with self._open() as image:
            self._take_size(image)

    @contextmanager
    def _open(self) -> Iterator[Image.Image]:
        image = open_image(self.source)
        if isinstance(self.source, bytes):
            self._opened: Image.Image | None = image
            yield image
        else:  # an open file is not kept
            self._opened = None
            with image:
                yield image

    def _take_size(self, image: Image.Image) -> None:
        self.size: Size = image.size
        if self.upright and orientation(image) in _TURNING:
            self.size = (image.height, image.width)

    @classmethod
    def by_rule(
        cls, source: bytes | Path, exif: str, stated: Callable[[], Size | None], undecided: Callable[[], None]
    ) -> Picture:
        """Open an image and decide whether its annotations refer to the stored or to the EXIF-rotated image.

        Args:
            source: the bytes or the path of the file.
            exif: `raw`, `upright`, or `auto`. `auto` means `raw` if the annotations state the size of the stored image
                and a rotation would change this size; otherwise it means `upright`.
            stated: returns the size that the annotations state.
            undecided: is called if no size is stated, or if the upright image has the same size as the stored one.
        """
        picture = cls.__new__(cls)
        picture.source, picture.upright = source, exif == "upright"
        with picture._open() as image:
            if exif == "auto" and (turn := orientation(image)) != 1:
                size = stated() if turn in _TURNING and image.width != image.height else None
                picture.upright = size != image.size
                if size is None:
                    undecided()
            picture._take_size(image)
        return picture

    def rgb(self) -> Image.Image:
        """Decode the image as 8-bit RGB; see `read_rgb`."""
        return read_rgb(self.source, upright=self.upright)

    def pixels(self, at_least: Size) -> np.ndarray:
        """Decode the image as uint8 (H, W, 3); see `read_pixels`."""
        opened, self._opened = self._opened, None  # decoding at a reduced size changes an opened image
        return read_pixels(self.source if opened is None else opened, at_least, self.upright)
