"""Draws colors, patterns and backgrounds such as grass.

Arrays are float32. Colors have shape (H, W, 3) and values from 0 to 255, and weights have shape (H, W) and values from
0 to 1. Lengths are in pixels of the canvas.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

from osm.synthetic.scenes.pen import DARK, GLASS, LEAF, LIGHT, METAL, WOOD

Rng = np.random.Generator

# The HSV ranges of each color name: hue in degrees, saturation and value.
_HSV = {
    "red": ((-8, 8), (0.75, 0.95), (0.65, 0.9)),
    "orange": ((22, 32), (0.8, 1.0), (0.88, 1.0)),
    "yellow": ((49, 57), (0.7, 0.95), (0.9, 1.0)),
    "green": ((95, 150), (0.5, 0.9), (0.4, 0.72)),
    "blue": ((205, 232), (0.6, 0.95), (0.55, 0.9)),
    "purple": ((268, 288), (0.5, 0.85), (0.45, 0.75)),
    "pink": ((322, 342), (0.3, 0.55), (0.92, 1.0)),
    "brown": ((18, 30), (0.55, 0.8), (0.33, 0.5)),
    "black": ((0, 360), (0.0, 0.2), (0.08, 0.2)),
    "white": ((0, 360), (0.0, 0.06), (0.9, 1.0)),
}
_DETAILS = {
    DARK: (58, 54, 62),
    LIGHT: (240, 236, 226),
    WOOD: (164, 116, 70),
    METAL: (168, 174, 184),
    LEAF: (92, 150, 72),
    GLASS: (176, 214, 232),
}


def colour(name: str, rng: Rng) -> np.ndarray:
    """Return a random shade of a named color, shape (3,)."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in _HSV[name])
    return np.array(colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value), np.float32) * 255


def detail(role: int, rng: Rng) -> np.ndarray:
    """Return a random shade, shape (3,), for any part of an object except the body."""
    return np.clip(np.array(_DETAILS[role], np.float32) * rng.uniform(0.85, 1.1) + rng.uniform(-8, 8, 3), 0, 255)


def noise(rng: Rng, height: int, width: int, cell: float, octaves: int = 1, stretch: float = 1.0) -> np.ndarray:
    """Return smooth noise (height, width) with values roughly between 0 and 1.

    The noise has spots of `cell` pixels. A `stretch` above 1 widens the spots.
    """
    out = np.zeros((height, width), np.float32)
    weight, total = 1.0, 0.0
    for _ in range(octaves):
        rows, columns = max(2, round(height / cell) + 1), max(2, round(width / (cell * stretch)) + 1)
        grid = Image.fromarray(rng.random((rows, columns), np.float32))
        out += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        total, weight, cell = total + weight, weight / 2, max(cell / 2, 1.0)
    return out / total


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend colors (3,) or images. The result is `a` where `share` is 0, and `b` where `share` is 1."""
    return a + (b - a) * share[..., None]


# -- patterns of things ------------------------------------------------------------------------------------------------


def _striped(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    turn = rng.uniform(0, np.pi)
    return (np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn))) > 0).astype(np.float32)


def _dotted(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    radius = rng.uniform(0.28, 0.34)
    row = np.floor(y)
    dx, dy = (x + 0.5 * (row % 2)) % 1 - 0.5, y % 1 - 0.5
    return (dx**2 + dy**2 < radius**2).astype(np.float32)


def _checkered(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return ((np.floor(1.6 * x) + np.floor(1.6 * y)) % 2).astype(np.float32)


def _zigzag(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    wave = np.abs((x * 0.9) % 1 - 0.5) * 2
    return (((y + wave * 0.8) % 1) < 0.5).astype(np.float32)


_TWO_COLOURED: dict[str, Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
}


def _two_colours(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return random shades of two different named colors that have enough contrast."""
    names = list(_HSV)
    while True:
        first, second = (colour(names[i], rng) for i in rng.choice(len(names), 2, replace=False))
        if np.abs(first - second).sum() > 230:
            return first, second


def body(attribute: str, size: int, rng: Rng) -> np.ndarray:
    """Return the color or pattern that an attribute gives an object's body, shape (size, size, 3)."""
    if attribute in _HSV:
        spots = noise(rng, size, size, size / 4, 2)
        return colour(attribute, rng) * (0.9 + 0.2 * spots[..., None])
    axis = np.arange(size, dtype=np.float32)
    # The pattern's period is about an eighth of the object's size, but large enough to be visible after downsampling.
    period = max(size / rng.uniform(6.5, 9), 12.0)
    shift = rng.uniform(0, 1, 2)
    x, y = np.meshgrid(axis / period + shift[0], axis / period + shift[1])
    if attribute == "rainbow":
        turn = rng.uniform(0, np.pi)
        along = (np.cos(turn) * x + np.sin(turn) * y) * 0.28
        phase = 2 * np.pi * (along[..., None] - np.array([0, 1 / 3, 2 / 3], np.float32))
        return np.clip(140 + 150 * np.cos(phase), 20, 250).astype(np.float32)
    first, second = _two_colours(rng)
    if attribute == "marbled":
        veins = np.sin(2 * np.pi * (0.6 * x + 2.4 * noise(rng, size, size, period * 1.6, 3)))
        return mix(first, second, np.clip(np.abs(veins) * 1.4 - 0.2, 0, 1))
    turn = rng.uniform(-0.5, 0.5)
    x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    return mix(first, second, _TWO_COLOURED[attribute](x, y, rng))


