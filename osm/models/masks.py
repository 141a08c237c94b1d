"""Converts masks to bridge inputs: bounding boxes, context masks, grid cells and visible keys.

Shapes: R masks (rows), S input size, p patch size, g = S / p grid cells per side, G = g^2 grid cells,
L = prefix + G keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from osm.errors import SampleError

L = TypeVar("L", bound="MaskFeatures")


def context_mask(mask_R1SS: Tensor, ratio: float) -> Tensor:
    """Return a context mask for each mask: the mask's bounding box, enlarged and filled.

    The value of `ratio` comes from the config field `context_enlarge_ratio`.

    Args:
        mask_R1SS: nonzero inside the mask.
        ratio: how much the box grows on each side, as a share of the box's size. A negative ratio selects the whole
            canvas.

    Returns:
        (R, 1, S, S) in the dtype of the masks.

    Raises:
        SampleError: a mask is empty (`empty_mask`).
    """
    top_R, left_R, bottom_R, right_R = bounding_boxes(mask_R1SS).unbind(1)
    if ratio < 0:
        return torch.ones_like(mask_R1SS)
    rows_RS = _within(_enlarge(top_R, bottom_R, ratio), mask_R1SS.shape[-2])
    columns_RS = _within(_enlarge(left_R, right_R, ratio), mask_R1SS.shape[-1])
    # As a product of bytes, because `&` of two broadcast bool tensors is more than ten times slower on CPUs.
    inside_R1SS = rows_RS.view(torch.uint8)[:, None, :, None] * columns_RS.view(torch.uint8)[:, None, None, :]
    return inside_R1SS.view(torch.bool).to(mask_R1SS.dtype)


def bounding_boxes(mask_R1SS: Tensor, what: str = "mask") -> Tensor:
    """Return each mask's bounding box (top, left, bottom, right) in pixels, ends inclusive, as an int64 tensor (R, 4).

    The boxes are on the masks' device. The host synchronizes with the device once, regardless of the number of masks.

    Args:
        mask_R1SS: nonzero inside the mask.
        what: what the masks are called in the error message.

    Raises:
        SampleError: a mask is empty (`empty_mask`).
    """
    inside_RSS = _inside(mask_R1SS)[:, 0]
    sides = [_first_and_last(visible_RS) for visible_RS in (_any(inside_RSS, -1), _any(inside_RSS, 1))]
    (top_R, bottom_R, present_R), (left_R, right_R, _) = sides
    _check_present(present_R, what)
    return torch.stack([top_R, left_R, bottom_R, right_R], 1)


def inside_bytes(mask_R1SS: Tensor) -> Tensor:
    """Return contiguous bytes that are 1 inside the masks (nonzero values) and 0 outside."""
    # A true value from Pillow is the byte 255 instead of 1, even in a bool tensor.
    return _inside(mask_R1SS).contiguous().view(torch.uint8).clamp(max=1)


def _first_and_last(visible_RS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return three tensors (R,): the first and last true position of each row, and whether any position is true."""
    size = visible_RS.shape[1]
    places_S = torch.arange(size, device=visible_RS.device)
    first_R = torch.where(visible_RS, places_S, size).amin(1)
    last_R = torch.where(visible_RS, places_S, -1).amax(1)
    return first_R, last_R, last_R >= 0


def _check_present(present_R: Tensor, what: str) -> None:
    if not bool(present_R.all()):
        row = int((~present_R).nonzero()[0])
        raise SampleError("empty_mask", f"{what} {row} is empty, so there is no object to name")


