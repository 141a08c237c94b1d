"""Draws named masks on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette: told apart by colour-blind eyes too.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def draw_names(image: Image.Image, masks: np.ndarray, names: Sequence[str], alpha: float = 0.5) -> Image.Image:
    """Colours each mask and writes its name in it, larger masks first.

    Args:
        image: RGB. masks: bool (K, H, W) at its size. names: K texts.

    Returns:
        a new RGB image of the same size.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    order = sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))
    for place, k in enumerate(order):
        color = np.array(PALETTE[place % len(PALETTE)], np.float32)
        inside = masks[k].astype(bool)
        pixels[inside] = (1 - alpha) * pixels[inside] + alpha * color
        pixels[_outline(inside)] = color
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(12, min(image.size) // 28))
    taken: list[tuple[float, float, float, float]] = []
    for k in order:
        if masks[k].any():
            _write(draw, font, names[k], masks[k], image.size, taken)
    return canvas


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels that touch something else."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text: str,
    mask: np.ndarray,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The text at the mask's median pixel, moved down past earlier labels, and never out of the picture."""
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(float(np.median(xs)) - width / 2, 0), max(size[0] - width, 0))
    y = min(max(float(np.median(ys)) - height / 2, 0), max(size[1] - height, 0))
    for other in sorted(taken, key=lambda box: box[1]):
        if x < other[2] and other[0] < x + width and y < other[3] and other[1] < y + height:
            y = min(other[3] + 1, max(size[1] - height, 0))
    taken.append((x, y, x + width, y + height))
    draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=(20, 20, 20))
    draw.text((x + 4 - left, y + 3 - top), text, font=font, fill=(255, 255, 255))
