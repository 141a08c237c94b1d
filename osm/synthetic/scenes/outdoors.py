"""Functions that draw the outlines of vehicles, plants, buildings and outdoor objects."""

from __future__ import annotations

import math

from osm.synthetic.scenes.pen import BODY, DARK, GLASS, HOLE, LEAF, LIGHT, METAL, WOOD, Draw, Pen


def _wheel(p: Pen, x: float, y: float, r: float) -> None:
    p.ell(x, y, r, r, DARK)
    p.ell(x, y, r * 0.5, r * 0.5, METAL)


def car(p: Pen) -> None:
    roof = -p.u(0.4, 0.55)
    p.poly([(-0.55, -0.02), (-0.36, roof), (0.28, roof), (0.6, -0.02)])
    p.blob(
        [(-0.97, 0.32), (-0.92, 0.02), (-0.4, -0.06), (0.5, -0.06), (0.93, 0.1), (0.97, 0.35), (0.3, 0.4), (-0.5, 0.4)]
    )
    p.poly([(-0.42, -0.05), (-0.29, roof + 0.09), (-0.06, roof + 0.09), (-0.06, -0.05)], GLASS)
    p.poly([(0.03, -0.05), (0.03, roof + 0.09), (0.23, roof + 0.09), (0.46, -0.05)], GLASS)
    for x in (-0.52, 0.54):
        _wheel(p, x, 0.38, 0.22)


def bus(p: Pen) -> None:
    p.box(-0.97, -p.u(0.55, 0.68), 0.97, 0.45, BODY, 0.14)
    for x in (-0.82, -0.45, -0.08, 0.29):
        p.box(x, -0.4, x + 0.29, -0.08, GLASS, 0.04)
    p.box(0.68, -0.4, 0.92, 0.35, GLASS, 0.04)
    for x in (-0.55, 0.42):
        _wheel(p, x, 0.47, 0.2)


def boat(p: Pen) -> None:
    p.line([(0.0, -0.9), (0.0, 0.3)], 0.07, WOOD)
    tip = -p.u(0.8, 0.95)
    p.poly([(0.06, tip), (0.06, 0.12), (0.75, 0.12)], LIGHT)
    p.poly([(-0.06, tip + 0.15), (-0.06, 0.12), (-0.55, 0.12)], LIGHT)
    p.poly([(-0.97, 0.22), (0.97, 0.22), (0.66, 0.8), (-0.62, 0.8)])
    p.box(-0.97, 0.18, 0.97, 0.3, WOOD)


def airplane(p: Pen) -> None:
    p.poly([(-0.15, -0.05), (0.25, -0.85), (0.45, -0.85), (0.3, -0.05)])
    p.poly([(-0.8, -0.05), (-0.95, -0.5), (-0.75, -0.5), (-0.5, -0.05)])
    thick = p.u(0.17, 0.23)
    p.blob([(-0.95, -0.05), (-0.5, -thick), (0.5, -thick), (0.95, 0.0), (0.9, 0.1), (0.5, thick), (-0.5, thick - 0.03)])
    p.poly([(-0.15, 0.1), (0.0, 0.85), (0.2, 0.85), (0.32, 0.1)])
    for x in (-0.35, -0.1, 0.15, 0.4):
        p.ell(x, -0.04, 0.06, 0.06, GLASS)
    p.ell(0.78, -0.03, 0.1, 0.07, GLASS)


def rocket(p: Pen) -> None:
    w = p.u(0.27, 0.34)
    p.poly([(-0.16, 0.6), (0, 0.98), (0.16, 0.6)], WOOD)
    for side in (-1, 1):
        p.poly([(side * w * 0.8, 0.1), (side * 0.68, 0.75), (side * w * 0.5, 0.6)], DARK)
    p.blob([(0, -0.98), (w * 0.8, -0.5), (w, 0.1), (w * 0.7, 0.65), (-w * 0.7, 0.65), (-w, 0.1), (-w * 0.8, -0.5)])
    p.ell(0, -0.3, 0.15, 0.15, METAL)
    p.ell(0, -0.3, 0.1, 0.1, GLASS)


