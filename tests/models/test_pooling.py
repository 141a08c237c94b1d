"""Area-weighted pooling beside a reference that goes pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osm.errors import SampleError
from osm.models.bridges.pooling import SINGLES, RegionFeatures, pool, region_features
from osm.models.masks import MaskFeatures, bounding_boxes, context_mask

S, P, K, C = 60, 12, 3, 5
G = S // P


def some_masks() -> Tensor:
    """A blob, one pixel, a thin line, everything, and a box whose edges lie within cells."""
    masks = torch.zeros(5, 1, S, S, dtype=torch.bool)
    ys, xs = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    masks[0, 0] = ((ys - 25) ** 2 + (xs - 33) ** 2 < 230) & (xs % 5 > 0)
    masks[1, 0, 41, 17] = True
    masks[2, 0, 3:58, 29] = True
    masks[3] = True
    masks[4, 0, 7:20, 31:52] = True
    return masks


def pooled_pixels(image_SSC: Tensor, inside: Tensor, box: tuple[float, float, float, float]) -> tuple[Tensor, float]:
    """The mean of the pixels' tokens in a box, and how many of `inside` there are; its edges cut pixels."""
    top, left, bottom, right = box
    total, area = torch.zeros(C), 0.0
    for y in range(S):
        for x in range(S):
            height = max(0.0, min(y + 1, bottom) - max(y, top))
            width = max(0.0, min(x + 1, right) - max(x, left))
            weight = height * width * float(inside[y, x])
            total += weight * image_SSC[y, x]
            area += weight
    return total / max(area, 1e-12), area


def split(box: tuple[int, int, int, int]) -> list[tuple[float, float, float, float]]:
    top, left, bottom, right = box[0], box[1], box[2] + 1, box[3] + 1
    rows, columns = ([low + (high - low) * i / K for i in range(K + 1)] for low, high in ((top, bottom), (left, right)))
    return [(rows[i], columns[j], rows[i + 1], columns[j + 1]) for i in range(K) for j in range(K)]


def test_the_mask_and_the_context_equal_the_mean_over_their_pixels() -> None:
    """A cell's token stands for each of its pixels. The parts of a mask are exact where the mask is a box."""
    torch.manual_seed(0)
    masks, tokens = some_masks(), torch.randn(1, 2 + G * G, C)
    contexts = context_mask(masks, 0.5)
    features = region_features(masks, contexts, P)
    found = pool(tokens, tokens.mean(1), torch.zeros(len(masks), dtype=torch.long), features, K)
    image = tokens[0, 2:].reshape(G, G, C).repeat_interleave(P, 0).repeat_interleave(P, 1)
    boxes, around = bounding_boxes(masks).tolist(), bounding_boxes(contexts).tolist()
    everywhere = torch.ones(S, S)
    for row, mask in enumerate(masks[:, 0]):
        expected = pooled_pixels(image, mask, (0, 0, S, S))[0]
        torch.testing.assert_close(found.tokens_RTC[row, 0], expected, atol=1e-5, rtol=1e-5)
        top, left, bottom, right = around[row]
        expected = pooled_pixels(image, everywhere, (top, left, bottom + 1, right + 1))[0]
        torch.testing.assert_close(found.tokens_RTC[row, 1], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.tokens_RTC[row, 2], tokens[0, :2].mean(0))
        for part, box in enumerate(split(around[row])):
            place = SINGLES + K * K + part
            expected, area = pooled_pixels(image, everywhere, box)
            torch.testing.assert_close(found.tokens_RTC[row, place], expected, atol=1e-5, rtol=1e-5)
            shares = torch.tensor([*(edge / S for edge in box)])
            torch.testing.assert_close(found.geometry_RT6[row, place, :4], shares, atol=1e-6, rtol=1e-5)
            assert float(found.geometry_RT6[row, place, 5]) == pytest.approx(area**0.5 / S, abs=1e-5)
        if row in (1, 2, 3, 4):
            for part, box in enumerate(split(boxes[row])):
                expected, _ = pooled_pixels(image, mask, box)
                torch.testing.assert_close(found.tokens_RTC[row, SINGLES + part], expected, atol=1e-5, rtol=1e-5)
                assert found.present_RT[row, SINGLES + part]
                assert float(found.geometry_RT6[row, SINGLES + part, 4]) == pytest.approx(1, abs=1e-4)
    assert found.present_RT[:, :SINGLES].all()


