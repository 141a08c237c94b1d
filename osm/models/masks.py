"""From masks in pixels to what the bridge's queries may look at.

Shapes: R masks (rows), S input size, g = S / p grid cells a side, L = prefix + g^2 keys.
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


def context_mask(mask: Tensor, ratio: float) -> Tensor:
    """The filled, enlarged bounding box of each mask (published: `context_enlarge_ratio`).

    Args:
        mask: (R, 1, S, S), non-zero = inside.
        ratio: by how much of its own size the box grows on each side; < 0 = the whole canvas.

    Returns:
        (R, 1, S, S) in the dtype of `mask`.

    Raises:
        SampleError: `empty_mask`.
    """
    top, left, bottom, right = bounding_boxes(mask).unbind(1)
    if ratio < 0:
        return torch.ones_like(mask)
    rows = _within(_enlarge(top, bottom, ratio), mask.shape[-2])
    columns = _within(_enlarge(left, right, ratio), mask.shape[-1])
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(mask.dtype)


def bounding_boxes(mask: Tensor) -> Tensor:
    """Returns (top, left, bottom, right), inclusive, of every mask (R, 1, S, S), as int64 (R, 4) on its device.

    The host waits for the device once, whatever the number of masks.

    Raises:
        SampleError: `empty_mask`.
    """
    inside = _inside(mask)[:, 0]
    sides = [_first_and_last(visible) for visible in (_any_of_row(inside), inside.any(1))]
    (top, bottom, present), (left, right, _) = sides
    _check_present(present, "mask")
    return torch.stack([top, left, bottom, right], 1)


def _first_and_last(visible_RS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the first and last true place of each row (R,), and whether it has one."""
    size = visible_RS.shape[1]
    places = torch.arange(size, device=visible_RS.device)
    first = torch.where(visible_RS, places, size).amin(1)
    last = torch.where(visible_RS, places, -1).amax(1)
    return first, last, last >= 0


def _check_present(present_R: Tensor, what: str) -> None:
    if not bool(present_R.all()):
        row = int((~present_R).nonzero()[0])
        raise SampleError("empty_mask", f"{what} {row} is empty: there is nothing in it to name")


def _enlarge(low_R: Tensor, high_R: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Moves the ends of a side apart by `ratio` of its length, rounded towards 0."""
    exact = torch.float32 if low_R.device.type == "mps" else torch.float64
    reach = ratio * (high_R - low_R + 1).to(exact)
    return (low_R - reach).long(), (high_R + reach).long()


def _within(ends: tuple[Tensor, Tensor], size: int) -> Tensor:
    """Returns (R, size): whether each place lies between the ends, both included."""
    places = torch.arange(size, device=ends[0].device)
    return (places >= ends[0][:, None]) & (places <= ends[1][:, None])


def _inside(mask: Tensor) -> Tensor:
    # A comparison of so many pixels costs as much as a layer of a small model.
    return mask if mask.dtype == torch.bool else mask != 0


def _any_of_row(inside: Tensor) -> Tensor:
    """bool (..., S) -> (...). In eights first: on a CPU, torch reduces a long last dimension of bools slowly."""
    if inside.shape[-1] % 8 == 0:
        inside = inside.unflatten(-1, (-1, 8)).any(-1)
    return inside.any(-1)


def mask_to_grid(mask: Tensor, patch: int, how: str) -> Tensor:
    """(R, 1, S, S) -> bool (R, g^2): `nearest` looks at each cell's top-left pixel, `area` at any of its pixels."""
    inside = _inside(mask)
    if how == "nearest":
        return inside[..., ::patch, ::patch].flatten(1).clone()  # never a view: a cell may be set in it
    return inside.unflatten(-1, (-1, patch)).any(-1).unflatten(-2, (-1, patch)).any(-2).flatten(1)


@dataclass
class MaskFeatures:
    """What a bridge needs of R masks, in place of their pixels: a dataclass whose tensors are (R, ...) each.

    Attributes:
        fallbacks: rows whose mask had no place of its own on the grid, so that another was used.
    """

    fallbacks: int = field(default=0, kw_only=True)

    def _values(self) -> dict[str, Tensor]:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @property
    def device(self) -> torch.device:
        return next(iter(self._values().values())).device

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{name: value.to(device) for name, value in self._values().items()})  # type: ignore[arg-type]

    def rows(self) -> list[Self]:
        """Each row by itself."""
        return [self._row(row) for row in range(len(self))]

    def _row(self, row: int) -> Self:
        cut = {name: value[row : row + 1] for name, value in self._values().items()}
        return replace(self, fallbacks=0, **cut)  # type: ignore[arg-type]

    @staticmethod
    def stack(parts: Sequence[L]) -> L:
        """Several ones' rows together."""
        columns = [part._values() for part in parts]
        joined = {name: torch.cat([values[name] for values in columns]) for name in columns[0]}
        return replace(parts[0], fallbacks=sum(part.fallbacks for part in parts), **joined)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(next(iter(self._values().values())))


@dataclass
class VisibleKeys(MaskFeatures):
    """What the queries of each row may attend to.

    Attributes:
        mask_RL, context_RL: bool, the mask queries' keys and the context and mode queries' keys.
        fallbacks: rows whose mask (or context box) had no cell of its own, so that its centroid's cell was used.
    """

    mask_RL: Tensor
    context_RL: Tensor


def check_not_empty(mask: Tensor, context: Tensor) -> None:
    """Raises SampleError `empty_mask` for a mask or context mask (R, 1, S, S) without a pixel."""
    for what, pixels in (("mask", mask), ("context mask", context)):
        _check_present(_any_of_row(_inside(pixels).flatten(1)), what)


def visible_keys(mask: Tensor, context: Tensor, patch: int, prefix: int, how: str) -> VisibleKeys:
    """Brings masks and context masks (R, 1, S, S) to the keys [class token of every window | grid, row-major].

    Class tokens are always visible. Without class tokens a row whose mask vanishes on the grid sees the cell at the
    mask's centroid, and is counted.

    Raises:
        SampleError: `empty_mask`, a mask or context mask without a pixel.
    """
    check_not_empty(mask, context)
    visible, fallbacks = [], torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for pixels in (mask, context):
        grid = mask_to_grid(pixels, patch, how)
        if prefix == 0 and how == "nearest":  # with `area` no mask is lost
            lost = ~grid.any(1)
            # For all rows, so that the host need not know which are lost.
            grid = grid | (lost[:, None] & F.one_hot(_centroid_cells(pixels, patch), grid.shape[1]).bool())
            fallbacks |= lost
        visible.append(torch.cat([grid.new_ones(len(grid), prefix), grid], 1))
    return VisibleKeys(visible[0], visible[1], fallbacks=int(fallbacks.sum()))


def _centroid_cells(pixels: Tensor, patch: int) -> Tensor:
    """Returns the number of the cell (row-major) in which the centroid of each mask (R, 1, S, S) lies, int64 (R,)."""
    inside = _inside(pixels)[:, 0]
    count = inside.sum((1, 2))
    places = torch.arange(inside.shape[-1], device=inside.device)
    y, x = ((inside.sum(axis) * places).sum(1) // (count * patch) for axis in (2, 1))
    return y * (inside.shape[-1] // patch) + x
