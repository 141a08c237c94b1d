"""Converts regions given as masks, RLEs, boxes or points to boolean masks of the same size as the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import OsmError, shown
from osm.io.any_mask import mask_drawer

POINT_RADIUS = 0.02  # the radius of the disc that a point is converted to, as a share of the image's longer side


@dataclass(frozen=True)
class Region:
    """A region of an image. Masks are created on demand, so that hundreds of masks need not fit in memory at once.

    Attributes:
        draw: function that returns the mask, bool (H, W).
        boxed: whether the region is a box. Boxes are named with the prompt for boxes.
    """

    draw: Callable[[], np.ndarray]
    boxed: bool = False

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool (H, W)."""
        return self.draw()


def regions_of(
    size: tuple[int, int],
    masks: Any = None,
    boxes: Any = None,
    points: Any = None,
    logits: bool = False,
    label_id: int | None = None,
) -> list[Region]:
    """Convert masks, boxes and points to regions of an image, in that order.

    Args:
        size: (width, height) of the image.
        masks: an array or tensor (K, H, W) or (K, 1, H, W), or a list of masks in any format that `mask_drawer`
            accepts: arrays and tensors (H, W), COCO RLEs ({"size": [H, W], "counts": ...}), SAM's dicts, PIL images.
            A single mask is treated as a list with one element.
        boxes: list, array or tensor (K, 4) of boxes (x, y, width, height) in pixels, or a single box.
        points: list, array or tensor (K, 2) of points (x, y) in pixels, or a single point. A point is converted to a
            small disc around the point.
        logits: whether the masks' values are logits; see `mask_drawer`.
        label_id: the id to select if the masks are label maps; see `mask_drawer`.

    Raises:
        OsmError: a region is invalid. The message names the region and the reason.
    """
    more: dict[str, Any] = {"logits": logits, "label_id": label_id}
    found = [
        Region(mask_drawer(mask, size[::-1], f"mask {k}", **more)) for k, mask in enumerate(_masks(masks, size[::-1]))
    ]
    found += [Region(_box(box, size, f"box {k}"), True) for k, box in enumerate(_some(boxes, 4, "boxes"))]
    found += [Region(_disc(point, size, f"point {k}")) for k, point in enumerate(_some(points, 2, "points"))]
    return found


def _masks(masks: Any, size_hw: tuple[int, int]) -> list[Any]:
    """Return the masks as a list; a single mask becomes a one-element list."""
    shape = tuple(getattr(masks, "shape", ()))  # of an array or tensor
    alone = len(shape) == 2 or (shape == (*size_hw, 1) and shape[1:] != size_hw)
    return [masks] if alone or isinstance(masks, (Mapping, Image.Image)) else _listed(masks, "masks")


def _listed(values: Any, what: str) -> list[Any]:
    try:
        return [] if values is None else list(values)
    except (TypeError, RuntimeError):
        raise OsmError(f"{what} is a {type(values).__name__}: a list of {what} is needed") from None


def _some(values: Any, count: int, what: str) -> list[Any]:
    """Return boxes or points as a list; a single box or point (`count` numbers) becomes a one-element list."""
    found = _listed(values, what)
    return [found] if len(found) == count and all(np.ndim(value) == 0 for value in found) else found


def _numbers(values: Any, count: int, where: str, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor without values
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise OsmError(f"{where}: {_formatted(values)} is not {what}")
    return numbers


def _formatted(values: Any) -> str:
    """Format a box or point (a list, array or tensor) for an error message."""
    if getattr(getattr(values, "device", None), "type", "") == "meta":
        return "a tensor on the device meta"
    return shown(values.tolist() if hasattr(values, "tolist") else values)


def _box(box: Any, size: tuple[int, int], where: str) -> Callable[[], np.ndarray]:
    x, y, width, height = _numbers(box, 4, where, "[x, y, width, height]")
    # Boxes are rounded outward and clipped to the image, as in training.
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(size[0], math.ceil(x + width)), min(size[1], math.ceil(y + height))
    if width <= 0 or height <= 0 or left >= right or top >= bottom:
        raise OsmError(f"{where}: {_formatted(box)} does not overlap the image, which is {size[0]} x {size[1]} pixels")

    def draw() -> np.ndarray:
        mask = np.zeros(size[::-1], bool)
        mask[top:bottom, left:right] = True
        return mask

    return draw


def _disc(point: Any, size: tuple[int, int], where: str) -> Callable[[], np.ndarray]:
    x, y = _numbers(point, 2, where, "[x, y]")
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise OsmError(f"{where}: {_formatted(point)} is outside of the image, which is {size[0]} x {size[1]} pixels")
    radius = max(1.0, POINT_RADIUS * max(size))

    def draw() -> np.ndarray:
        ys, xs = np.ogrid[: size[1], : size[0]]
        return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2

    return draw
