"""A pen that collects an object's outline as polygons, with coordinates from -1 to 1 (x to the right, y down).

Each polygon has a role, which determines how it is painted. Polygons with the role BODY have the color or pattern of
the object's attribute. Polygons with the role HOLE erase earlier polygons. Every other role has a fixed color.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

HOLE, BODY, DARK, LIGHT, WOOD, METAL, LEAF, GLASS = range(8)

Points = Sequence[tuple[float, float]]
Draw = Callable[["Pen"], None]


@dataclass(frozen=True)
class Part:
    """A polygon (N, 2), its role, and its stroke number.

    No line is drawn between polygons of the same stroke.
    """

    points: np.ndarray
    role: int
    stroke: int


class Pen:
    """Collects the parts of an object. The random numbers from `u` and `chance` vary the shape of each drawn object."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.parts: list[Part] = []
        self._strokes = 0

    def u(self, low: float, high: float) -> float:
        """Return a random number between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        """Return True with probability `share`."""
        return bool(self.rng.random() < share)

    def _add(self, points: np.ndarray, role: int) -> None:
        self._strokes += 1
        self.parts.append(Part(points, role, self._strokes))

    def poly(self, points: Points, role: int = BODY) -> None:
        """Add a polygon with straight sides."""
        self._add(np.asarray(points, np.float64), role)

    def blob(self, points: Points, role: int = BODY) -> None:
        """Add a smooth closed curve (Catmull-Rom) through the given points."""
        p1 = np.asarray(points, np.float64)
        p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
        t = np.linspace(0, 1, 6, endpoint=False)[:, None, None]
        curve = 0.5 * (
            2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
        )
        self._add(curve.transpose(1, 0, 2).reshape(-1, 2), role)

    def ell(
        self, x: float, y: float, rx: float, ry: float, role: int = BODY, turn: float = 0, span: Points = ((0, 360),)
    ) -> None:
        """Add an ellipse rotated by `turn` degrees, limited to the angles in `span` (0 = right, 90 = down)."""
        start, end = np.radians(span[0])
        angle = np.linspace(start, end, 36)
        points = np.stack([rx * np.cos(angle), ry * np.sin(angle)], 1)
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        self._add(points @ np.array([[c, s], [-s, c]]) + (x, y), role)

    def box(self, x0: float, y0: float, x1: float, y1: float, role: int = BODY, corner: float = 0) -> None:
        """Add a rectangle with rounded corners of radius `corner`."""
        r = min(corner, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        if r <= 0:
            self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], role)
            return
        angle = np.radians(np.arange(0, 91, 15))
        corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
        arcs = [
            np.stack([x + r * np.cos(angle + np.radians(a)), y + r * np.sin(angle + np.radians(a))], 1)
            for x, y, a in corners
        ]
        self._add(np.concatenate(arcs), role)

    def line(self, points: Points, width: float, role: int = BODY) -> None:
        """Add a thick line with round ends through the given points."""
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            length = max(np.hypot(x1 - x0, y1 - y0), 1e-9)
            nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            self.poly([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], role)
        for x, y in points:
            self.ell(x, y, width / 2, width / 2, role)
        self.join(2 * len(points) - 1)

    def join(self, count: int) -> None:
        """Combine the last `count` polygons into one stroke."""
        self.parts[-count:] = [replace(part, stroke=self._strokes) for part in self.parts[-count:]]

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, role: int = BODY
    ) -> None:
        """Add a thick line along an arc of an ellipse, from `start` to `end` degrees."""
        angle = np.radians(np.linspace(start, end, 24))
        outer = np.stack([x + (rx + width / 2) * np.cos(angle), y + (ry + width / 2) * np.sin(angle)], 1)
        inner = np.stack([x + (rx - width / 2) * np.cos(angle), y + (ry - width / 2) * np.sin(angle)], 1)
        self._add(np.concatenate([outer, inner[::-1]]), role)

    def eye(self, x: float, y: float, size: float = 0.07) -> None:
        """Add an eye with radius `size`."""
        self.ell(x, y, size, size, LIGHT)
        self.ell(x + size / 4, y, size / 2, size / 2, DARK)
