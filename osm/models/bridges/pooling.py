"""Area-weighted pooling of tower tokens over a mask and its context box, and over the cells of a k x k grid in each.

Each cell of the tower's grid is weighted by the share of its area that the mask or box covers. Thanks to this area
weighting, a mask that is far smaller than a cell keeps its full signal, and boxes are not rounded to whole cells.

Shapes: N images, L = P + G image tokens, P class tokens, C token width, R masks, M masks of one image, S input size, g
= S / p cells per side, G = g^2, k RoI cells per side, K = k^2, E edges, I = E - 1 intervals, T = 3 + 2 k^2 pooled
tokens: [mask, context, image | k x k in the mask | k x k in the context box]. The pooled token of the whole image is
missing until `_with_image` inserts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from torch import Tensor

from osm.models.masks import MaskFeatures, bounding_boxes, inside_bytes

SINGLES = 3  # mask, context, image
GEOMETRY = 6  # values that describe the position and size of a pooled token
_LEAST = 1e-9  # smaller areas (in cells) count as zero; the RoI cells of a one-pixel box are far larger


@dataclass
class RegionFeatures(MaskFeatures):
    """The grid coverage and bounding boxes of R masks.

    Attributes:
        coverage_RG: the share of each cell's area that is inside the mask, 0 to 1.
        box_R4: (top, left, bottom, right) of the mask's bounding box, in cells, with exclusive ends.
        context_R4: (top, left, bottom, right) of the context box, in cells, with exclusive ends.
        zoom_RUC: the mean token of each mask in each of its U zoom windows (`osm.models.zoom`); None without them.
        class_logits_RA: the logits of the tower's A classes, averaged over the zoom windows; None if it has none.
    """

    coverage_RG: Tensor
    box_R4: Tensor
    context_R4: Tensor
    zoom_RUC: Tensor | None = field(default=None, kw_only=True)
    class_logits_RA: Tensor | None = field(default=None, kw_only=True)


def region_features(mask_R1SS: Tensor, context_R1SS: Tensor, patch: int) -> RegionFeatures:
    """Compute features from masks and context masks. Only the bounding box of a context mask is used.

    Args:
        patch: p, the side of a cell in pixels.

    Raises:
        SampleError: a mask or a context mask has no pixel (`empty_mask`).
    """
    coverage_RG = _cell_sums(inside_bytes(mask_R1SS), patch).flatten(1).float() / patch**2
    box_R4 = _cells(bounding_boxes(mask_R1SS), patch)
    around_R4 = _cells(bounding_boxes(context_R1SS, "context mask"), patch)
    return RegionFeatures(coverage_RG, box_R4, around_R4)


def _cell_sums(ones_R1SS: Tensor, patch: int) -> Tensor:
    """Return the sums (R, 1, g, g) over the grid cells of contiguous bytes that are 0 or 1, as int32."""
    if patch < 256 and ones_R1SS.shape[-1] % 8 == 0:
        # Eight bytes are added as one integer. No byte overflows, since a cell has fewer than 256 rows.
        sums_R1gS = ones_R1SS.view(torch.int64).unflatten(-2, (-1, patch)).sum(-2).view(torch.uint8)
    else:
        sums_R1gS = ones_R1SS.unflatten(-2, (-1, patch)).sum(-2, dtype=torch.int32)
    return sums_R1gS.unflatten(-1, (-1, patch)).sum(-1, dtype=torch.int32)


def _cells(box_R4: Tensor, patch: int) -> Tensor:
    ends_R4 = box_R4.float()
    ends_R4[:, 2:] += 1  # box_R4 is in pixels, with inclusive ends
    return ends_R4 / patch


def parts(box_R4: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Divide each box into a k x k grid, and return the row and column edges, each of shape (R, k + 1).

    The edges are measured in cells of the tower's grid.
    """
    step_E = torch.linspace(0, 1, k + 1, device=box_R4.device)
    top_R1, left_R1, bottom_R1, right_R1 = (side[:, None] for side in box_R4.unbind(1))
    return top_R1 + (bottom_R1 - top_R1) * step_E, left_R1 + (right_R1 - left_R1) * step_E


def overlaps(edges_RE: Tensor, cells: int) -> Tensor:
    """Return the length (R, E - 1, cells) by which each interval [edge i, edge i + 1] overlaps each cell [c, c + 1]."""
    low_g = torch.arange(cells, device=edges_RE.device, dtype=edges_RE.dtype)
    start_RI1, end_RI1 = edges_RE[:, :-1, None], edges_RE[:, 1:, None]
    return (torch.minimum(end_RI1, low_g + 1) - torch.maximum(start_RI1, low_g)).clamp(min=0)


@dataclass
class Pooled:
    """The pooled tokens of R masks.

    Attributes:
        tokens_RTC: the mean tokens; zeros where `present_RT` is false.
        geometry_RT6: the geometry of each token's region. The first four values are (top, left, bottom, right) as
            shares of the input size. The last two values are the share of the region that is inside the mask, and the
            square root of the region's area.
        present_RT: false for cells of the RoI grids that do not overlap the mask.
    """

    tokens_RTC: Tensor
    geometry_RT6: Tensor
    present_RT: Tensor


