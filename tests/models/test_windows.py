"""Window positions, cutting and laying back."""

from __future__ import annotations

import pytest
import torch

from osm.errors import OsmError
from osm.models.windows import SlidingWindows


@pytest.mark.parametrize(
    ("size", "window", "stride", "starts"),
    [
        (1120, 224, 224, [0, 224, 448, 672, 896]),
        (448, 224, 224, [0, 224]),
        (224, 224, 224, [0]),
        (1008, 224, 224, [0, 224, 448, 672, 784]),  # does not divide: the last one is shifted back
        (448, 224, 112, [0, 112, 224]),
        (448, 224, 168, [0, 168, 224]),
        (238, 224, 14, [0, 14]),
    ],
)
def test_starts(size: int, window: int, stride: int, starts: list[int]) -> None:
    windows = SlidingWindows(size, window, stride, 14)
    assert windows.starts == starts
    assert len(starts) == max(size - window + stride - 1, 0) // stride + 1
    assert windows.count == len(starts) ** 2


def test_the_published_sizes_give_6425_tokens() -> None:
    windows = SlidingWindows(1120, 224, 224, 14)
    assert (windows.count, windows.grid**2, windows.count + windows.grid**2) == (25, 6400, 6425)


@pytest.mark.parametrize(
    ("sizes", "flag", "value"),
    [
        ((1121, 224, 224), "--input_size", 1121),
        ((1120, 225, 224), "--sliding_window_size", 225),
        ((1120, 224, 100), "--sliding_window_stride", 100),
    ],
)
def test_sizes_that_are_no_multiple_of_the_patch_name_the_flag(
    sizes: tuple[int, int, int], flag: str, value: int
) -> None:
    with pytest.raises(OsmError, match=f"{flag} {value} is not a multiple of .*14"):
        SlidingWindows(*sizes, 14)


@pytest.mark.parametrize(("size", "window", "stride"), [(8, 4, 4), (10, 4, 4), (8, 4, 2), (12, 8, 2), (4, 4, 4)])
def test_merging_what_was_split_gives_the_image_back(size: int, window: int, stride: int) -> None:
    """Patches of 2 x 2 pixels whose tokens are their pixels: every cell's average is the cell itself."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    windows = SlidingWindows(size, window, stride, 2)

    def tokens(pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.unfold(pictures, 2, stride=2).transpose(1, 2)

    torch.testing.assert_close(windows.merge(tokens(windows.split(images))), tokens(images))


def test_overlaps_are_averaged_and_windows_are_row_major() -> None:
    """Three windows of 2 cells on 4 columns: the inner columns are seen twice in each direction."""
    windows = SlidingWindows(4, 2, 1, 1)
    patches = torch.arange(9.0).view(9, 1, 1).expand(9, 4, 1)  # each window says its own number
    grid = windows.merge(patches).view(4, 4)
    columns = torch.tensor([0, 0.5, 1.5, 2])
    assert torch.equal(grid, 3 * columns[:, None] + columns[None])


def test_images_stay_apart() -> None:
    windows = SlidingWindows(4, 2, 2, 1)
    patches = torch.arange(8.0).view(8, 1, 1).expand(8, 4, 1)
    merged = windows.merge(patches)
    assert merged[0].max() == 3 and merged[1].min() == 4
