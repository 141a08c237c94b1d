"""Context masks, the grid, and what a query sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_instructblip
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from osm.errors import OsmError, SampleError
from osm.models.bridges.pooling import region_features
from osm.models.bridges.row_groups import RowGroups
from osm.models.masks import bounding_boxes, context_mask, mask_to_grid, visible_keys
from osm.models.osm import OmniScientModel


def box(size: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    """A mask (1, 1, S, S), filled from top/left to bottom/right inclusive."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., top : bottom + 1, left : right + 1] = 1
    return mask


@pytest.mark.parametrize(
    ("given", "ratio", "expected"),
    [
        ((40, 30, 49, 49), 0.5, (35, 20, 54, 59)),
        ((40, 30, 49, 49), 0.0, (40, 30, 49, 49)),
        ((40, 30, 44, 32), 0.5, (37, 28, 46, 33)),  # 40 - 2.5 and 44 + 2.5, cut towards zero
        ((2, 30, 11, 99), 0.5, (0, 0, 16, 99)),  # clamped to the canvas
        ((7, 7, 7, 7), 3.0, (4, 4, 10, 10)),
    ],
)
def test_context_mask_is_the_enlarged_box(
    given: tuple[int, int, int, int], ratio: float, expected: tuple[int, int, int, int]
) -> None:
    assert torch.equal(context_mask(box(100, *given), ratio), box(100, *expected))


def test_context_mask_spans_all_parts_of_a_mask_and_keeps_its_dtype() -> None:
    mask = (box(20, 2, 3, 2, 3) + box(20, 9, 12, 9, 12)).bool()
    found = context_mask(mask, 0.0)
    assert found.dtype == torch.bool and torch.equal(found, box(20, 2, 3, 9, 12).bool())
    assert bounding_boxes(mask).tolist() == [[2, 3, 9, 12]]


def test_a_negative_ratio_is_the_whole_canvas() -> None:
    assert context_mask(box(30, 1, 1, 2, 2), -1).all()


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(SampleError, match="mask 1 is empty") as error:
        context_mask(torch.cat([box(30, 1, 1, 2, 2), torch.zeros(1, 1, 30, 30)]), 0.5)
    assert error.value.reason == "empty_mask"


