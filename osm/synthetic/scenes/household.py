"""Functions that draw the outlines of household objects and clothes."""

from __future__ import annotations

from osm.synthetic.scenes.pen import BODY, DARK, GLASS, HOLE, LIGHT, METAL, WOOD, Draw, Pen


def kettle(p: Pen) -> None:
    w = p.u(0.58, 0.7)
    p.arc(-0.05, -0.25, 0.45, 0.6, 190, 350, 0.1, DARK)
    p.poly([(0.35, 0.3), (0.98, -0.4), (0.8, -0.5), (0.35, -0.1)])
    p.blob([(-w, 0.75), (-w - 0.1, 0.3), (-0.4, -0.3), (-0.05, -0.4), (0.3, -0.3), (w, 0.3), (w - 0.08, 0.75)])
    p.box(-w, 0.7, w - 0.06, 0.85, DARK, 0.06)
    p.ell(-0.05, -0.38, 0.3, 0.08, DARK)
    p.ell(-0.05, -0.48, 0.09, 0.09, DARK)


def mug(p: Pen) -> None:
    top, bottom = p.u(0.52, 0.6), p.u(0.42, 0.56)
    p.arc(0.5, 0.1, 0.33, 0.38, -95, 95, p.u(0.14, 0.2))
    p.poly([(-top - 0.1, -0.7), (top - 0.1, -0.7), (bottom - 0.1, 0.8), (-bottom - 0.1, 0.8)])
    p.ell(-0.1, 0.8, bottom, 0.12)
    p.ell(-0.1, -0.7, top, 0.17, LIGHT)
    p.ell(-0.1, -0.68, top - 0.09, 0.11, DARK)


def vase(p: Pen) -> None:
    belly, neck, rim = p.u(0.5, 0.68), p.u(0.16, 0.24), p.u(0.3, 0.4)
    p.blob(
        [(-rim, -0.95), (-neck, -0.55), (-belly, 0.15), (-0.4, 0.75), (-0.3, 0.95)]
        + [(0.3, 0.95), (0.4, 0.75), (belly, 0.15), (neck, -0.55), (rim, -0.95)]
    )
    p.ell(0, -0.93, rim, 0.09, DARK)


def lamp(p: Pen) -> None:
    top, bottom = p.u(0.22, 0.38), p.u(0.62, 0.78)
    p.line([(0, 0.0), (0, 0.8)], 0.12, METAL)
    p.box(-0.4, 0.78, 0.4, 0.95, METAL, 0.1)
    p.poly([(-top, -0.95), (top, -0.95), (bottom, 0.12), (-bottom, 0.12)])
    p.ell(0, 0.12, bottom, 0.08)


def chair(p: Pen) -> None:
    lean = p.u(0.0, 0.12)
    for x in (-0.5, 0.46):
        p.line([(x, 0.3), (x * 1.06, 0.95)], 0.13, WOOD)
    p.line([(-0.25, 0.25), (-0.25, 0.8)], 0.1, WOOD)
    p.poly([(-0.58, 0.15), (-0.58 - lean, -0.95), (-0.2 - lean, -0.95), (-0.2, 0.15)])
    p.box(-0.62, 0.02, 0.62, 0.36, BODY, 0.12)


def sofa(p: Pen) -> None:
    for x in (-0.75, 0.75):
        p.box(x - 0.08, 0.5, x + 0.08, 0.7, WOOD)
    p.box(-0.85, -p.u(0.5, 0.65), 0.85, 0.3, BODY, 0.25)
    p.box(-0.7, 0.05, 0.0, 0.35, BODY, 0.1)
    p.box(0.0, 0.05, 0.7, 0.35, BODY, 0.1)
    p.box(-0.85, 0.25, 0.85, 0.55, BODY, 0.08)
    for side in (-1, 1):
        p.box(side * 0.83 - 0.15, -0.2, side * 0.83 + 0.15, 0.57, BODY, 0.15)


