"""Zoom windows: a square window around each mask, cut out of the padded image and resized for the tower.

In the windows of the whole image, a small mask covers few cells of the tower's grid, or only part of one. In its zoom
window, it covers many. With cut-outs, a second window shows the mask without its surroundings. The published model has
no zoom windows.

Shapes: N images, R masks, M some of the masks, U windows of a mask, B = U * R windows, S input size, z side of a zoom
window, p patch, G = (z / p)^2 grid cells, C token width, A classes of the tower, D channels, b bins, P sampled points
per bin, T pixels that a bin reads along an axis, Y and X the pixels that a square reads, V values per pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from osm.models.masks import bounding_boxes, inside_bytes
from osm.models.towers.tower import Tower

LEAST_SIDE = 32  # pixels of the padded image; smaller windows would only show blurred pixels
_MASKS_AT_ONCE = 8  # on a GPU, the number of masks that are converted to float32 at a time


def zoom_boxes(mask_R1SS: Tensor, enlarge: float) -> Tensor:
    """Return the square (left, top, right, bottom) of each mask's zoom window in pixels, as a float32 tensor (R, 4).

    The side of a square is the longer side of the mask's bounding box, enlarged. A square that would extend beyond the
    padded image is moved inside.

    Args:
        mask_R1SS: nonzero inside the mask.
        enlarge: by which share of its side the square is larger than the bounding box; 0.5 adds a quarter of the side
            at each end.

    Raises:
        SampleError: a mask is empty (`empty_mask`).
    """
    size = mask_R1SS.shape[-1]
    box_R4 = bounding_boxes(mask_R1SS).float()
    low_R2, high_R2 = box_R4[:, [1, 0]], box_R4[:, [3, 2]] + 1  # (x, y), with exclusive ends
    side_R1 = (high_R2 - low_R2).amax(1, keepdim=True) * (1 + enlarge)
    side_R1 = side_R1.clamp(min=min(LEAST_SIDE, size), max=size)
    start_R2 = torch.minimum(((low_R2 + high_R2 - side_R1) / 2).clamp(min=0), size - side_R1)
    return torch.cat([start_R2, start_R2 + side_R1], 1)


class ZoomOutput(NamedTuple):
    """What the tower computes from the zoom windows.

    Attributes:
        tokens_RUC: the mean of the tokens over each mask in each of its U windows.
        class_logits_RA: the logits of the tower's own classifier for each mask, averaged over its windows; None if the
            tower has none.
    """

    tokens_RUC: Tensor
    class_logits_RA: Tensor | None


@torch.no_grad()
def zoom_tokens(
    tower: Tower,
    pixels_N3SS: Tensor,
    image_index_R: Tensor,
    mask_R1SS: Tensor,
    side: int,
    enlarge: float,
    cutout: bool = False,
) -> ZoomOutput:
    """Run the tower on the zoom window of each mask.

    In all means over a mask, each cell is weighted by its share that is inside the mask.

    Args:
        pixels_N3SS: the normalized, padded images.
        image_index_R: the index of each mask's image.
        mask_R1SS: nonzero inside the mask.
        side: z, a multiple of the tower's patch.
        enlarge: see `zoom_boxes`.
        cutout: also run the tower on a cut-out of each mask: its window, with the mean color outside the mask.

    Raises:
        SampleError: a mask is empty (`empty_mask`).
    """
    dtype = next(tower.parameters()).dtype
    boxes_R4 = zoom_boxes(mask_R1SS, enlarge)
    windows_R3zz = sampled_squares(pixels_N3SS, image_index_R, boxes_R4, side)
    # Many points per cell, because the pixels of a mask are smaller than a cell.
    own_R = torch.arange(len(mask_R1SS), device=boxes_R4.device)
    cover_RG = sampled_squares(mask_R1SS, own_R, boxes_R4, side // tower.patch, tower.patch).flatten(1)
    # A few scattered pixels can lie between the sampled points. Then the whole window counts.
    cover_RG = torch.where(cover_RG.sum(1, keepdim=True) > 0, cover_RG, torch.ones_like(cover_RG))
    weights_RG = cover_RG / cover_RG.sum(1, keepdim=True)
    windows_B3zz, weights_BG = windows_R3zz, weights_RG
    if cutout:
        inside_R1zz = sampled_squares(inside_bytes(mask_R1SS), own_R, boxes_R4, side)
        windows_B3zz = torch.cat([windows_R3zz, windows_R3zz * inside_R1zz])  # the mean color is 0
        weights_BG = weights_RG.repeat(2, 1)
    # One pass for all windows: with FSDP, every rank has to run the tower equally often.
    patches_BGC, class_logits_BA = tower.tokens_and_classes(windows_B3zz.to(dtype), weights_BG)
    tokens_BC = torch.einsum("bg,bgc->bc", weights_BG.to(dtype), patches_BGC)
    class_logits_RA = None if class_logits_BA is None else class_logits_BA.unflatten(0, (1 + cutout, -1)).mean(0)
    return ZoomOutput(tokens_BC.unflatten(0, (1 + cutout, -1)).transpose(0, 1), class_logits_RA)


def sampled_squares(x_NDSS: Tensor, index_R: Tensor, boxes_R4: Tensor, bins: int, points: int = 0) -> Tensor:
    """Resize squares of images to a grid of bins. Each bin is the mean of `points` x `points` bilinear samples.

    The result (R, D, bins, bins) equals that of `roi_align` with `aligned=True`, up to rounding. On a CPU, two weighted
    sums compute it faster: over the rows of pixels that a bin reads, and then over the columns.

    Args:
        x_NDSS: the images, with any number of channels and any dtype.
        index_R: the index of each square's image.
        boxes_R4: (left, top, right, bottom) of each square in pixels.
        bins: the number of bins along each axis.
        points: the number of samples per bin along each axis; 0 = the side of a bin in pixels, rounded up.
    """
    if not x_NDSS.is_cpu:
        return sampled_by_roi_align(x_NDSS, index_R, boxes_R4, bins, points)
    channels, size = x_NDSS.shape[1], x_NDSS.shape[-1]
    found_RDbb = torch.empty(len(boxes_R4), channels, bins, bins, dtype=torch.float32)
    if not len(boxes_R4):
        return found_RDbb
    columns, rows = (_axis_reads(boxes_R4[:, [axis, axis + 2]], bins, points, size) for axis in (0, 1))
    for r, (image, found_Dbb) in enumerate(zip(index_R.tolist(), found_RDbb, strict=True)):
        square_YDX = x_NDSS[image, :, rows.place(r), columns.place(r)].transpose(0, 1).float()
        shorter_bDX = rows.weighted_sums(r, square_YDX.flatten(1)).unflatten(1, (channels, -1))
        # Transposing a matrix is much faster than permuting a tensor of three axes.
        resized_bV = columns.weighted_sums(r, shorter_bDX.flatten(0, 1).t().contiguous())
        found_Dbb.copy_(resized_bV.t().contiguous().unflatten(0, (bins, channels)).transpose(0, 1))
    return found_RDbb


def sampled_by_roi_align(x_NDSS: Tensor, index_R: Tensor, boxes_R4: Tensor, bins: int, points: int = 0) -> Tensor:
    """Compute `sampled_squares` with the operator `roi_align`, as on a GPU."""
    from torchvision.ops import roi_align

    options: dict[str, Any] = {"output_size": bins, "sampling_ratio": points or -1, "aligned": True}
    if x_NDSS.dtype == torch.float32 or not len(boxes_R4):
        return roi_align(x_NDSS.float(), torch.cat([index_R[:, None].to(boxes_R4), boxes_R4], 1), **options)
    found = []
    for start in range(0, len(boxes_R4), _MASKS_AT_ONCE):  # only the images of some squares are converted at a time
        some = slice(start, start + _MASKS_AT_ONCE)
        found.append(roi_align(x_NDSS[index_R[some]].float(), list(boxes_R4[some, None]), **options))
    return torch.cat(found)


class _AxisReads(NamedTuple):
    """Which pixels the bins of R squares read along one axis, and with which weights.

    Attributes:
        first: the first pixel that each square reads.
        length: how many pixels each square reads.
        pixel_RbT: the T pixels that each bin reads, counted from the square's first one.
        weight_RbT: the weights of these pixels. They sum to 1.
    """

    first: list[int]
    length: list[int]
    pixel_RbT: Tensor
    weight_RbT: Tensor

    def place(self, r: int) -> slice:
        """Return the range of pixels that a square reads."""
        return slice(self.first[r], self.first[r] + self.length[r])

    def weighted_sums(self, r: int, pixels_XV: Tensor) -> Tensor:
        """Return each bin's weighted sum (b, V) of the pixels that a square reads."""
        return embedding_bag(self.pixel_RbT[r], pixels_XV, mode="sum", per_sample_weights=self.weight_RbT[r])