def test_parts_without_mask_are_absent_and_zero() -> None:
    mask = torch.zeros(1, 1, S, S, dtype=torch.bool)
    mask[0, 0, :12, :12] = mask[0, 0, 48:, 48:] = True  # two far corners
    features = region_features(mask, torch.ones_like(mask), P)
    found = pool(torch.ones(1, G * G, C), torch.ones(1, C), torch.zeros(1, dtype=torch.long), features, G)
    present = found.present_RT[0, SINGLES : SINGLES + G * G].reshape(G, G)
    assert present.nonzero().tolist() == [[0, 0], [G - 1, G - 1]]
    assert not found.tokens_RTC[0, SINGLES : SINGLES + G * G][~present.flatten()].any()
    assert found.present_RT[0, SINGLES + G * G :].all()


def test_a_small_mask_keeps_its_signal() -> None:
    """One pixel of a cell: the whole of the cell's token, not a 144th of it."""
    mask = torch.zeros(1, 1, S, S, dtype=torch.bool)
    mask[0, 0, 30, 30] = True
    tokens = torch.zeros(1, G * G, C)
    tokens[0, 2 * G + 2] = 1
    found = pool(tokens, tokens.mean(1), torch.zeros(1, dtype=torch.long), region_features(mask, mask, P), K)
    torch.testing.assert_close(found.tokens_RTC[0, [0, SINGLES, SINGLES + 8]], torch.ones(3, C))


def test_rows_of_several_images_in_any_order_are_each_alone() -> None:
    torch.manual_seed(0)
    masks, tokens = some_masks(), torch.randn(3, 1 + G * G, C, requires_grad=True)
    features, index = region_features(masks, context_mask(masks, 0.5), P), torch.tensor([2, 0, 2, 0, 2])
    found = pool(tokens, tokens.mean(1), index, features, K)
    assert [len(one) for one in features.rows()] == [1] * 5
    for row, one in enumerate(features.rows()):
        alone = pool(
            tokens[index[row]][None], tokens[index[row]].mean(0)[None], torch.zeros(1, dtype=torch.long), one, K
        )
        torch.testing.assert_close(found.tokens_RTC[row], alone.tokens_RTC[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(found.geometry_RT6[row], alone.geometry_RT6[0])
    stacked: RegionFeatures = MaskFeatures.stack(features.rows())
    assert torch.equal(stacked.coverage_RG, features.coverage_RG) and torch.equal(stacked.box_R4, features.box_R4)
    (gradient,) = torch.autograd.grad(found.tokens_RTC.square().sum(), tokens)
    assert gradient[0].any() and gradient[2].any() and not gradient[1].any()


def test_several_images_under_autocast_give_what_one_gives() -> None:
    """Its products have another dtype than their operands."""
    torch.manual_seed(0)
    masks, tokens = some_masks(), torch.randn(2, 1 + G * G, C)
    features, index = region_features(masks, context_mask(masks, 0.5), P), torch.tensor([1, 0, 1, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(tokens, tokens.mean(1), index, features, K).tokens_RTC
        for row, one in enumerate(features.rows()):
            alone = pool(
                tokens[index[row]][None], tokens[index[row]].mean(0)[None], torch.zeros(1, dtype=torch.long), one, K
            ).tokens_RTC[0]
            torch.testing.assert_close(found[row], alone, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("which", "named"), [(0, "mask 1"), (1, "context mask 1")])
def test_an_empty_mask_is_refused_by_its_place(which: int, named: str) -> None:
    pair = [torch.ones(2, 1, S, S), torch.ones(2, 1, S, S)]
    pair[which][1] = 0
    with pytest.raises(SampleError, match=f"^{named} is empty"):
        region_features(*pair, P)


@pytest.mark.parametrize(("size", "patch"), [(96, 16), (56, 14), (98, 14), (60, 12), (512, 256), (1024, 512)])
@pytest.mark.parametrize("true", [1, 255])
def test_the_coverage_is_the_share_of_each_cell(size: int, patch: int, true: int) -> None:
    """Eight bytes at a time or alone, full cells, and the true values of Pillow."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 1, size, size, generator=generator) < 0.4
    masks[1] = True
    pixels = (masks.to(torch.uint8) * true).view(torch.bool)
    found = region_features(pixels, torch.ones_like(masks), patch).coverage_RG
    cells = masks.float().unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    torch.testing.assert_close(found, cells.mean((-1, -3)).flatten(1), atol=1e-6, rtol=0)
    apart = pixels.transpose(-1, -2)  # not contiguous
    found = region_features(apart, torch.ones_like(masks), patch).coverage_RG
    torch.testing.assert_close(found, cells.mean((-1, -3)).transpose(-1, -2).flatten(1), atol=1e-6, rtol=0)