def tree(p: Pen) -> None:
    p.poly([(-0.14, 0.98), (-0.09, 0.1), (0.09, 0.1), (0.14, 0.98)], WOOD)
    for _ in range(5):
        p.ell(p.u(-0.4, 0.4), p.u(-0.55, 0.0), p.u(0.3, 0.42), p.u(0.28, 0.38))
    p.ell(0, -0.3, 0.6, 0.55)
    p.join(6)


def flower(p: Pen) -> None:
    p.line([(0, -0.2), (p.u(-0.1, 0.1), 0.95)], 0.09, LEAF)
    p.ell(0.25, 0.55, 0.26, 0.1, LEAF, -30)
    p.ell(-0.25, 0.65, 0.26, 0.1, LEAF, 30)
    petals = int(p.rng.integers(5, 8))
    start = p.u(0, 1)
    for k in range(petals):
        angle = 2 * math.pi * (k + start) / petals
        p.ell(0.36 * math.cos(angle), -0.4 + 0.36 * math.sin(angle), 0.27, 0.19, BODY, math.degrees(angle))
    p.ell(0, -0.4, 0.19, 0.19, DARK)


def cactus(p: Pen) -> None:
    left, right = p.u(-0.4, -0.1), p.u(-0.6, -0.25)
    p.line([(-0.6, left), (-0.6, 0.25), (0, 0.25)], 0.24)
    p.line([(0.58, right), (0.58, 0.05), (0, 0.05)], 0.24)
    p.box(-0.22, -0.95, 0.22, 0.72, BODY, 0.22)
    p.poly([(-0.45, 0.6), (0.45, 0.6), (0.34, 0.97), (-0.34, 0.97)], WOOD)


def mushroom(p: Pen) -> None:
    p.blob([(-0.2, 0.0), (-0.28, 0.85), (0, 0.93), (0.28, 0.85), (0.2, 0.0)], LIGHT)
    p.ell(0, 0.1, 0.9, p.u(0.85, 1.02), BODY, 0, ((180, 360),))
    p.ell(0, 0.1, 0.9, 0.12, DARK)


def banana(p: Pen) -> None:
    p.blob(
        [(-0.9, -0.5), (-0.75, -0.52), (-0.45, -0.02), (0.1, p.u(0.15, 0.25)), (0.7, -0.1), (0.92, -0.25)]
        + [(0.95, -0.12), (0.6, 0.45), (0.05, 0.66), (-0.5, 0.42), (-0.85, -0.05)]
    )
    p.box(-0.95, -0.66, -0.74, -0.46, DARK, 0.04)
    p.ell(0.93, -0.2, 0.08, 0.09, DARK)


def carrot(p: Pen) -> None:
    for turn in (-28, 0, 28):
        p.ell(0.012 * turn, -0.68, 0.11, 0.32, LEAF, turn)
    w = p.u(0.32, 0.42)
    p.blob(
        [(0, -0.52), (w * 0.8, -0.45), (w, -0.2), (0.12, 0.7), (0, 0.97), (-0.12, 0.7), (-w, -0.2), (-w * 0.8, -0.45)]
    )
    for y, x in ((-0.1, -0.2), (0.15, 0.1), (0.35, -0.1)):
        p.line([(x - 0.07, y), (x + 0.08, y)], 0.04, DARK)


def pear(p: Pen) -> None:
    p.line([(0, -0.65), (0.1, -0.95)], 0.08, WOOD)
    p.ell(0.28, -0.82, 0.2, 0.09, LEAF, -20)
    w = p.u(0.55, 0.65)
    p.blob(
        [
            (0, -0.75),
            (0.24, -0.6),
            (0.3, -0.2),
            (w, 0.35),
            (0.42, 0.85),
            (0, 0.92),
            (-0.42, 0.85),
            (-w, 0.35),
            (-0.3, -0.2),
            (-0.24, -0.6),
        ]
    )


def house(p: Pen) -> None:
    p.box(0.3, -0.9, 0.52, -0.3, WOOD)
    p.box(-0.7, -0.2, 0.7, 0.85)
    peak = -p.u(0.8, 0.95)
    p.poly([(-0.95, -0.15), (0, peak), (0.95, -0.15)], DARK)
    p.box(-0.18, 0.25, 0.18, 0.85, WOOD)
    for x in (-0.5, 0.28):
        p.box(x, 0.05, x + 0.22, 0.32, GLASS)


