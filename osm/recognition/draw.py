"""Draws named masks on a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette: told apart by colour-blind eyes too.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_DARK, _LIGHT = (20, 20, 20), (235, 235, 235)


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


def draw_numbered(image: Image.Image, masks: np.ndarray, right: Sequence[bool | None]) -> Image.Image:
    """Outlines each mask and writes its number in it, from 1, with a tick or a cross; larger masks first.

    Right and wrong are told without colour too: a wrong mask is hatched and its outline dashed.

    Args:
        image: RGB. masks: bool (K, H, W) at its size. right: K marks, None for a mask that was not named (outline and
            number alone).

    Returns:
        a new RGB image of the same size.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    order = sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))
    for place, k in enumerate(order):
        color = np.array(PALETTE[place % len(PALETTE)], np.float32)
        _colour(pixels, masks[k].astype(bool), color, right[k])
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(12, min(image.size) // 32))
    taken: list[tuple[float, float, float, float]] = []
    for k in order:
        if masks[k].any():
            _write_number(draw, font, k + 1, right[k], masks[k], image.size, taken)
    return canvas


def _colour(pixels: np.ndarray, mask: np.ndarray, color: np.ndarray, right: bool | None) -> None:
    """Outlines one mask in the pixels (H, W, 3); what it shows keeps its colours, which a name may be about."""
    diagonal = np.add(*np.indices(mask.shape))
    if right is False:
        pixels[mask & (diagonal % 14 < 2)] = _DARK
        pixels[mask & (diagonal % 14 == 2)] = _LIGHT  # seen on black too
    ring = _outline(mask)
    ring |= _outline(mask & ~ring)  # two pixels
    pixels[ring] = color
    if right is False:
        pixels[ring & (diagonal % 14 < 7)] = _DARK


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
    x, y = _place(float(np.median(xs)), float(np.median(ys)), width, height, size, taken)
    draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=_DARK)
    draw.text((x + 4 - left, y + 3 - top), text, font=font, fill=(255, 255, 255))


def _write_number(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    number: int,
    is_right: bool | None,
    mask: np.ndarray,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The number at the mask's pixel next to its median, so that it lies in the mask, and a tick or a cross beside."""
    ys, xs = np.nonzero(mask)
    nearest = int(np.argmin((xs - np.median(xs)) ** 2 + (ys - np.median(ys)) ** 2))
    left, top, right, bottom = draw.textbbox((0, 0), str(number), font=font)
    digits, height = right - left, bottom - top + 6
    side = bottom - top
    width = digits + 8 + (side + 4 if is_right is not None else 0)
    x, y = _place(float(xs[nearest]), float(ys[nearest]), width, height, size, taken)
    draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=_DARK)
    draw.text((x + 4 - left, y + 3 - top), str(number), font=font, fill=(255, 255, 255))
    # Drawn, as Pillow's own font has neither sign.
    a, b = x + 8 + digits, y + 3
    if is_right:
        draw.line([(a, b + side * 0.55), (a + side * 0.35, b + side), (a + side, b)], (150, 255, 170), 2)
    elif is_right is not None:
        draw.line([(a, b), (a + side, b + side)], (255, 170, 150), 2)
        draw.line([(a, b + side), (a + side, b)], (255, 170, 150), 2)


def _place(
    middle_x: float,
    middle_y: float,
    width: float,
    height: float,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Left and top of a box about a point, moved down past the boxes taken, and never out of the picture."""
    x = min(max(middle_x - width / 2, 0), max(size[0] - width, 0))
    y = min(max(middle_y - height / 2, 0), max(size[1] - height, 0))
    for other in sorted(taken, key=lambda box: box[1]):
        if x < other[2] and other[0] < x + width and y < other[3] and other[1] < y + height:
            y = min(other[3] + 1, max(size[1] - height, 0))
    taken.append((x, y, x + width, y + height))
    return x, y
