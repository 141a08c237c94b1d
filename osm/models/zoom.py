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
_WINDOWS_AT_ONCE = 8  # limits memory; on a CPU, larger batches are not faster


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
    """Return the mean of the tower's tokens over each mask in its zoom window, in the dtype of the tower (R, C).

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
    boxes_R4 = zoom_boxes(mask_R1SS, enlarge)
    means = []
    for start in range(0, len(mask_R1SS), _WINDOWS_AT_ONCE):
        part = slice(start, start + _WINDOWS_AT_ONCE)
        box_M4, mask_M1SS = boxes_R4[part], mask_R1SS[part].float()
        index_M1 = image_index_R[part, None].to(box_M4)
        windows_M3zz = roi_align(pixels_N3SS.float(), torch.cat([index_M1, box_M4], 1), side, aligned=True)
        own_M1 = torch.arange(len(box_M4), device=box_M4.device)[:, None].to(box_M4)
        cover_M1gg = roi_align(
            mask_M1SS, torch.cat([own_M1, box_M4], 1), side // tower.patch, sampling_ratio=tower.patch, aligned=True
        )
        cover_MG = cover_M1gg.flatten(1)
        # A few scattered pixels can lie between the sampled points. Then the whole window counts.
        cover_MG = torch.where(cover_MG.sum(1, keepdim=True) > 0, cover_MG, torch.ones_like(cover_MG))
        weights_MG = (cover_MG / cover_MG.sum(1, keepdim=True)).to(dtype)
        _, patches_MGC = tower(windows_M3zz.to(dtype))
        means.append(torch.einsum("mg,mgc->mc", weights_MG, patches_MGC))
    return torch.cat(means)