def windmill(p: Pen) -> None:
    p.poly([(-0.26, -0.3), (0.26, -0.3), (0.45, 0.97), (-0.45, 0.97)])
    p.ell(0, -0.3, 0.26, 0.22, DARK)
    p.box(-0.13, 0.6, 0.13, 0.97, WOOD)
    start = p.u(20, 70)
    for k in range(4):
        a = math.radians(start + 90 * k)
        c, s = math.cos(a), math.sin(a)
        p.poly(
            [
                (0, -0.3),
                (0.72 * c - 0.0 * s, -0.3 + 0.72 * s),
                (0.72 * c - 0.2 * s, -0.3 + 0.72 * s + 0.2 * c),
                (0.15 * c - 0.2 * s, -0.3 + 0.15 * s + 0.2 * c),
            ],
            LIGHT,
        )
        p.line([(0, -0.3), (0.74 * c, -0.3 + 0.74 * s)], 0.05, WOOD)


def castle(p: Pen) -> None:
    tall = -p.u(0.55, 0.7)
    p.box(-0.6, -0.2, 0.6, 0.85)
    for x in (-0.35, 0.05, 0.45):
        p.box(x - 0.1, -0.38, x + 0.1, -0.15)
    for side in (-1, 1):
        p.box(side * 0.92, tall, side * 0.5, 0.85)
        for k in (0, 1):
            x = side * (0.88 - 0.26 * k)
            p.box(x - 0.08, tall - 0.18, x + 0.08, tall + 0.05)
        p.box(side * 0.76, tall + 0.3, side * 0.66, tall + 0.55, DARK)
    p.ell(0, 0.5, 0.2, 0.24, DARK)
    p.box(-0.2, 0.5, 0.2, 0.85, DARK)


def tent(p: Pen) -> None:
    peak = -p.u(0.6, 0.75)
    p.line([(0, peak), (0, peak - 0.2)], 0.05, WOOD)
    p.poly([(0, peak), (0.97, 0.7), (-0.97, 0.7)])
    p.poly([(0, peak + 0.35), (0.3, 0.7), (-0.3, 0.7)], DARK)


def kite(p: Pen) -> None:
    w = p.u(0.5, 0.62)
    p.line([(0, 0.4), (0.12, 0.6), (-0.06, 0.75), (0.1, 0.95)], 0.05, DARK)
    for y in (0.62, 0.82):
        p.poly([(-0.12, y - 0.07), (0.16, y + 0.07), (0.16, y - 0.07), (-0.12, y + 0.07)], LIGHT)
    p.poly([(0, -0.97), (w, -0.35), (0, 0.5), (-w, -0.35)])
    p.line([(0, -0.95), (0, 0.48)], 0.035, WOOD)
    p.line([(-w, -0.35), (w, -0.35)], 0.035, WOOD)


def star(p: Pen) -> None:
    inner = p.u(0.4, 0.5)
    p.poly(
        [
            ((0.98, inner)[k % 2] * math.sin(k * math.pi / 5), -(0.98, inner)[k % 2] * math.cos(k * math.pi / 5))
            for k in range(10)
        ]
    )


def heart(p: Pen) -> None:
    dip = -p.u(0.3, 0.45)
    p.blob(
        [(0, dip), (0.3, -0.78), (0.75, -0.75), (0.95, -0.35), (0.7, 0.2), (0.02, 0.92)]
        + [(-0.02, 0.92), (-0.7, 0.2), (-0.95, -0.35), (-0.75, -0.75), (-0.3, -0.78)]
    )


def anchor(p: Pen) -> None:
    p.arc(0, 0.1, p.u(0.62, 0.7), 0.62, 15, 165, 0.24)
    for side in (-1, 1):
        p.poly([(side * 0.95, 0.42), (side * 0.82, 0.02), (side * 0.48, 0.3)])
    p.box(-0.13, -0.55, 0.13, 0.78)
    p.box(-0.45, -0.42, 0.45, -0.2, BODY, 0.08)
    p.ell(0, -0.72, 0.25, 0.25)
    p.ell(0, -0.72, 0.1, 0.1, HOLE)


DRAW: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        *(car, bus, boat, airplane, rocket, tree, flower, cactus, mushroom, banana, carrot, pear),
        *(house, windmill, castle, tent, kite, star, heart, anchor),
    )
}