def table(p: Pen) -> None:
    top = -p.u(0.3, 0.45)
    for x in (-0.72, 0.72):
        p.poly([(x - 0.11, top + 0.2), (x + 0.11, top + 0.2), (x + 0.07, 0.75), (x - 0.07, 0.75)], WOOD)
    p.box(-0.78, top + 0.15, 0.78, top + 0.45)
    p.box(-0.98, top - 0.12, 0.98, top + 0.2, BODY, 0.1)


def bed(p: Pen) -> None:
    p.box(-0.98, -0.55, -0.8, 0.7, WOOD, 0.06)
    p.box(0.82, -p.u(0.0, 0.2), 0.98, 0.7, WOOD, 0.06)
    p.box(-0.82, 0.25, 0.84, 0.55, WOOD)
    p.box(-0.82, 0.0, 0.84, 0.3, LIGHT, 0.06)
    p.box(-0.78, -0.25, -0.3, 0.05, LIGHT, 0.12)
    p.blob([(-0.35, 0.4), (-0.35, -0.12), (0.2, -0.22), (0.8, -0.1), (0.86, 0.42), (0.2, 0.46)])


def bottle(p: Pen) -> None:
    w, neck = p.u(0.32, 0.42), p.u(0.11, 0.15)
    p.blob(
        [(-neck, -0.8), (-neck, -0.45), (-w, -0.1), (-w, 0.5), (-w + 0.02, 0.92), (w - 0.02, 0.92), (w, 0.5)]
        + [(w, -0.1), (neck, -0.45), (neck, -0.8)]
    )
    p.box(-neck - 0.05, -0.98, neck + 0.05, -0.76, WOOD, 0.04)
    p.box(-w + 0.02, 0.15, w - 0.02, 0.5, LIGHT)


def umbrella(p: Pen) -> None:
    p.line([(0, -0.3), (0, 0.75)], 0.08, WOOD)
    p.arc(0.13, 0.75, 0.13, 0.17, 0, 180, 0.08, WOOD)
    p.ell(0, 0.0, 0.95, p.u(0.78, 0.92), BODY, 0, ((180, 360),))
    for x in (-0.63, 0, 0.63):
        p.ell(x, 0.02, 0.32, 0.12, HOLE)
    p.line([(0, -0.15), (0, 0.1)], 0.08, WOOD)
    p.line([(0, -0.85), (0, -0.95)], 0.08, WOOD)


def key(p: Pen) -> None:
    p.box(-0.2, -0.15, 0.95, 0.15, BODY, 0.05)
    teeth = p.u(0.36, 0.5)
    p.box(0.72, 0.1, 0.93, teeth)
    p.box(0.4, 0.1, 0.58, teeth - 0.08)
    p.ell(-0.5, 0, 0.48, p.u(0.44, 0.52))
    p.ell(-0.55, 0, 0.2, 0.2, HOLE)


def guitar(p: Pen) -> None:
    p.box(-0.1, -0.9, 0.1, 0.2, WOOD)
    p.poly([(-0.13, -0.72), (-0.18, -0.98), (0.18, -0.98), (0.13, -0.72)], DARK)
    waist = p.u(0.26, 0.34)
    p.blob(
        [(0, -0.2), (-0.36, -0.1), (-waist, 0.2), (-0.52, 0.6), (-0.3, 0.93), (0, 0.97)]
        + [(0.3, 0.93), (0.52, 0.6), (waist, 0.2), (0.36, -0.1)]
    )
    p.ell(0, 0.25, 0.16, 0.16, DARK)
    p.box(-0.18, 0.62, 0.18, 0.7, DARK)
    p.box(-0.05, -0.85, 0.05, 0.22, WOOD)


