"""A view of an image: a crop of it, resized and possibly flipped, and what of a mask or label map is in it.

A mask is cropped at its image's own size, and only what is left is resized. Shapes: (H, W) an image's own size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from osm.io.resizing import nearest_rows

_REDUCTIONS = (1, 2, 4, 8)  # sizes at which a JPEG can be decoded
# A picture that is to shrink may be decoded at a reduced size that is still this many times larger than wanted.
_SPARE = 2


@dataclass(frozen=True)
class View:
    """A crop of the resized, possibly flipped image. All in pixels of the resized image."""

    width: int
    height: int
    left: int
    top: int
    crop_width: int
    crop_height: int
    flip: bool

    @property
    def enough(self) -> tuple[int, int]:
        """(width, height) at which a picture may be decoded for this view.

        Bicubic resampling from twice the size or more is an average over several of the reduced picture's pixels, each
        itself an average: on photos the difference from resampling the whole picture is about a grey level.
        """
        return _SPARE * self.width, _SPARE * self.height

    def image(self, picture: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """The crop (crop_height, crop_width, 3).

        Args:
            picture: (H, W, 3), possibly decoded at a reduced size.
            size: (width, height) of the picture that is not reduced, where `picture` may be.
        """
        found = picture.shape[1], picture.shape[0]
        width, height = size or found
        x, y = slice(self.left, self.left + self.crop_width), slice(self.top, self.top + self.crop_height)
        by = next(by for by in _REDUCTIONS if (-(-width // by), -(-height // by)) == found)
        if (self.width, self.height) == found:
            pixels = picture[y, x]
        elif width % by == height % by == 0:
            return self._resized(picture)
        else:  # its last row or column stands for less than a pixel
            image = Image.fromarray(picture)
            reach = (width / by / self.width, height / by / self.height)
            box = (x.start * reach[0], y.start * reach[1], x.stop * reach[0], y.stop * reach[1])
            box = (*box[:2], min(box[2], width / by), min(box[3], height / by))
            pixels = np.asarray(image.resize((self.crop_width, self.crop_height), Image.Resampling.BICUBIC, box=box))
        return pixels[:, ::-1] if self.flip else pixels

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        """The crop of the resized picture, by torch's vectorised bicubic kernel.

        It is more than three times as fast as Pillow's, so that what is resized beyond the crop costs less than a crop
        by Pillow. Both clip to 0..255 between their two passes, whose order may differ: photos come out within two
        grey levels of Pillow's, hardly any pixel with two; pure noise may differ by more.
        """
        array = torch.from_numpy(picture)
        # Turned round before it grows, and the crop with it.
        array = array.flip(1) if self.flip else array
        left = self.width - self.left - self.crop_width if self.flip else self.left
        right, bottom = left + self.crop_width, self.top + self.crop_height
        # (1, H, W, 3) first, for strides in which torch sees that channels come last: twice as fast as planes.
        pixels = array[None].permute(0, 3, 1, 2)
        factors = (self.height / pixels.shape[2], self.width / pixels.shape[3])
        # What lies below and right of the crop, and has no part in its last pixels, is left out.
        part = pixels[:, :, : _reach(bottom, factors[0]), : _reach(right, factors[1])]
        found = (int(part.shape[2] * factors[0]), int(part.shape[3] * factors[1]))
        if part.numel() < pixels.numel() and found[0] >= bottom and found[1] >= right:
            part = part.contiguous(memory_format=torch.channels_last)
            resized = F.interpolate(part, scale_factor=factors, mode="bicubic", antialias=True)
        else:
            resized = F.interpolate(pixels, size=(self.height, self.width), mode="bicubic", antialias=True)
        return resized[0, :, self.top : bottom, left:right].permute(1, 2, 0).numpy()

    def labels(self, array: np.ndarray) -> np.ndarray:
        """A label map or mask (H, W) at the image's own size -> its crop, nearest."""
        return self.cut(array).enlarge()

    def cut(self, array: np.ndarray) -> Cut:
        """The pixels of a label map that are in the view, each once."""
        rows, columns = self._sources(array.shape)
        cut, row_of = _distinct(array, rows, 0)
        cut, column_of = _distinct(cut, columns, 1)
        return Cut(cut, row_of, column_of[::-1] if self.flip else column_of)

    def patch(self, mask: np.ndarray, left: int, top: int, shape: tuple[int, int]) -> np.ndarray:
        """The crop of a mask of which only a part is given: `mask` lies at (left, top) of an image (H, W), else 0."""
        rows, columns = self._sources(shape)
        out = np.zeros((self.crop_height, self.crop_width), bool)
        y0, y1 = np.searchsorted(rows, (top, top + mask.shape[0]))
        x0, x1 = np.searchsorted(columns, (left, left + mask.shape[1]))
        out[y0:y1, x0:x1] = mask[:, columns[x0:x1] - left][rows[y0:y1] - top]
        return out[:, ::-1] if self.flip else out

    def box(self, box: tuple[int, int, int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
        """Where a box (left, top, right, bottom; right and bottom excluded) of an image (H, W) is in the crop."""
        rows, columns = self._sources(shape)
        left, right = np.searchsorted(columns, (box[0], box[2])).tolist()
        top, bottom = np.searchsorted(rows, (box[1], box[3])).tolist()
        if self.flip:
            left, right = self.crop_width - right, self.crop_width - left
        return slice(top, bottom), slice(left, right)

    def _sources(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the image that the crop's (before the flip) show; both ascend."""
        return (
            nearest_rows(shape[0], self.height, self.top, self.crop_height),
            nearest_rows(shape[1], self.width, self.left, self.crop_width),
        )


@dataclass(frozen=True)
class Cut:
    """What a view shows of a label map, before it is enlarged.

    Attributes:
        labels: (h, w). row_of, column_of: which of its rows and columns each of the crop's is.
    """

    labels: np.ndarray
    row_of: np.ndarray
    column_of: np.ndarray

    def enlarge(self, where: np.ndarray | None = None) -> np.ndarray:
        """The crop of the labels, or of another array (h, w) that was made of them."""
        return (self.labels if where is None else where).take(self.column_of, 1).take(self.row_of, 0)

    def areas(self) -> dict[int, int]:
        """Id -> pixels of the crop that have it. Counted in runs of equal ids, of which a drawn map has few."""
        height, width = self.labels.shape
        labels = self.labels.ravel()
        begins = np.empty(self.labels.shape, bool)
        begins[:, :1] = True
        np.not_equal(self.labels[:, 1:], self.labels[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        rows = starts // width
        ends = np.append(starts[1:], height * width) - rows * width
        across = np.concatenate([[0], np.bincount(self.column_of, minlength=width).cumsum()])
        pixels = (across[ends] - across[starts - rows * width]) * np.bincount(self.row_of, minlength=height)[rows]
        ids, of_run = np.unique(labels[starts], return_inverse=True)
        sums = np.bincount(of_run, weights=pixels, minlength=len(ids)).astype(np.int64)
        return dict(zip(ids.tolist(), sums.tolist(), strict=True))


def _reach(end: int, factor: float) -> int:
    """How many of the picture's own pixels the first `end` of the resized ones are made of, at most."""
    support = 2 * max(1.0, 1 / factor)
    return math.ceil(end / factor + support) + 1


def _distinct(array: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (or columns) of ascending indices, each once, and the place among them of every index."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first < len(indices):  # enlarged (or as it is): a slice has hardly more than what is needed
        part = array[first : last + 1] if axis == 0 else array[:, first : last + 1]
        return part, indices - first
    # Ascending, and further apart than 1 on average; Pillow's nearest resize repeats none when it shrinks.
    return array.take(indices, axis), np.arange(len(indices))
