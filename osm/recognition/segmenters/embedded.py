"""A segmenter that has no weights of its own, but uses color and the features of the recognizer's vision tower.

The image is split into superpixels with the Felzenszwalb-Huttenlocher method. Superpixels with similar tower tokens and
similar colors are merged pairwise into a tree. One tree is built per color weight. The result consists of
the segments that stay unmerged over the widest range of merge costs, without near-duplicates. A click gets the segment
of the most plausible scale. The parameters were tuned on photos that are not in the evaluation in docs/demos.md.

Shapes: (H, W) is the size of the image at the working resolution, n is the number of superpixels, and the tower
outputs (g, g, C) tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from osm.errors import OsmError
from osm.io.images import to_rgb
from osm.io.resizing import fitted_size, nearest_rows, taken
from osm.recognition.segmenters.base import (
    ScoredMask,
    Segmenter,
    Size,
    by_area,
    check_set,
    checked_box,
    checked_points,
)
from osm.recognition.segmenters.candidates import gather_candidates
from osm.recognition.segmenters.tree import merged, neighbours

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

WORKING_SIDE = 448
# Parameters of the superpixel method, in pixels at the working resolution.
_SCALE, _SIGMA, _SMALLEST = 200, 0.6, 60
_COLOURS = (0.3, 0.7, 2.0)  # for each tree, the weight of the color features relative to the token features
_LEAST_AREA = 0.001  # minimum area of a segment, as a fraction of the image
_MAX_IOU = 0.7  # threshold of the non-maximum suppression of `everything`
# The score of a segment for a click is _PERSISTENCE * log(persistence) + _DEPTH * log(depth) - (log(area / _AREA) /
# _SPREAD)^2 / 2. The area is a fraction of the image. The depth is the distance of the click from the segment's outline
# relative to the largest distance inside the segment, because people click on the middle of a thing.
_PERSISTENCE, _DEPTH, _AREA, _SPREAD = 0.3, 2.0, 0.003, 3.0
_STRIDE = 3  # depths are computed on every third pixel
# The candidates whose bounding boxes have the highest IoU with the prompt box vote on each superpixel, together with
# `_like_the_middle`.
_VOTERS, _LEAST_BOX_IOU, _POWER, _MIDDLE_VOTES = 5, 0.6, 4, 2.0
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
        recognizer.encoder.keeps_tokens = True  # so that the tower runs once for segmenting and naming an image

    @classmethod
    def load(
        cls, checkpoint: str | Path | None, recognizer: Recognizer | None, device: str, **options: Any
    ) -> EmbeddedSegmenter:
        """Build the segmenter. The argument `device` is ignored, because the recognizer's device is used."""
        if recognizer is None:
            raise OsmError("--segmenter embedded uses the vision tower of a recognizer: pass the argument `recognizer`")
        return cls(recognizer, **options)

    def set_image(self, image: Image.Image) -> None:
        """Set the RGB image to segment, and compute its superpixels and their merge trees."""
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
        touching = neighbours(self._labels)
        trees = [merged(np.concatenate([tokens, weight * colours], 1), areas, touching) for weight in _COLOURS]
        self._candidates = gather_candidates(trees, self._labels)
        self._rows, self._columns = nearest_rows(small.height, image.height), nearest_rows(small.width, image.width)
        self._size = image.size

    def everything(self) -> list[ScoredMask]:
        """Return the most persistent segments that are not near-duplicates, scored by persistence."""
        return by_area(list(self.largest(self.segments)[0]))

    def largest(self, count: int) -> tuple[Iterator[ScoredMask], int]:
        """Return an iterator over the `count` largest segments of `everything`, and its total number of segments."""
        check_set(self._size)
        candidates = self._candidates
        found = candidates.distinct(self.segments, _LEAST_AREA * self._labels.size, _MAX_IOU)
        if not found:  # a uniform image is one segment
            return iter([ScoredMask(np.ones(self._shape, bool))]), 1
        order = sorted(found, key=lambda k: -candidates.areas[k])[:count]
        segments = (self._segment(candidates.members[k], float(candidates.persistence[k])) for k in order)
        return segments, len(found)

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        """Return the most plausible segment that contains all inside points and no outside points.

        If there is no such segment, return the union of the superpixels that contain the inside points.
        """
        size = check_set(self._size)
        places, marks = checked_points(size, points, inside)
        cells = [(int(self._rows[int(y)]), int(self._columns[int(x)])) for x, y in places]
        wanted = {int(self._labels[cell]) for cell, mark in zip(cells, marks, strict=True) if mark}
        unwanted = {int(self._labels[cell]) for cell, mark in zip(cells, marks, strict=True) if not mark} - wanted
        fitting = self._candidates.with_superpixels(sorted(wanted), sorted(unwanted))
        if len(fitting):
            clicks = [cell for cell, mark in zip(cells, marks, strict=True) if mark]
            best = fitting[np.argmax(self._plausibility(fitting, clicks))]
            return self._segment(self._candidates.members[best], 1.0)
        members = np.zeros(len(self._directions), bool)
        members[sorted(wanted)] = True
        return self._segment(members, 1.0)

    def in_box(self, box: Sequence[float]) -> ScoredMask:
        """Return a mask of the object in a box, clipped to the box.

        The candidates whose boxes are most similar to the box vote on each superpixel, together with its similarity to
        the center of the box.
        """
        left, top, right, bottom = checked_box(check_set(self._size), box)
        inside = np.zeros(self._shape, bool)
        inside[top:bottom, left:right] = True
        scale_x, scale_y = self._labels.shape[1] / self._shape[1], self._labels.shape[0] / self._shape[0]
        scaled = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        likely = self._candidates.box_ious(scaled)
        voters = np.argsort(-likely, kind="stable")[:_VOTERS]
        voters = voters[likely[voters] > _LEAST_BOX_IOU]
        weights = likely[voters] ** _POWER
        middle = self._like_the_middle(*scaled)
        votes = weights @ self._candidates.members[voters] + _MIDDLE_VOTES * (1.0 if middle is None else middle)
        chosen = votes >= (weights.sum() + _MIDDLE_VOTES) / 2
        mask = self._at_full_size(chosen) & inside
        # If the mask covers less than a fifth of the box, the method has failed, so the whole box is returned instead.
        return ScoredMask(mask if mask.sum() >= 0.2 * inside.sum() else inside)

    def state(self) -> Any:
        """Return the superpixels and their candidates."""
        return self._labels, self._directions, self._candidates, self._rows, self._columns, self._size

    def restore(self, state: Any) -> None:
        """Return to an earlier image."""
        self._labels, self._directions, self._candidates, self._rows, self._columns, self._size = state

    # -- implementation ------------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self._rows), len(self._columns)

    def _segment(self, members: np.ndarray, score: float) -> ScoredMask:
        return ScoredMask(self._at_full_size(members), score)

    def _at_full_size(self, members: np.ndarray) -> np.ndarray:
        """Return the mask (H, W) of superpixels, given as a bool array (n,), at the size of the image."""
        return taken(members[self._labels], self._rows, self._columns)

    def _plausibility(self, candidates: np.ndarray, clicks: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return a score per candidate: how well it explains the clicks, given as (row, column) in the label map."""
        found = self._candidates
        depths = np.array([self._depths(int(k), clicks) for k in candidates])
        size = np.log(found.areas[candidates] / self._labels.size / _AREA) / _SPREAD
        lasting = np.log(found.persistence[candidates] + 1e-4)
        return _PERSISTENCE * lasting + _DEPTH * np.log(depths + 1e-3).mean(1) - size**2 / 2

    def _depths(self, candidate: int, clicks: Sequence[tuple[int, int]]) -> list[float]:
        """Return the distance of each click from a candidate's outline, relative to the largest distance inside."""
        from scipy.ndimage import distance_transform_edt

        left, top, right, bottom = self._candidates.boxes[candidate].astype(int)
        part = self._candidates.members[candidate][self._labels[top:bottom:_STRIDE, left:right:_STRIDE]]
        distances = distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
        rows = [min((row - top) // _STRIDE, part.shape[0] - 1) for row, _ in clicks]
        columns = [min((column - left) // _STRIDE, part.shape[1] - 1) for _, column in clicks]
        return list(distances[rows, columns] / max(distances.max(), 1.0))

    @torch.inference_mode()
    def _tokens(self, image: Image.Image) -> np.ndarray:
        """Return the tower's patch tokens (g, g, C) for the padded image."""
        encoder, model = self.recognizer.encoder, self.recognizer.model
        tokens = encoder.image_tokens(image)
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

    def _like_the_middle(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray | None:
        """Return a bool array (n,) of superpixels to keep, or None if the box or its surroundings contain none.

        The superpixels in the box are kept except those that look much more like the surroundings than like the center.
        """
        height, width = self._labels.shape
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
