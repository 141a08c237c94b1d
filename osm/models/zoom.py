"""Zoom windows: a square window around each mask, cut out of the padded image and resized for the tower.

In the windows of the whole image, a small mask covers few cells of the tower's grid, or only part of one. In its zoom
window, it covers many. The published model has no zoom windows.

Shapes: N images, R masks, S input size, z side of a zoom window, p patch, G = (z / p)^2 grid cells, C token width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osm.models.masks import bounding_boxes
from osm.models.towers.tower import Tower

LEAST_SIDE = 32  # pixels of the padded image; smaller windows would only show blurred pixels
_MASKS_AT_ONCE = 8  # number of masks that are in memory as float32 at the same time


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


@torch.no_grad()
def zoom_tokens(
    tower: Tower, pixels_N3SS: Tensor, image_index_R: Tensor, mask_R1SS: Tensor, side: int, enlarge: float
) -> Tensor:
    """Return the mean of the tower's tokens over each mask in its zoom window, with shape (R, C).

    Each token is weighted by the share of its cell that is inside the mask.

    Args:
        pixels_N3SS: the normalized, padded images.
        image_index_R: the index of each mask's image.
        mask_R1SS: nonzero inside the mask.
        side: z, a multiple of the tower's patch.
        enlarge: see `zoom_boxes`.

    Raises:
        SampleError: a mask is empty (`empty_mask`).
    """
    from torchvision.ops import roi_align  # not needed for models without zoom windows

    dtype = next(tower.parameters()).dtype
    pixels_N3SS, boxes_R4 = pixels_N3SS.float(), zoom_boxes(mask_R1SS, enlarge)
    index_R1 = image_index_R[:, None].to(boxes_R4)
    windows_R3zz = roi_align(pixels_N3SS, torch.cat([index_R1, boxes_R4], 1), side, aligned=True)
    covers = []
    for start in range(0, len(mask_R1SS), _MASKS_AT_ONCE):
        mask_M1SS, box_M4 = (x[start : start + _MASKS_AT_ONCE] for x in (mask_R1SS, boxes_R4))
        cells, points = side // tower.patch, tower.patch
        covers.append(roi_align(mask_M1SS.float(), list(box_M4[:, None]), cells, sampling_ratio=points, aligned=True))
    cover_RG = torch.cat(covers).flatten(1)
    # A few scattered pixels can lie between the sampled points. Then the whole window counts.
    cover_RG = torch.where(cover_RG.sum(1, keepdim=True) > 0, cover_RG, torch.ones_like(cover_RG))
    weights_RG = cover_RG / cover_RG.sum(1, keepdim=True)
    # One pass for all windows: with FSDP, every rank has to run the tower equally often.
    _, patches_RGC = tower(windows_R3zz.to(dtype))
    return torch.einsum("rg,rgc->rc", weights_RG.to(dtype), patches_RGC)