def _axis_reads(ends_R2: Tensor, bins: int, points: int, size: int) -> _AxisReads:
    start_R, end_R = (ends_R2.float() - 0.5).unbind(1)  # the center of the first pixel is at 0
    side_R11 = ((end_R - start_R) / bins)[:, None, None]
    points_R11 = torch.full_like(side_R11, points) if points else side_R11.ceil()
    point_P = torch.arange(int(points_R11.max()))
    # Squares with smaller bins have fewer points. Their last point is then repeated with a weight of 0, so
    # that no pixel beyond the square is read.
    inside_R1P = (torch.minimum(point_P, points_R11 - 1) + 0.5) * side_R11 / points_R11
    position_RbP = (start_R[:, None, None] + torch.arange(bins)[:, None] * side_R11 + inside_R1P).clamp(0, size - 1)
    low_RbP = position_RbP.floor()
    share_R1P = (point_P < points_R11) / points_R11
    beyond_RbP = (position_RbP - low_RbP) * share_R1P
    pixel_RbT = torch.cat([low_RbP, low_RbP + 1], 2).long().clamp(max=size - 1)
    weight_RbT = torch.cat([share_R1P - beyond_RbP, beyond_RbP], 2)
    first_R, last_R = pixel_RbT.amin((1, 2)), pixel_RbT.amax((1, 2))
    length_R = last_R + 1 - first_R
    return _AxisReads(first_R.tolist(), length_R.tolist(), pixel_RbT - first_R[:, None, None], weight_RbT)