def drum(p: Pen) -> None:
    w, h = p.u(0.75, 0.85), p.u(0.42, 0.55)
    p.box(-w, -h, w, h)
    p.ell(0, h, w, 0.24)
    p.arc(0, h, w - 0.03, 0.22, 0, 180, 0.07, METAL)
    p.ell(0, -h, w, 0.26, METAL)
    p.ell(0, -h, w - 0.08, 0.2, LIGHT)
    p.line([(-0.2, -h - 0.02), (0.6, -h - 0.4)], 0.07, WOOD)
    p.line([(0.3, -h), (-0.45, -h - 0.42)], 0.07, WOOD)


def bell(p: Pen) -> None:
    p.ell(0, 0.72, 0.2, 0.2, DARK)
    p.arc(0, -0.78, 0.14, 0.14, 0, 360, 0.09, METAL)
    w = p.u(0.7, 0.85)
    p.blob([(-w, 0.68), (-0.52, 0.3), (-0.44, -0.3), (0, -0.75), (0.44, -0.3), (0.52, 0.3), (w, 0.68), (0, 0.72)])
    p.box(-w - 0.02, 0.56, w + 0.02, 0.74, METAL, 0.08)


def hat(p: Pen) -> None:
    crown = p.u(0.4, 0.52)
    p.ell(0, 0.45, 0.98, p.u(0.22, 0.3))
    p.blob(
        [
            (-crown, 0.4),
            (-crown + 0.02, -0.3),
            (-0.2, -0.62),
            (0, -0.5),
            (0.2, -0.62),
            (crown - 0.02, -0.3),
            (crown, 0.4),
        ]
    )
    p.box(-crown - 0.02, 0.08, crown + 0.02, 0.33, DARK)


def shirt(p: Pen) -> None:
    sleeve, hem = p.u(0.1, 0.3), p.u(0.75, 0.92)
    p.poly(
        [(-0.3, -0.8), (-0.95, -0.35), (-0.72, sleeve), (-0.5, -0.1), (-0.5, hem)]
        + [(0.5, hem), (0.5, -0.1), (0.72, sleeve), (0.95, -0.35), (0.3, -0.8)]
    )
    p.ell(0, -0.8, 0.28, 0.2, HOLE)
    p.arc(0, -0.8, 0.28, 0.2, 0, 180, 0.07, LIGHT)


def shoe(p: Pen) -> None:
    shaft = -p.u(0.7, 0.9)
    p.blob(
        [(-0.8, 0.6), (-0.72, shaft), (-0.12, shaft), (-0.02, -0.02), (0.5, 0.12), (0.92, 0.36), (0.95, 0.6), (0, 0.66)]
    )
    p.box(-0.84, 0.5, 0.98, 0.74, DARK, 0.08)
    p.box(-0.76, shaft - 0.06, -0.08, shaft + 0.14, LIGHT, 0.05)
    for y in (-0.3, -0.08, 0.1):
        p.line([(-0.2, y), (0.1, y + 0.08)], 0.06, LIGHT)


def trousers(p: Pen) -> None:
    flare = p.u(0.46, 0.62)
    p.poly(
        [(-0.5, -0.9), (0.5, -0.9), (flare, 0.92), (flare - 0.4, 0.92), (0, -0.15), (0.4 - flare, 0.92), (-flare, 0.92)]
    )
    p.box(-0.52, -0.95, 0.52, -0.75, DARK)


def crown(p: Pen) -> None:
    peak = -p.u(0.6, 0.8)
    p.poly([(-0.8, 0.65), (-0.95, -0.5), (-0.48, 0.0), (0, peak), (0.48, 0.0), (0.95, -0.5), (0.8, 0.65)])
    for x, y in ((-0.93, -0.52), (0, peak), (0.93, -0.52)):
        p.ell(x, y, 0.1, 0.1, METAL)
    p.box(-0.83, 0.45, 0.83, 0.72, METAL, 0.05)
    for x in (-0.45, 0, 0.45):
        p.ell(x, 0.58, 0.08, 0.08, GLASS)


DRAW: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        *(kettle, mug, vase, lamp, chair, sofa, table, bed, bottle, umbrella, key, guitar, drum, bell),
        *(hat, shirt, shoe, trousers, crown),
    )
}
