"""Composes a scene from a backdrop, a ground, and partially overlapping objects.

Scenes are drawn at twice the requested size and then downsampled, so that edges are smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from osm.synthetic.scenes import creatures, household, outdoors, paint
from osm.synthetic.scenes.pen import BODY, HOLE, Pen
from osm.synthetic.scenes.scene_names import BACKDROPS, GROUNDS, THINGS, Pair

DRAW = {**household.DRAW, **creatures.DRAW, **outdoors.DRAW}
assert set(DRAW) == set(THINGS)

MIN_VISIBLE = 0.3
_OVERSAMPLE = 2
_SIDES = (42 / 256, 118 / 256)  # the range of a thing's longest side, as a fraction of the scene's side
_THINGS = (3, 7)  # the range of the number of things in a scene
_TRIES = 40  # the number of attempts to find a position for a thing
Rng = np.random.Generator


@dataclass(frozen=True)
class DrawnScene:
    """An image (S, S, 3) uint8, segment ids (S, S) int32, and each id's attribute-object pair or background name."""

    image: np.ndarray
    ids: np.ndarray
    segments: dict[int, Pair | str]


@dataclass(frozen=True)
class _Cutout:
    """A painted object, given by its colors (h, w, 3) float32 and its mask (h, w) bool."""

    pixels: np.ndarray
    mask: np.ndarray


def draw_scene(size: int, pairs: Sequence[Pair], seed: int, index: int) -> DrawnScene:
    """Draw scene number `index` for a seed, with `size` x `size` pixels and objects from `pairs`.

    The same arguments always produce the same scene. The longest side of every object is at least 42/256 of the scene's
    side, and at least 30% of every object is visible.
    """
    rng = np.random.default_rng([seed, index])
    side = size * _OVERSAMPLE
    canvas, ids, segments = _background(side, rng)
    _scatter(canvas, rng)
    areas: dict[int, int] = {}
    wanted = int(rng.integers(_THINGS[0], _THINGS[1] + 1))
    # Smaller objects appear farther away, so objects are drawn in ascending order of size.
    low, high = (float(np.log(share)) for share in _SIDES)
    lengths = np.sort(np.exp(rng.uniform(low, high, wanted))) * side
    for length in lengths:
        pair = pairs[int(rng.integers(len(pairs)))]
        thing = _draw_thing(pair, float(length), rng)
        place = _find_place(thing.mask, ids, areas, rng)
        if place is not None:
            number = len(segments) + 1
            segments[number] = pair
            areas[number] = int(thing.mask.sum())
            _put(canvas, ids, thing, place, number)
    return _finish(canvas, ids, segments, size, rng)


# -- background --------------------------------------------------------------------------------------------------------


def _background(side: int, rng: Rng) -> tuple[np.ndarray, np.ndarray, dict[int, Pair | str]]:
    unit = side / 512
    backdrop, behind = rng.permutation(list(BACKDROPS))[:2]
    names = [str(backdrop), str(rng.permutation(list(GROUNDS))[0])]
    horizon = rng.uniform(0.3, 0.62) * side
    bounds = [_edge(side, horizon, 5 * unit, rng)]
    if rng.random() < 0.45:  # draw a second backdrop above the first backdrop
        names.insert(0, str(behind))
        bounds.insert(0, _edge(side, horizon * rng.uniform(0.4, 0.65), 14 * unit, rng))
    row = np.arange(side)[:, None]
    layer = np.stack([row >= bound[None] for bound in bounds]).sum(0).astype(np.int32)
    canvas = np.empty((side, side, 3), np.float32)
    for number, name in enumerate(names):
        inside = layer == number
        rows = np.flatnonzero(inside.any(1))
        area = slice(rows[0], rows[-1] + 1)
        drawn = paint.stuff(name, rows[-1] + 1 - rows[0], side, unit, rng)
        np.copyto(canvas[area], drawn, where=inside[area][..., None])
    return canvas, layer + 1, {number: name for number, name in enumerate(names, 1)}


def _edge(side: int, height: float, sway: float, rng: Rng) -> np.ndarray:
    """Return a straight or wavy left-to-right boundary, as one row index per column, shape (side,)."""
    slope = rng.uniform(-0.05, 0.05) * np.linspace(-1, 1, side) * side
    wave = paint.noise(rng, 2, side, side / rng.uniform(3, 9))[0] - 0.5
    return height + slope + wave * 4 * sway * (rng.random() < 0.6)


def _scatter(canvas: np.ndarray, rng: Rng) -> None:
    """Draw clutter such as pebbles, leaves and petals. Clutter pixels belong to the segment beneath them."""
    side = len(canvas)
    for _ in range(int(rng.integers(0, 22))):
        long = side * rng.uniform(0.006, 0.018)
        pen = Pen(rng)
        pen.ell(0, 0, 1, rng.uniform(0.4, 0.9), BODY, rng.uniform(0, 180))
        box = int(2 * long) + 2
        mask = Image.new("L", (box, box))
        ImageDraw.Draw(mask).polygon(list(map(tuple, pen.parts[0].points * long + box / 2)), fill=255)
        top, left = (int(v) for v in rng.integers(0, side - box, 2))
        share = np.asarray(mask, np.float32) / 255 * rng.uniform(0.5, 0.9)
        area = canvas[top : top + box, left : left + box]
        area[:] = paint.mix(area, rng.uniform(40, 225, 3).astype(np.float32), share)


# -- things ------------------------------------------------------------------------------------------------------------