# -- stuff -------------------------------------------------------------------------------------------------------------


def _rgb(rng: Rng, *base: float, spread: float = 14) -> np.ndarray:
    return np.clip(np.array(base, np.float32) * rng.uniform(0.88, 1.1) + rng.uniform(-spread, spread, 3), 0, 255)


def _sky(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    down = np.linspace(0, 1, h, dtype=np.float32)[:, None] * np.ones((1, w), np.float32)
    dusk = rng.random() < 0.25
    low = _rgb(rng, 250, 190, 150) if dusk else _rgb(rng, 205, 228, 245)
    image = mix(_rgb(rng, 110, 120, 190) if dusk else _rgb(rng, 100, 165, 230), low, down)
    clouds = noise(rng, h, w, 90 * unit, 4, 2.2)
    return mix(image, np.array([255, 252, 248], np.float32), np.clip((clouds - 0.5) * 4, 0, 0.9))


def _wall(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    height = rng.uniform(20, 34) * unit
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    row = np.floor(y / height)
    along = x / (height * 2.2) + 0.5 * (row % 2)
    brick = np.floor(along)
    value = np.modf(np.abs(np.sin(row * 12.9898 + brick * 78.233) * 43758.5453))[0].astype(np.float32)
    base = (_rgb(rng, 176, 92, 72), _rgb(rng, 198, 180, 158), _rgb(rng, 150, 150, 158))[int(rng.integers(3))]
    image = base * (0.82 + 0.3 * value + 0.15 * noise(rng, h, w, 8 * unit))[..., None]
    joint = (y % height < 2.6 * unit) | ((along % 1) * height * 2.2 < 2.6 * unit)
    return mix(image, _rgb(rng, 205, 198, 188), joint.astype(np.float32))


def _hedge(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    leaves = noise(rng, h, w, 11 * unit, 3)
    image = mix(_rgb(rng, 26, 62, 34), _rgb(rng, 96, 150, 70), np.clip((leaves - 0.25) * 2, 0, 1))
    if rng.random() < 0.5:  # blossoms
        spots = noise(rng, h, w, 14 * unit)
        image = mix(image, _rgb(rng, 235, 190, 205), np.clip((spots - 0.86) * 12, 0, 1))
    return image


def _curtain(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    x = np.arange(w, dtype=np.float32)[None] / (rng.uniform(26, 44) * unit)
    sway = noise(rng, h, w, 160 * unit)
    folds = np.sin(2 * np.pi * (x + 0.5 * sway))
    shades = (_rgb(rng, 150, 40, 52), _rgb(rng, 60, 76, 130), _rgb(rng, 190, 160, 96), _rgb(rng, 110, 70, 120))
    return shades[int(rng.integers(4))] * (0.85 + 0.26 * folds)[..., None]


def _grass(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    blades = noise(rng, h, w, 14 * unit, 2, 0.22)
    patches = noise(rng, h, w, 90 * unit, 2)
    image = mix(_rgb(rng, 70, 118, 48), _rgb(rng, 140, 182, 82), np.clip(blades * 1.3 - 0.2, 0, 1))
    return image * (0.85 + 0.3 * patches)[..., None]


def _sand(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    grain = rng.random((h, w), np.float32)
    dunes = noise(rng, h, w, 46 * unit, 2, 3.0)
    return _rgb(rng, 224, 198, 150) * (0.8 + 0.22 * dunes + 0.12 * grain)[..., None]


def _water(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    waves = noise(rng, h, w, 12 * unit, 2, 5.0)
    image = mix(_rgb(rng, 24, 84, 122), _rgb(rng, 84, 168, 190), waves)
    return mix(image, np.array([240, 250, 250], np.float32), np.clip((waves - 0.72) * 6, 0, 0.8))


def _floor(h: int, w: int, unit: float, rng: Rng) -> np.ndarray:
    board = rng.uniform(26, 44) * unit
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    row = np.floor(y / board)
    value = np.modf(np.abs(np.sin(row * 91.17) * 43758.5453))[0].astype(np.float32)
    grain = noise(rng, h, w, 5 * unit, 2, 14.0)
    base = (_rgb(rng, 186, 134, 84), _rgb(rng, 128, 88, 58), _rgb(rng, 206, 176, 136))[int(rng.integers(3))]
    image = base * (0.78 + 0.2 * value + 0.26 * grain)[..., None]
    ends = np.abs((x / (board * 7) + value * 5) % 1) * board * 7 < 2 * unit
    return image * np.where((y % board < 2 * unit) | ends, 0.6, 1.0).astype(np.float32)[..., None]


_STUFF = {
    "sky": _sky,
    "wall": _wall,
    "hedge": _hedge,
    "curtain": _curtain,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "floor": _floor,
}


def stuff(name: str, height: int, width: int, unit: float, rng: Rng) -> np.ndarray:
    """Return a painted area of a background material such as grass, shape (height, width, 3).

    `unit` is 1/512 of the canvas's side, in pixels.
    """
    return np.clip(_STUFF[name](height, width, unit, rng), 0, 255)