def _enlarge(low_R: Tensor, high_R: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Extend each interval at both ends by `ratio` times its length, and round the ends toward 0."""
    exact = torch.float32 if low_R.device.type == "mps" else torch.float64
    reach_R = ratio * (high_R - low_R + 1).to(exact)
    return (low_R - reach_R).long(), (high_R + reach_R).long()


def _within(ends: tuple[Tensor, Tensor], size: int) -> Tensor:
    """Return a bool tensor (R, size) that is true inside each row's interval, whose two ends are included."""
    places_S = torch.arange(size, device=ends[0].device)
    return (places_S >= ends[0][:, None]) & (places_S <= ends[1][:, None])


def _inside(mask_R1SS: Tensor) -> Tensor:
    # Boolean masks need no comparison with 0, which would take as long as a layer of a small model.
    return mask_R1SS if mask_R1SS.dtype == torch.bool else mask_R1SS != 0


def _any(inside: Tensor, dim: int) -> Tensor:
    """Compute `any` of a bool tensor over an axis, as the maximum of bytes. `Tensor.any` is 30 times slower on CPUs."""
    return inside.view(torch.uint8).amax(dim) != 0


def is_any(inside: Tensor) -> bool:
    """Return whether any value of a bool tensor is true. This is 20 times as fast as `Tensor.any` on CPUs."""
    return bool(inside.view(torch.uint8).amax())


def mask_to_grid(mask_R1SS: Tensor, patch: int, method: str) -> Tensor:
    """Return a bool tensor (R, G) that marks the grid cells covered by each mask.

    Args:
        method: `nearest` tests whether the top-left pixel of a cell is inside the mask; `area` tests whether any pixel
            of the cell is inside the mask.
    """
    inside_R1SS = _inside(mask_R1SS)
    if method == "nearest":
        return inside_R1SS[..., ::patch, ::patch].flatten(1).clone()  # callers change the result in place
    rows_R1GS = _any(inside_R1SS.unflatten(-2, (-1, patch)), -2)
    return _any(rows_R1GS.unflatten(-1, (-1, patch)), -1).flatten(1)


@dataclass
class MaskFeatures:
    """Base class for the features that a bridge computes from R masks. Every tensor field has shape (R, ...).

    Attributes:
        fallbacks: number of rows whose mask covered no cell of the grid, so that a different cell was used.
    """

    fallbacks: int = field(default=0, kw_only=True)

    def _values(self) -> dict[str, Tensor]:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self._values().values())).device

    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors are all on the given device."""
        return replace(self, **{name: value.to(device) for name, value in self._values().items()})  # type: ignore[arg-type]

    def rows(self) -> list[Self]:
        """Split the features into one object per row. In each object, `fallbacks` is 0."""
        return [self._row(row) for row in range(len(self))]

    def _row(self, row: int) -> Self:
        cut = {name: value[row : row + 1] for name, value in self._values().items()}
        return replace(self, fallbacks=0, **cut)  # type: ignore[arg-type]

    def select(self, rows_K: Tensor) -> Self:
        """Return the features of some rows. In the result, `fallbacks` is 0."""
        some = {name: value[rows_K] for name, value in self._values().items()}
        return replace(self, fallbacks=0, **some)  # type: ignore[arg-type]

    def changes(self) -> Tensor:
        """Return a bool tensor (R,) that is false for each row whose features equal those of the row before it."""
        same_R = [(value[1:] == value[:-1]).flatten(1).all(1) for value in self._values().values()]
        return F.pad(~torch.stack(same_R).all(0), (1, 0), value=True)

    @staticmethod
    def stack(parts: Sequence[L]) -> L:
        """Concatenate the rows of several `MaskFeatures` objects, which must be of the same class."""
        columns = [part._values() for part in parts]
        joined = {name: torch.cat([values[name] for values in columns]) for name in columns[0]}
        return replace(parts[0], fallbacks=sum(part.fallbacks for part in parts), **joined)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(next(iter(self._values().values())))


@dataclass
class VisibleKeys(MaskFeatures):
    """The image keys that each mask's queries may attend to.

    Attributes:
        mask_RL: bool, the keys that are visible to the mask queries.
        context_RL: bool, the keys that are visible to the context queries and the mode query.
        fallbacks: number of rows whose mask or context box covered no cell, so that the cell at its centroid was used.
    """

    mask_RL: Tensor
    context_RL: Tensor


def check_not_empty(mask_R1SS: Tensor, context_R1SS: Tensor) -> None:
    """Raise SampleError (`empty_mask`) if a mask or a context mask is empty."""
    for what, pixels_R1SS in (("mask", mask_R1SS), ("context mask", context_R1SS)):
        _check_present(_any(_inside(pixels_R1SS).flatten(1), -1), what)


def visible_keys(mask_R1SS: Tensor, context_R1SS: Tensor, patch: int, prefix: int, method: str) -> VisibleKeys:
    """Compute which image keys each mask's queries may attend to.

    The keys are ordered as [class token of each window | grid cells, row-major]. Class tokens are always visible. If
    there are no class tokens and a mask covers no grid cell, its queries attend to the cell at the mask's centroid
    instead, and the row is counted in `fallbacks`.

    Raises:
        SampleError: a mask or a context mask has no pixel (`empty_mask`).
    """
    check_not_empty(mask_R1SS, context_R1SS)
    visible, fallbacks_R = [], torch.zeros(len(mask_R1SS), dtype=torch.bool, device=mask_R1SS.device)
    for pixels_R1SS in (mask_R1SS, context_R1SS):
        grid_RG = mask_to_grid(pixels_R1SS, patch, method)
        if prefix == 0 and method == "nearest":  # with `area`, every mask covers a cell
            lost_R = ~grid_RG.any(1)
            # Centroids are computed for all rows, because selecting some rows would make the CPU wait for the GPU.
            centroid_RG = F.one_hot(_centroid_cells(pixels_R1SS, patch), grid_RG.shape[1]).bool()
            grid_RG = grid_RG | (lost_R[:, None] & centroid_RG)
            fallbacks_R |= lost_R
        visible.append(torch.cat([grid_RG.new_ones(len(grid_RG), prefix), grid_RG], 1))
    return VisibleKeys(visible[0], visible[1], fallbacks=int(fallbacks_R.sum()))


def _centroid_cells(pixels_R1SS: Tensor, patch: int) -> Tensor:
    """Return the row-major index of the cell at each mask's centroid, as an int64 tensor (R,)."""
    inside_RSS = _inside(pixels_R1SS)[:, 0]
    count_R = inside_RSS.sum((1, 2))
    places_S = torch.arange(inside_RSS.shape[-1], device=inside_RSS.device)
    y_R, x_R = ((inside_RSS.sum(axis) * places_S).sum(1) // (count_R * patch) for axis in (2, 1))
    return y_R * (inside_RSS.shape[-1] // patch) + x_R