def _draw_thing(pair: Pair, length: float, rng: Rng) -> _Cutout:
    """Draw an object in its color or pattern, with shading. The object's longest side is `length` pixels long."""
    pen = Pen(rng)
    DRAW[pair.thing](pen)
    turn = np.radians(rng.normal(0, 9))
    squeeze = np.array([rng.uniform(0.88, 1.12) * (1 if rng.random() < 0.5 else -1), 1.0])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outlines = [part.points * squeeze @ rotation for part in pen.parts]
    solid = np.concatenate([o for o, part in zip(outlines, pen.parts, strict=True) if part.role != HOLE])
    low, high = solid.min(0), solid.max(0)
    scale = length / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int) + 3
    # Each pixel stores the number of its stroke, from which the pixel's role and the edges of strokes are derived.
    drawing = Image.new("L", (int(width), int(height)))
    draw = ImageDraw.Draw(drawing)
    role_of = np.zeros(256, np.uint8)
    for outline, part in zip(outlines, pen.parts, strict=True):
        fill = 0 if part.role == HOLE else part.stroke
        role_of[fill] = part.role
        draw.polygon(list(map(tuple, (outline - low) * scale + 1)), fill=fill)
    parts = np.asarray(drawing)
    roles = role_of[parts]
    pixels = paint.body(pair.attribute, max(parts.shape), rng)[: parts.shape[0], : parts.shape[1]].copy()
    for role in np.unique(roles):
        if role not in (HOLE, BODY):
            pixels[roles == role] = paint.detail(int(role), rng)
    mask = parts > 0
    return _Cutout(np.clip(pixels * _light(mask, parts, length)[..., None], 0, 255), mask)


def _light(mask: np.ndarray, parts: np.ndarray, length: float) -> np.ndarray:
    """Return the brightness of each pixel (h, w), with light from the upper left and dark lines between strokes."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(length * 0.05))
    down, right = np.gradient(np.asarray(blurred, np.float32) / 255)
    factors = 1 + np.clip((down + right) * length * 0.045, -0.3, 0.22)
    padded = np.pad(parts, 1, mode="edge").astype(np.int16)
    edge = (padded[1:-1, 1:-1] != padded[2:, 1:-1]) | (padded[1:-1, 1:-1] != padded[1:-1, 2:])
    return factors * np.where(edge, 0.55, 1.0)


def _find_place(mask: np.ndarray, ids: np.ndarray, areas: dict[int, int], rng: Rng) -> tuple[int, int] | None:
    """Return a random (top, left) position at which an object leaves earlier objects visible enough, or None."""
    side, (height, width) = len(ids), mask.shape
    allowed = 1 - MIN_VISIBLE - 0.02 if rng.random() < 0.5 else 0.04
    visible = np.bincount(ids.ravel(), minlength=max(areas, default=0) + 1)
    for _ in range(_TRIES):
        # Positions near the bottom are more likely, because objects stand on the ground.
        top = int((side - height - 4) * rng.beta(1.6, 1.1)) + 2
        left = int(rng.integers(2, side - width - 1))
        covered = np.bincount(ids[top : top + height, left : left + width][mask], minlength=len(visible))
        if all(
            visible[n] - covered[n] >= max(1 - allowed, MIN_VISIBLE) * area or not covered[n]
            for n, area in areas.items()
        ):
            return top, left
    return None


def _put(canvas: np.ndarray, ids: np.ndarray, thing: _Cutout, place: tuple[int, int], number: int) -> None:
    """Draw an object and its shadow on the canvas, and write the object's segment id into `ids`."""
    height, width = thing.mask.shape
    reach = max(3, round(0.06 * max(height, width)))
    padded = np.pad(thing.mask.astype(np.uint8) * 255, reach)
    shadow = np.asarray(Image.fromarray(padded).filter(ImageFilter.GaussianBlur(reach / 2)), np.float32) / 255
    # The padding `reach` is subtracted only in part, which shifts the shadow down and to the right.
    top, left = place[0] - reach // 3, place[1] - reach // 2
    rows = slice(max(top, 0), min(top + shadow.shape[0], len(ids)))
    columns = slice(max(left, 0), min(left + shadow.shape[1], len(ids)))
    shadow = shadow[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns] *= 1 - 0.4 * shadow[..., None]
    area = slice(place[0], place[0] + height), slice(place[1], place[1] + width)
    canvas[area][thing.mask] = thing.pixels[thing.mask]
    ids[area][thing.mask] = number


def _finish(canvas: np.ndarray, ids: np.ndarray, segments: dict[int, Pair | str], size: int, rng: Rng) -> DrawnScene:
    """Add lighting to the canvas, downsample it to `size` pixels, and add noise."""
    side = len(canvas)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    down, across, corner = rng.uniform((-0.1, -0.1, 0), (0.1, 0.1, 0.12)).astype(np.float32)
    light = 1 + down * axis[:, None] + across * axis[None] - corner * (axis[:, None] ** 2 + axis[None] ** 2)
    light *= np.float32(rng.uniform(0.9, 1.08))
    canvas *= light[..., None] * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    corners = [canvas[i::_OVERSAMPLE, j::_OVERSAMPLE] for i in range(_OVERSAMPLE) for j in range(_OVERSAMPLE)]
    small = sum(corners[1:], start=corners[0]) / len(corners)
    small += rng.standard_normal(small.shape, np.float32) * np.float32(rng.uniform(0, 5))
    return DrawnScene(
        np.clip(small, 0, 255).round().astype(np.uint8),
        np.ascontiguousarray(ids[1::_OVERSAMPLE, 1::_OVERSAMPLE]),
        segments,
    )