def pool(tokens_NLC: Tensor, mean_NC: Tensor, image_index_R: Tensor, features: RegionFeatures, k: int) -> Pooled:
    """Pool the image's tokens for each mask.

    Args:
        tokens_NLC: the images' tokens. The last G of the L tokens are the grid tokens; class tokens come first.
        mean_NC: the mean of each image's tokens, which is computed once per image.
        image_index_R: the index of each mask's image.
        features: the coverage and the boxes of the masks.
        k: the number of cells per side of the RoI grids.
    """
    cells = features.coverage_RG.shape[1]
    coverage_R1gg = rearrange(features.coverage_RG, "r (y x) -> r 1 y x", y=round(cells**0.5))
    g = coverage_R1gg.shape[-1]
    in_box_RKgg, in_context_RKgg = (_areas(box_R4, k, g) for box_R4 in (features.box_R4, features.context_R4))
    # The RoI cells share the full coverage of a grid cell, even if most of that grid cell is outside the mask's box.
    in_mask_RKgg = coverage_R1gg * in_box_RKgg / in_box_RKgg.sum(1, keepdim=True).clamp(min=_LEAST)
    weights_RTgg = torch.cat([coverage_R1gg, in_context_RKgg.sum(1, keepdim=True), in_mask_RKgg, in_context_RKgg], 1)
    area_RT = weights_RTgg.sum((2, 3))
    mean_RTG = (weights_RTgg / area_RT.clamp(min=_LEAST)[..., None, None]).flatten(2)
    pooled_RTC = _of_images(mean_RTG, tokens_NLC[:, -cells:], image_index_R)
    whole_R3 = coverage_R1gg.sum((2, 3)).expand(-1, SINGLES)
    inside_RT = torch.cat([whole_R3, area_RT[:, 2 : 2 + k * k], (coverage_R1gg * in_context_RKgg).sum((2, 3))], 1)
    return Pooled(
        _with_image(pooled_RTC, _of_whole_images(tokens_NLC, mean_NC, cells)[image_index_R]),
        _geometry(features, inside_RT, k, g),
        _with_image(area_RT > _LEAST, area_RT.new_ones(len(area_RT), dtype=torch.bool)),
    )


def pool_regions(tokens_NLC: Tensor, mean_NC: Tensor, image_index_R: Tensor, features: RegionFeatures) -> Tensor:
    """Pool the image's tokens over each mask, over its context box and over the whole image, without RoI grids.

    The arguments are the same as in `pool`. The result (R, 3, C) equals the first three tokens of `pool`.
    """
    cells = features.coverage_RG.shape[1]
    context_RG = _areas(features.context_R4, 1, round(cells**0.5)).flatten(1)
    weights_RTG = torch.stack([features.coverage_RG, context_RG], 1)
    mean_RTG = weights_RTG / weights_RTG.sum(2, keepdim=True).clamp(min=_LEAST)
    pooled_RTC = _of_images(mean_RTG, tokens_NLC[:, -cells:], image_index_R)
    return _with_image(pooled_RTC, _of_whole_images(tokens_NLC, mean_NC, cells)[image_index_R])


def _of_whole_images(tokens_NLC: Tensor, mean_NC: Tensor, cells: int) -> Tensor:
    """Return the mean class token of each image (N, C), or the mean grid token if there are no class tokens."""
    prefix_NPC = tokens_NLC[:, :-cells]
    return prefix_NPC.mean(1) if prefix_NPC.shape[1] else mean_NC


def _with_image(pooled_RT: Tensor, image_R: Tensor) -> Tensor:
    """Insert the whole image's value at position 2, after the values of the mask (0) and its context box (1)."""
    return torch.cat([pooled_RT[:, :2], image_R[:, None], pooled_RT[:, 2:]], 1)


def _areas(box_R4: Tensor, k: int, g: int) -> Tensor:
    """Return the area (R, k^2, g, g) by which each RoI cell of a box overlaps each cell of the tower's grid."""
    y_RE, x_RE = parts(box_R4, k)
    areas_Rkkgg = torch.einsum("riy,rjx->rijyx", overlaps(y_RE, g), overlaps(x_RE, g))
    return rearrange(areas_Rkkgg, "r i j y x -> r (i j) y x")


def _of_images(mean_RTG: Tensor, grid_NGC: Tensor, image_index_R: Tensor) -> Tensor:
    """Return a weighted mean of the image tokens for each mask, without making per-mask copies of the tokens."""
    mean_RTG = mean_RTG.to(grid_NGC.dtype)
    if len(grid_NGC) == 1:
        return mean_RTG @ grid_NGC[0]
    order, means = [], []
    for image in image_index_R.unique().tolist():
        index_M = (image_index_R == image).nonzero().flatten().to(mean_RTG.device)
        order.append(index_M)
        means.append(
            mean_RTG[index_M] @ grid_NGC[image]
        )  # under autocast, the dtype of the product differs from the dtype of the operands
    return torch.cat(means)[torch.cat(order).argsort()]


def _geometry(features: RegionFeatures, inside_RT: Tensor, k: int, g: int) -> Tensor:
    """Return `Pooled.geometry_RT6`. `inside_RT` is the mask's area in each token's region (1 = a grid cell)."""
    whole_R4 = torch.tensor([[0.0, 0.0, g, g]], device=features.box_R4.device).expand_as(features.box_R4)
    boxes = [features.box_R4[:, None], features.context_R4[:, None], whole_R4[:, None]]
    for box in (features.box_R4, features.context_R4):
        ys, xs = parts(box, k)
        top, bottom = (repeat(edges, "r i -> r (i j)", j=k) for edges in (ys[:, :-1], ys[:, 1:]))
        left, right = (repeat(edges, "r j -> r (i j)", i=k) for edges in (xs[:, :-1], xs[:, 1:]))
        boxes.append(torch.stack([top, left, bottom, right], 2))
    box_RT4 = torch.cat(boxes, 1)
    area_RT = (box_RT4[..., 2] - box_RT4[..., 0]) * (box_RT4[..., 3] - box_RT4[..., 1])
    share_RT = (inside_RT / area_RT.clamp(min=_LEAST)).clamp(max=1)
    return torch.cat([box_RT4 / g, share_RT[..., None], (area_RT.sqrt() / g)[..., None]], 2)
