"""From masks in pixels to what the bridge's queries may look at.

Shapes: R masks (rows), S input size, g = S / p grid cells a side, L = prefix + g^2 keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from osm.errors import SampleError

L = TypeVar("L", bound="Looks")


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
    boxes = bounding_boxes(mask)
    if ratio < 0:
        return torch.ones_like(mask)
    context = torch.zeros_like(mask)
    for row, (y0, x0, y1, x1) in enumerate(boxes):
        (top, bottom), (left, right) = (
            _enlarge(y0, y1, ratio, mask.shape[-2]),
            _enlarge(x0, x1, ratio, mask.shape[-1]),
        )
        context[row, :, top : bottom + 1, left : right + 1] = 1
    return context


def bounding_boxes(mask: Tensor) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right), inclusive, of every mask (R, 1, S, S). Raises SampleError `empty_mask`."""
    inside = _inside(mask)[:, 0]
    rows, columns = _any_of_row(inside), inside.any(1)
    boxes = []
    for row in range(len(mask)):
        ys, xs = rows[row].nonzero(), columns[row].nonzero()
        if len(ys) == 0:
            raise SampleError("empty_mask", f"mask {row} is empty: there is nothing in it to name")
        boxes.append((int(ys[0]), int(xs[0]), int(ys[-1]), int(xs[-1])))
    return boxes


def _enlarge(low: int, high: int, ratio: float, size: int) -> tuple[int, int]:
    reach = ratio * (high - low + 1)
    return max(0, int(low - reach)), min(size - 1, int(high + reach))


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
class Looks:
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
    def stacked(parts: Sequence[L]) -> L:
        """Several ones' rows together."""
        columns = [part._values() for part in parts]
        joined = {name: torch.cat([values[name] for values in columns]) for name in columns[0]}
        return replace(parts[0], fallbacks=sum(part.fallbacks for part in parts), **joined)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(next(iter(self._values().values())))


@dataclass
class VisibleKeys(Looks):
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
        empty = (~_any_of_row(_inside(pixels).flatten(1))).nonzero().flatten()
        if len(empty):
            raise SampleError("empty_mask", f"{what} {int(empty[0])} is empty: there is nothing in it to name")


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
        if prefix == 0:
            lost = ~grid.any(1)
            for row in lost.nonzero().flatten().tolist():
                grid[row, _centroid_cell(pixels[row, 0], patch)] = True
            fallbacks |= lost
        visible.append(torch.cat([grid.new_ones(len(grid), prefix), grid], 1))
    return VisibleKeys(visible[0], visible[1], fallbacks=int(fallbacks.sum()))


def _centroid_cell(pixels: Tensor, patch: int) -> int:
    inside = pixels.nonzero()
    y, x = (inside.float().mean(0) / patch).long().tolist()
    return y * (pixels.shape[-1] // patch) + x