@pytest.mark.parametrize("patch", [2, 7, 14])
def test_nearest_is_torchs_interpolation(patch: int) -> None:
    mask = (torch.rand(4, 1, 84, 84, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    expected = F.interpolate(mask, size=(84 // patch, 84 // patch), mode="nearest").flatten(1).bool()
    assert torch.equal(mask_to_grid(mask, patch, "nearest"), expected)


def test_area_counts_a_cell_with_any_coverage() -> None:
    mask = box(12, 3, 3, 4, 4)  # touches four cells of 4 x 4, the top-left pixel of the last one alone
    nearest, area = (mask_to_grid(mask, 4, how).view(3, 3).int().tolist() for how in ("nearest", "area"))
    assert nearest == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert area == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert torch.equal(mask_to_grid(mask.bool(), 4, "area"), mask_to_grid(mask, 4, "area"))


def test_class_tokens_are_always_visible_and_need_no_fallback() -> None:
    mask = box(12, 5, 9, 6, 10)
    keys = visible_keys(mask, box(12, 0, 0, 5, 5), patch=4, prefix=2, method="nearest")
    assert keys.mask_RL.tolist() == [[True] * 2 + [False] * 9]
    assert keys.context_RL.view(-1)[2:].nonzero().flatten().tolist() == [0, 1, 3, 4]
    assert keys.fallbacks == 0 and len(keys) == 1


def test_without_class_tokens_a_lost_mask_sees_its_centroid() -> None:
    """Of three masks the second vanishes with `nearest`; it is counted once although its context vanishes too."""
    masks = torch.cat([box(12, 0, 0, 5, 5), box(12, 5, 9, 6, 10), box(12, 8, 0, 11, 3)])
    keys = visible_keys(masks, masks, patch=4, prefix=0, method="nearest")
    assert [row.nonzero().flatten().tolist() for row in keys.mask_RL] == [[0, 1, 3, 4], [5], [6]]
    assert torch.equal(keys.mask_RL, keys.context_RL)
    assert keys.fallbacks == 1
    assert visible_keys(masks, masks, patch=4, prefix=0, method="area").fallbacks == 0


def slow_context(mask: Tensor, ratio: float) -> Tensor:
    """Mask by mask, as the published code does it."""
    context, size = torch.zeros_like(mask), mask.shape[-1]
    for row in range(len(mask)):
        ys, xs = mask[row, 0].nonzero().unbind(1)
        ends = []
        for low, high in ((int(ys.min()), int(ys.max())), (int(xs.min()), int(xs.max()))):
            reach = ratio * (high - low + 1)
            ends.append((max(0, int(low - reach)), min(size - 1, int(high + reach))))
        (top, bottom), (left, right) = ends
        context[row, :, top : bottom + 1, left : right + 1] = 1
    return context


def some_masks(count: int, size: int = 48) -> Tensor:
    """Rectangles and specks of many sizes, some smaller than a cell."""
    generator = torch.Generator().manual_seed(count)
    masks = torch.zeros(count, 1, size, size)
    for mask in masks:
        top, left, height, width = (int(torch.randint(0, high, (), generator=generator)) for high in (40, 40, 20, 20))
        mask[0, top : top + height + 1, left : left + width + 1] = 1
        mask[0, int(torch.randint(0, size, (), generator=generator)), -1] = float(height > 15)
    return masks


def test_all_masks_at_once_are_each_mask_by_itself() -> None:
    masks = some_masks(60)
    for ratio in (0.0, 0.5, 0.37):
        assert torch.equal(context_mask(masks, ratio), slow_context(masks, ratio))
    together = visible_keys(masks, masks, patch=8, prefix=0, method="nearest")
    one_by_one = [visible_keys(mask[None], mask[None], patch=8, prefix=0, method="nearest") for mask in masks]
    assert torch.equal(together.mask_RL, torch.cat([keys.mask_RL for keys in one_by_one]))
    assert together.fallbacks == sum(keys.fallbacks for keys in one_by_one) > 3
    for mask, row in zip(masks, together.mask_RL, strict=True):
        if not mask_to_grid(mask[None], 8, "nearest").any():
            y, x = (mask[0].nonzero().float().mean(0) / 8).long().tolist()
            assert row.nonzero().flatten().tolist() == [y * 6 + x]


class CountsWaits(TorchDispatchMode):
    """Counts the operations for which the host waits for a GPU."""

    waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.waits += name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["nearest", "area"])
def test_the_host_does_not_wait_for_each_mask(method: str) -> None:
    waits = []
    for count in (2, 40):
        masks = some_masks(count)
        with CountsWaits() as counted:
            visible_keys(masks, context_mask(masks, 0.5), patch=8, prefix=0, method=method)
            region_features(masks, masks, patch=8)
        waits.append(counted.waits)
    assert waits[0] == waits[1] <= 12


def test_an_empty_mask_has_no_centroid() -> None:
    with pytest.raises(SampleError, match="empty"):
        visible_keys(torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 12, 12), patch=4, prefix=0, method="area")


def test_masks_of_another_size_are_refused_by_name() -> None:
    model = OmniScientModel.from_instructblip(tiny_instructblip(), 56, 28, 28)
    good, bad = torch.ones(2, 1, 56, 56), torch.ones(2, 1, 28, 28)
    with pytest.raises(OsmError, match=r"segmentation_mask has shape \(2, 1, 28, 28\); expected \(R, 1, 56, 56\)"):
        model.mask_features(bad, good)
    with pytest.raises(OsmError, match="input_context_mask has shape"):
        model.mask_features(good, bad)
    with pytest.raises(OsmError, match=r"pixel_values has shape .*; expected \(N, 3, 56, 56\)"):
        model.encode_image(torch.ones(2, 3, 28, 28))


@pytest.mark.parametrize("index", [[0, 1, 2], [0, 0, 1, 1], [2, 0, 2, 2], [1], []])
def test_packing_rows_by_image_and_back(index: list[int]) -> None:
    groups = RowGroups(torch.tensor(index, dtype=torch.long), 3)
    rows = torch.arange(len(index) * 4.0).view(len(index), 2, 2) + 1
    packed = groups.pack(rows)
    assert torch.equal(groups.unpack(packed), rows)
    for image in range(3):
        own = rows[[i for i, of in enumerate(index) if of == image]].flatten()
        assert packed[image][packed[image] > 0].tolist() == own.tolist()


@pytest.mark.parametrize("index", [[0, 3], [-1, 0]])
def test_rows_of_images_that_are_not_there_are_refused(index: list[int]) -> None:
    with pytest.raises(OsmError, match="image_index contains (3|-1), which is out of range for 3 images"):
        RowGroups(torch.tensor(index), 3)
