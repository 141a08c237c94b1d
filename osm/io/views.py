"""Views of an image. A view is a crop of the resized and possibly flipped image, its masks and its label maps.

Masks are cropped at the original image size, and only the crop is resized. Shapes: (H, W) is the original size
of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from osm.io.resizing import nearest_rows

_REDUCTIONS = (1, 2, 4, 8)  # The factors by which a JPEG can be reduced during decoding.
# An image may be decoded at a reduced size only if this size is at least _SPARE times the size of the resized image.
_SPARE = 2


@dataclass(frozen=True)
class View:
    """A crop of the resized and possibly flipped image.

    Sizes and positions are given in pixels of the resized image.
    """

    width: int
    height: int
    left: int
    top: int
    crop_width: int
    crop_height: int
    flip: bool

    @property
    def enough(self) -> tuple[int, int]:
        """The smallest (width, height) at which an image may be decoded for this view.

        An image that was decoded at a reduced size is then resized with bicubic resampling. If the reduced image is at
        least twice as large as the resized image, each resized pixel averages several pixels of the reduced image, and
        each pixel of the reduced image already averages full-size pixels. On photos, the result differs from resampling
        the full-size image by about one gray level.
        """
        return _SPARE * self.width, _SPARE * self.height

    def image(self, picture: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the crop of an image as an array (crop_height, crop_width, 3).

        Args:
            picture: the image, uint8 (H, W, 3), possibly decoded at a reduced size.
            size: the (width, height) of the full image. None means that `picture` is the full image.
        """
        found = picture.shape[1], picture.shape[0]
        width, height = size or found
        x, y = slice(self.left, self.left + self.crop_width), slice(self.top, self.top + self.crop_height)
        by = next(by for by in _REDUCTIONS if (-(-width // by), -(-height // by)) == found)
        if (self.width, self.height) == found:
            pixels = picture[y, x]
        elif width % by == height % by == 0:
            return self._resized(picture)
        else:  # The reduced image's last row or column covers fewer source pixels.
            image = Image.fromarray(picture)
            reach = (width / by / self.width, height / by / self.height)
            box = (x.start * reach[0], y.start * reach[1], x.stop * reach[0], y.stop * reach[1])
            box = (*box[:2], min(box[2], width / by), min(box[3], height / by))
            pixels = np.asarray(image.resize((self.crop_width, self.crop_height), Image.Resampling.BICUBIC, box=box))
        return pixels[:, ::-1] if self.flip else pixels

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        """Return the crop of the resized image, computed by torch's vectorized bicubic kernel.

        The bicubic kernel in torch is more than three times as fast as Pillow's. Torch is faster even if torch has to
        resize some pixels outside the crop, while Pillow resizes only the crop. The torch and Pillow kernels both clip
        to 0..255 between the horizontal and vertical passes, but the order of the passes may differ. On photos, torch
        and Pillow results differ by at most two gray levels, and few pixels differ by two. On pure noise, torch and
        Pillow results may differ by more than two gray levels.
        """
        array = torch.from_numpy(picture)
        # The image is flipped before it is resized and cropped, so the position of the crop has to be mirrored too.
        array = array.flip(1) if self.flip else array
        left = self.width - self.left - self.crop_width if self.flip else self.left
        right, bottom = left + self.crop_width, self.top + self.crop_height
        # These strides make torch detect the channels-last layout, which is twice as fast as separate planes.
        pixels = array[None].permute(0, 3, 1, 2)
        factors = (self.height / pixels.shape[2], self.width / pixels.shape[3])
        # Pixels below and to the right of the crop are left out if they do not contribute to it.
        part = pixels[:, :, : _reach(bottom, factors[0]), : _reach(right, factors[1])]
        found = (int(part.shape[2] * factors[0]), int(part.shape[3] * factors[1]))
        if part.numel() < pixels.numel() and found[0] >= bottom and found[1] >= right:
            part = part.contiguous(memory_format=torch.channels_last)
            resized = F.interpolate(part, scale_factor=factors, mode="bicubic", antialias=True)
        else:
            resized = F.interpolate(pixels, size=(self.height, self.width), mode="bicubic", antialias=True)
        return resized[0, :, self.top : bottom, left:right].permute(1, 2, 0).numpy()

    def labels(self, array: np.ndarray) -> np.ndarray:
        """Return the nearest-neighbor crop of a label map or mask (H, W) at the image's original size."""
        return self.cut(array).enlarge()

    def cut(self, array: np.ndarray) -> Cut:
        """Return the rows and columns of a label map (H, W) that the view samples, without duplicates."""
        rows, columns = self._sources(array.shape)
        cut, row_of = _distinct(array, rows, 0)
        cut, column_of = _distinct(cut, columns, 1)
        return Cut(cut, row_of, column_of[::-1] if self.flip else column_of)

    def patch(self, mask: np.ndarray, left: int, top: int, shape: tuple[int, int]) -> np.ndarray:
        """Return the crop of a mask whose array covers only a window (a rectangular part) of the image.

        Args:
            mask: the mask within the window, bool (h, w). Outside the window, the mask is False.
            left: the image column at which the window begins.
            top: the image row at which the window begins.
            shape: the original size (H, W) of the image.
        """
        rows, columns = self._sources(shape)
        out = np.zeros((self.crop_height, self.crop_width), bool)
        y0, y1 = np.searchsorted(rows, (top, top + mask.shape[0]))
        x0, x1 = np.searchsorted(columns, (left, left + mask.shape[1]))
        out[y0:y1, x0:x1] = mask[:, columns[x0:x1] - left][rows[y0:y1] - top]
        return out[:, ::-1] if self.flip else out

    def box(self, box: tuple[int, int, int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of the crop that are covered by a box in the image.

        Args:
            box: (left, top, right, bottom) in pixels of the image, with right and bottom excluded.
            shape: the original size (H, W) of the image.
        """
        rows, columns = self._sources(shape)
        left, right = np.searchsorted(columns, (box[0], box[2])).tolist()
        top, bottom = np.searchsorted(rows, (box[1], box[3])).tolist()
        if self.flip:
            left, right = self.crop_width - right, self.crop_width - left
        return slice(top, bottom), slice(left, right)

    def _sources(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the original (unflipped) image that the crop samples, in ascending order."""
        return (
            nearest_rows(shape[0], self.height, self.top, self.crop_height),
            nearest_rows(shape[1], self.width, self.left, self.crop_width),
        )


@dataclass(frozen=True)
class Cut:
    """The pixels of a label map that a view samples, before they are enlarged to the size of the crop.

    Attributes:
        labels: the pixels (h, w).
        row_of: for each row of the crop, the index of its row in `labels`.
        column_of: for each column of the crop, the index of its column in `labels`.
    """

    labels: np.ndarray
    row_of: np.ndarray
    column_of: np.ndarray

    def enlarge(self, where: np.ndarray | None = None) -> np.ndarray:
        """Enlarge the labels, or a mask (h, w) of them, to the size of the crop."""
        if where is None:
            return self.labels.take(self.column_of, 1).take(self.row_of, 0)
        out = np.zeros((len(self.row_of), len(self.column_of)), bool)
        inside = np.flatnonzero(where.any(1))
        if len(inside):  # Most masks have few rows.
            top, bottom = np.searchsorted(self.row_of, (inside[0], inside[-1] + 1)).tolist()
            rows = where[inside[0] : inside[-1] + 1].take(self.column_of, 1)
            np.take(rows, self.row_of[top:bottom] - inside[0], 0, out[top:bottom], mode="clip")  # "raise" makes a copy
        return out

    def areas(self) -> dict[int, int]:
        """Map each id in the crop to its number of pixels.

        Runs of equal ids are counted instead of individual pixels, because label maps have few runs.
        """
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
    """Return an upper bound on the number of source pixels that contribute to the first `end` resized pixels."""
    support = 2 * max(1.0, 1 / factor)
    return math.ceil(end / factor + support) + 1


def _distinct(array: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (or columns) that `indices` needs, without duplicates, and each index's position among them.

    A few rows that are not in `indices` may be included.
    """
    first, last = int(indices[0]), int(indices[-1])
    # If the image is not shrunk, few rows between the first and the last are missing from `indices`.
    if last - first < len(indices):
        part = array[first : last + 1] if axis == 0 else array[:, first : last + 1]
        return part, indices - first
    # When Pillow shrinks an image, its nearest-neighbor resize uses each index at most once.
    return array.take(indices, axis), np.arange(len(indices))
