"""Draws masks and their names on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from osm.io.images import to_rgb

# The Okabe-Ito palette, whose colors can be distinguished by color-blind people.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_DARK, _LIGHT = (20, 20, 20), (235, 235, 235)


def draw_names(image: Image.Image, masks: np.ndarray, names: Sequence[str], alpha: float = 0.5) -> Image.Image:
    """Color each mask and write its name on it, starting with the largest mask.

    Args:
        image: an RGB image.
        masks: bool (K, H, W), with the image's height and width.
        names: the K names.
        alpha: the opacity of the colors, 0 to 1.

    Returns:
        a new RGB image of the same size.
    """
    pixels = np.asarray(to_rgb(image)).astype(np.float32)
    colors = _colors_by_area(masks)
    for k, color in colors.items():
        inside = masks[k].astype(bool)
        pixels[inside] = (1 - alpha) * pixels[inside] + alpha * color
        pixels[_outline(inside)] = color
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(12, min(image.size) // 28))
    taken: list[tuple[float, float, float, float]] = []
    for k in colors:
        if masks[k].any():
            _write(draw, font, names[k], np.nonzero(masks[k])[::-1], image.size, taken)
    return canvas


def _colors_by_area(masks: np.ndarray) -> dict[int, np.ndarray]:
    """Return an RGB color for each mask index. The largest mask comes first, so that smaller masks are drawn on top."""
    order = sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))
    return {k: np.array(PALETTE[i % len(PALETTE)], np.float32) for i, k in enumerate(order)}


def draw_ids(image: Image.Image, ids: np.ndarray, names: Sequence[str], alpha: float = 0.7) -> Image.Image:
    """Color the segments of a label map and write each segment's name at the median position of its pixels.

    Adjacent segments get different colors where possible. Adjacent segments are separated by a border line that is
    visible on both light and dark areas.

    Args:
        image: an RGB image.
        ids: int (H, W), with the image's height and width. 0 = no segment, k = the segment named names[k - 1].
        names: the name of each segment.
        alpha: the opacity of the colors, 0 to 1.

    Returns:
        a new RGB image of the same size.
    """
    pixels = np.asarray(to_rgb(image)).astype(np.float32)
    places = _places_of(ids, len(names))
    order = sorted((k for k, place in enumerate(places) if len(place)), key=lambda k: -len(places[k]))
    colours = np.zeros((len(names) + 1, 3), np.float32)
    colours[1:] = np.array(PALETTE, np.float32)[_unlike_their_neighbours(ids, len(names), order)]
    inside = ids > 0
    pixels[inside] = (1 - alpha) * pixels[inside] + alpha * colours[ids[inside]]
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    pixels[np.roll(border, (1, 1), (0, 1)) & inside] = _LIGHT
    pixels[border] = _DARK
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_font_size(image.size, len(order)))
    taken: list[tuple[float, float, float, float]] = []
    for k in order:
        ys, xs = np.divmod(places[k], ids.shape[1])
        frame = tuple(
            colours[k + 1].astype(int).tolist()
        )  # the color shows which segment a label belongs to, because labels may be moved
        _write(draw, font, names[k], (xs, ys), image.size, taken, frame)
    return canvas


def _places_of(ids: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the flat indices of each segment's pixels, for the segment ids 1 to `count`."""
    flat = ids.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat[order], np.arange(1, count + 2))
    return [order[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _unlike_their_neighbours(ids: np.ndarray, count: int, order: Sequence[int]) -> np.ndarray:
    """Return a palette index for each segment id, shape (count,), so that few adjacent segments share a color."""
    near: list[set[int]] = [set() for _ in range(count + 1)]
    for one, other in ((ids[:, :-3], ids[:, 3:]), (ids[:-3], ids[3:])):  # segments up to 3 pixels apart are neighbors
        pairs = np.stack([one.ravel(), other.ravel()], 1)
        for a, b in np.unique(pairs[one.ravel() != other.ravel()], axis=0).tolist():
            near[a].add(b)
            near[b].add(a)
    chosen = np.full(count + 1, -1)
    used = np.zeros(len(PALETTE), int)
    for k in order:
        around = np.bincount([c for c in chosen[list(near[k + 1] - {0})] if c >= 0], minlength=len(PALETTE))
        chosen[k + 1] = min(range(len(PALETTE)), key=lambda c: (around[c], used[c], c))
        used[chosen[k + 1]] += 1
    return np.maximum(chosen[1:], 0)


def _font_size(size: tuple[int, int], labels: int) -> int:
    """Return a font size that decreases with the number of labels but stays legible."""
    return max(12, round(min(size) / (28 if labels <= 20 else 40 if labels <= 60 else 56)))


def draw_numbered(image: Image.Image, masks: np.ndarray, right: Sequence[bool | None]) -> Image.Image:
    """Outline each mask and label it with its number and a check mark or a cross.

    Masks are numbered from 1 in the given order, but drawn from largest to smallest. Incorrectly named masks are
    hatched and have a dashed outline, so that they can be identified without relying on color.

    Args:
        image: an RGB image.
        masks: bool (K, H, W), with the image's height and width.
        right: for each mask, whether its name is correct; None for a mask without a name, which gets neither mark.

    Returns:
        a new RGB image of the same size.
    """
    pixels = np.asarray(to_rgb(image)).astype(np.float32)
    colors = _colors_by_area(masks)
    for k, color in colors.items():
        _colour(pixels, masks[k].astype(bool), color, right[k])
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(12, min(image.size) // 32))
    taken: list[tuple[float, float, float, float]] = []
    for k in colors:
        if masks[k].any():
            _write_number(draw, font, k + 1, right[k], masks[k], image.size, taken)
    return canvas


def _colour(pixels: np.ndarray, mask: np.ndarray, color: np.ndarray, right: bool | None) -> None:
    """Outline a mask in an image array (H, W, 3).

    The pixels inside the outline keep their colors, because a name may refer to a color.
    """
    diagonal = np.add(*np.indices(mask.shape))
    if right is False:
        pixels[mask & (diagonal % 14 < 2)] = _DARK
        pixels[mask & (diagonal % 14 == 2)] = _LIGHT  # visible on black areas
    ring = _outline(mask)
    ring |= _outline(mask & ~ring)  # two pixels
    pixels[ring] = color
    if right is False:
        pixels[ring & (diagonal % 14 < 7)] = _DARK


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the mask's boundary, that is, its pixels that are adjacent to pixels outside the mask."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text: str,
    places: tuple[np.ndarray, ...],
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
    frame: tuple[int, ...] | None = None,
) -> None:
    """Write a label at the median of a mask's pixels (xs, ys), or nearby if it would overlap earlier labels there."""
    xs, ys = places
    text = _shortened(draw, font, text, size[0] - 8)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x, y = _place(float(np.median(xs)), float(np.median(ys)), width, height, size, taken)
    draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=_DARK, outline=frame)
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
    """Write a mask's number, with a check mark or a cross, at the mask pixel closest to the mask's median position."""
    ys, xs = np.nonzero(mask)
    nearest = int(np.argmin((xs - np.median(xs)) ** 2 + (ys - np.median(ys)) ** 2))
    left, top, right, bottom = draw.textbbox((0, 0), str(number), font=font)
    digits, height = right - left, bottom - top + 6
    side = bottom - top
    width = digits + 8 + (side + 4 if is_right is not None else 0)
    x, y = _place(float(xs[nearest]), float(ys[nearest]), width, height, size, taken)
    draw.rounded_rectangle((x, y, x + width, y + height), 3, fill=_DARK)
    draw.text((x + 4 - left, y + 3 - top), str(number), font=font, fill=(255, 255, 255))
    # The check mark and the cross are drawn as lines, because Pillow's default font lacks these characters.
    a, b = x + 8 + digits, y + 3
    if is_right:
        draw.line([(a, b + side * 0.55), (a + side * 0.35, b + side), (a + side, b)], (150, 255, 170), 2)
    elif is_right is not None:
        draw.line([(a, b), (a + side, b + side)], (255, 170, 150), 2)
        draw.line([(a, b + side), (a + side, b)], (255, 170, 150), 2)


def _shortened(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: float
) -> str:
    """Return the text, truncated with "..." if it is wider than `width` pixels."""
    whole = text = " ".join(text.split())
    while text and draw.textlength(text if text == whole else text + "...", font=font) > width:
        text = text[:-1]
    return text if text == whole else text + "..."


# Candidate label offsets from the preferred position, in multiples of the label's width and height, closest first.
_OFFSETS = sorted(
    ((x / 2, y) for y in range(-6, 7) for x in range(-6, 7)), key=lambda xy: (4 * xy[0] ** 2 + xy[1] ** 2, -xy[1])
)


def _place(
    middle_x: float,
    middle_y: float,
    width: float,
    height: float,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Place a label as close to a point as possible without overlap, and return its top-left corner.

    The label is always inside the image. If every candidate position overlaps a box in `taken`, the position with the
    smallest overlap is used. The label's box is added to `taken`.
    """
    best = (np.inf, 0.0, 0.0)
    for across, down in _OFFSETS:
        # Positions are rounded to whole pixels, because Pillow clips letters at fractional positions near the border.
        x = min(max(round(middle_x - width / 2 + across * (width + 1)), 0), max(int(size[0] - width - 1), 0))
        y = min(max(round(middle_y - height / 2 + down * (height + 1)), 0), max(int(size[1] - height - 1), 0))
        covered = sum(_common((x, y, x + width, y + height), other) for other in taken)
        if covered < best[0]:
            best = (covered, x, y)
        if not covered:
            break
    _, left, top = best
    taken.append((left, top, left + width, top + height))
    return left, top


def _common(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Return the intersection area of two boxes (left, top, right, bottom)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    return max(0.0, width) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
