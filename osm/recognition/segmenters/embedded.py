"""A segmenter that has no weights of its own, but uses color and the features of the recognizer's vision tower.

The image is split into superpixels with the Felzenszwalb-Huttenlocher method. Superpixels with similar tower tokens and
similar colors are merged pairwise into a tree. The result consists of the segments that stay unmerged over the widest
range of merge costs. The accuracy of this segmenter is reported in docs/demos.md.

Shapes: (H, W) is the size of the image at the working resolution, n is the number of superpixels, and the tower
outputs (g, g, C) tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from osm.errors import OsmError
from osm.io.images import to_rgb
from osm.io.resizing import fitted_size, nearest_rows
from osm.recognition.segmenters.base import (
    ScoredMask,
    Segmenter,
    Size,
    by_area,
    check_set,
    checked_box,
    checked_points,
)
from osm.recognition.segmenters.tree import merged, neighbours

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

WORKING_SIDE = 448
# Parameters of the superpixel method, in pixels at the working resolution.
_SCALE, _SIGMA, _SMALLEST = 200, 0.6, 60
_COLOUR = 0.7  # weight of the color features relative to the token features
_LEAST_AREA = 0.001  # minimum area of a segment, as a fraction of the image
# A superpixel in a box is dropped if (similarity to the surroundings) - (similarity to the center) > _MARGIN.
_MARGIN = 0.3


class EmbeddedSegmenter(Segmenter):
    """Segments an image by color and by the features of the recognizer's vision tower.

    Args:
        recognizer: the model whose vision tower is used. The recognizer's current image does not change.
        segments: maximum number of segments that `everything` returns.

    Raises:
        OsmError: `segments` is below 1, or scikit-image is not installed.
    """

    name = "embedded"

    def __init__(self, recognizer: Recognizer, segments: int = 100) -> None:
        if segments < 1:
            raise OsmError(f"segments {segments} must be 1 or more")
        try:
            import skimage.segmentation  # noqa: F401
        except ImportError:
            raise OsmError("the embedded segmenter needs scikit-image: pip install scikit-image") from None
        self.recognizer, self.segments = recognizer, segments
        self._size: Size | None = None

    @classmethod
    def load(
        cls, checkpoint: str | Path | None, recognizer: Recognizer | None, device: str, **options: Any
    ) -> EmbeddedSegmenter:
        """Build the segmenter. The argument `device` is ignored, because the recognizer's device is used."""
        if recognizer is None:
            raise OsmError("--segmenter embedded uses the vision tower of a recognizer: pass the argument `recognizer`")
        return cls(recognizer, **options)

    def set_image(self, image: Image.Image) -> None:
        """Set the RGB image to segment, and compute its superpixels and their merge tree."""
        self._size = None
        image = to_rgb(image)
        factor = min(1.0, WORKING_SIDE / max(image.size))
        small = image.resize(
            (max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.BOX
        )
        self._labels = _superpixels(np.asarray(small))
        areas = np.bincount(self._labels.ravel()).astype(np.float64)
        tokens = _standardised(self._pooled(self._tokens(image), image.size, areas))
        colours = _standardised(_colours(np.asarray(small), self._labels, areas))
        lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
        self._directions = tokens / np.maximum(lengths, 1e-9)
        self._tree = merged(np.concatenate([tokens, _COLOUR * colours], 1), areas, neighbours(self._labels))
        rows, columns = nearest_rows(small.height, image.height), nearest_rows(small.width, image.width)
        self._places = rows[:, None], columns[None]
        self._size = image.size

    def everything(self) -> list[ScoredMask]:
        """Return the most persistent segments of the merge tree, scored by persistence relative to the maximum."""
        check_set(self._size)
        tree = self._tree
        lasting = np.where(tree.areas >= _LEAST_AREA * self._labels.size, tree.persistence, 0.0)
        longest = max(lasting.max(), 1e-12)
        chosen = [k for k in np.argsort(-lasting, kind="stable")[: self.segments] if lasting[k] > 0]
        if not chosen:  # a uniform image is one segment
            return [ScoredMask(np.ones(self._shape, bool))]
        return by_area([self._segment(tree.members[k], float(lasting[k] / longest)) for k in chosen])

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        """Return the smallest segment of the merge tree that contains all inside points and no outside points.

        If the merge tree has no such segment, return the union of the superpixels that contain the inside points.
        """
        size = check_set(self._size)
        places, marks = checked_points(size, points, inside)
        at = [self._labels[self._places[0][int(y), 0], self._places[1][0, int(x)]] for x, y in places]
        wanted = {int(label) for label, mark in zip(at, marks, strict=True) if mark}
        others = {int(label) for label, mark in zip(at, marks, strict=True) if not mark} - wanted
        k = self._tree.smallest_with(wanted)
        members = self._tree.members[k] if k is not None else np.array(sorted(wanted))
        if others & set(members.tolist()):
            members = np.array(sorted(wanted))
        return self._segment(members, 1.0)

    def in_box(self, box: Sequence[float]) -> ScoredMask:
        """Return the box's superpixels except those that look much more like the surroundings than like the center."""
        left, top, right, bottom = checked_box(check_set(self._size), box)
        inside = np.zeros(self._shape, bool)
        inside[top:bottom, left:right] = True
        kept = self._like_the_middle(left, top, right, bottom)
        mask = inside if kept is None else kept[self._labels][self._places] & inside
        # If the mask covers less than a fifth of the box, the method has failed, so the whole box is returned instead.
        return ScoredMask(mask if mask.sum() >= 0.2 * inside.sum() else inside)

    # -- implementation ------------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return self._places[0].shape[0], self._places[1].shape[1]

    def _segment(self, members: np.ndarray, score: float) -> ScoredMask:
        chosen = np.zeros(len(self._directions), bool)
        chosen[members] = True
        return ScoredMask(chosen[self._labels][self._places], score)

    @torch.inference_mode()
    def _tokens(self, image: Image.Image) -> np.ndarray:
        """Return the tower's patch tokens (g, g, C) for the padded image."""
        encoder, model = self.recognizer.encoder, self.recognizer.model
        canvas = self.recognizer.processor.canvas(image)[None].to(model.device)
        tokens = encoder.tower_tokens(self.recognizer.processor.pixel_values(canvas), [image.size])
        patches = tokens[0, model.prefix_tokens :].float().cpu().numpy()
        return patches.reshape(model.windows.grid, model.windows.grid, -1)

    def _pooled(self, tokens: np.ndarray, size: Size, areas: np.ndarray) -> np.ndarray:
        """Return the mean token (n, C) of each superpixel, after bilinear interpolation between grid cells."""
        from scipy.sparse import coo_matrix

        height, width = self._labels.shape
        side, patch = len(tokens), self.recognizer.model.windows.patch
        fitted = fitted_size(*size, self.recognizer.processor.input_size)
        weights = 0.0
        ys, y_parts = _between(height, fitted[1] / patch, side)
        xs, x_parts = _between(width, fitted[0] / patch, side)
        for y, y_part in zip(ys, y_parts, strict=True):
            for x, x_part in zip(xs, x_parts, strict=True):
                cells = (y[:, None] * side + x[None]).ravel()
                parts = (y_part[:, None] * x_part[None]).ravel()
                weights += coo_matrix((parts, (self._labels.ravel(), cells)), (len(areas), side * side)).tocsr()
        return (weights @ tokens.reshape(side * side, -1)) / areas[:, None]

    def _like_the_middle(self, left: int, top: int, right: int, bottom: int) -> np.ndarray | None:
        """Return a bool array (n,) of superpixels to keep, or None if the box or its surroundings contain none."""
        height, width = self._labels.shape
        scale_x, scale_y = width / self._shape[1], height / self._shape[0]
        x0, x1, y0, y1 = left * scale_x, right * scale_x, top * scale_y, bottom * scale_y
        ys, xs = np.arange(height) + 0.5, np.arange(width) + 0.5
        covered = ((ys >= y0) & (ys <= y1))[:, None] & ((xs >= x0) & (xs <= x1))[None]
        flat = self._labels.ravel()
        areas = np.bincount(flat)
        inside = np.bincount(flat, covered.ravel()) > 0.5 * areas
        # Distance of each superpixel from the center of the box, in units of the box's width and height.
        far_x = np.abs(np.bincount(flat, np.broadcast_to(xs, covered.shape).ravel()) / areas - (x0 + x1) / 2)
        far_y = np.abs(np.bincount(flat, np.repeat(ys, width)) / areas - (y0 + y1) / 2)
        far = np.maximum(far_x / max(x1 - x0, 1e-9), far_y / max(y1 - y0, 1e-9))
        around, middle = ~inside & (far < 1), inside & (far < 0.25)
        middle = middle if middle.any() else inside
        if not (middle.any() and around.any()):
            return None
        likeness = self._directions @ self._directions.T
        return inside & (likeness[:, middle].max(1) >= likeness[:, around].max(1) - _MARGIN)


def _superpixels(pixels: np.ndarray) -> np.ndarray:
    """Split a uint8 image (H, W, 3) into superpixels. Return an integer label map (H, W) with labels 0 to n - 1."""
    from skimage.segmentation import felzenszwalb

    labels = felzenszwalb(pixels, scale=_SCALE, sigma=_SIGMA, min_size=_SMALLEST)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _colours(pixels: np.ndarray, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the mean CIELAB color (n, 3) of each superpixel."""
    from skimage.color import rgb2lab

    lab = rgb2lab(pixels).reshape(-1, 3)
    return np.stack([np.bincount(labels.ravel(), lab[:, k]) / areas for k in range(3)], 1)


def _standardised(features: np.ndarray) -> np.ndarray:
    """Subtract the mean feature row from all rows, then scale the rows so that their root-mean-square norm is 1."""
    features = features - features.mean(0)
    return features / max(float(np.sqrt((features**2).sum(1).mean())), 1e-9)


def _between(pixels: int, cells: float, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return, for each pixel in a row or column, the two grid cells to interpolate between, and their weights.

    Args:
        pixels: number of pixels in the line.
        cells: number of grid cells that the line covers.
        side: number of grid cells per row of the grid.
    """
    middles = np.clip((np.arange(pixels) + 0.5) / pixels * cells - 0.5, 0, side - 1)
    before = np.minimum(np.floor(middles).astype(np.int64), max(side - 2, 0))
    part = middles - before
    return [before, np.minimum(before + 1, side - 1)], [1 - part, part]
