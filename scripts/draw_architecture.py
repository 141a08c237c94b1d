#!/usr/bin/env python3
"""Draw docs/images/architecture.svg, the flow of data through the model and through the package.

python3 scripts/draw_architecture.py docs/images/architecture.svg
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1180, 560
FROZEN, TRAINED, DATA, FOLDER = "#dbe9f6", "#fde3c4", "#f2f2f2", "#e3f1e4"
Box = tuple[float, float, float, float]


class Drawing:
    """Boxes with lines of text, and arrows between them."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, color: str, *lines: str) -> Box:
        """Draw a box. The first line of its text is bold."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{color}" stroke="#444" stroke-width="1.2"/>'
        )
        top = y + h / 2 - 9 * (len(lines) - 1)
        for k, line in enumerate(lines):
            weight = "bold" if k == 0 else "normal"
            self.text(x + w / 2, top + 18 * k + 5, line, 14 if k == 0 else 12, weight)
        return x, y, w, h

    def text(
        self, x: float, y: float, line: str, size: int = 12, weight: str = "normal", anchor: str = "middle"
    ) -> None:
        """Draw a line of text."""
        style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x}" y="{y}" {style} fill="#222">{escape(line)}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw a line through points, with a tip at its end."""
        path = " ".join(f"{'M' if k == 0 else 'L'}{x} {y}" for k, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{path}" fill="none" stroke="#444" stroke-width="1.6" marker-end="url(#tip)"/>')

    def between(self, one: Box, other: Box) -> None:
        """Draw an arrow from the right side of a box to the left side of another one."""
        self.arrow((one[0] + one[2], one[1] + one[3] / 2), (other[0] - 2, other[1] + other[3] / 2))

    def svg(self) -> str:
        """Return the drawing as an SVG file with a white background."""
        tip = (
            '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L10 5 L0 10 z" fill="#444"/></marker>'
        )
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        title = "<title>How OSM names a mask, and how the package is organized</title>"
        return "\n".join(
            [
                head,
                title,
                f"<defs>{tip}</defs>",
                '<rect width="100%" height="100%" fill="white"/>',
                *self.parts,
                "</svg>",
            ]
        )


def draw() -> str:
    """Return the picture as SVG."""
    pen = Drawing()
    pen.text(20, 32, "Naming a mask", 17, "bold", "start")
    image = pen.box(20, 60, 120, 70, DATA, "image", "1120 x 1120")
    windows = pen.box(180, 60, 140, 70, DATA, "windows", "25 of 224 x 224")
    tower = pen.box(360, 60, 140, 70, FROZEN, "tower", "ViT or CNN, frozen")
    tokens = pen.box(540, 60, 150, 70, DATA, "image tokens", "once per image")
    bridge = pen.box(540, 180, 150, 90, TRAINED, "bridge", "maskqformer or", "flamingo, trained")
    mask = pen.box(20, 190, 120, 70, DATA, "mask", "box or points")
    features = pen.box(270, 190, 160, 70, DATA, "mask features", "which tokens are inside")
    llm = pen.box(780, 180, 150, 90, FROZEN, "LLM", "any decoder,", "frozen")
    pen.box(780, 60, 150, 70, DATA, "prompt", "with the mode", "(coco, any, ...)")
    name = pen.box(1000, 180, 150, 90, DATA, "name", "and its calibrated", "probability")
    for one, other in ((image, windows), (windows, tower), (tower, tokens), (mask, features), (features, bridge)):
        pen.between(one, other)
    pen.arrow((615, 130), (615, 178))
    pen.between(bridge, llm)
    pen.text(735, 215, "prefix", 12)
    pen.arrow((855, 130), (855, 178))
    pen.between(llm, name)
    pen.text(20, 330, "The package: a module imports only from the left", 17, "bold", "start")
    columns = (
        ("forms, datasets", "annotation formats,", "the dataset table"),
        ("data, prepare", "shards, samples,", "converters"),
        ("models", "towers, bridges,", "LLMs, checkpoints"),
        ("training, naming", "osm/training,", "osm/recognition"),
        ("evaluation, labels", "osm/evaluation,", "osm/labeling"),
        ("serving", "page, notebook", ""),
    )
    before = None
    for k, (title, first, second) in enumerate(columns):
        box = pen.box(20 + 192 * k, 360, 170, 90, FOLDER, title, *filter(None, (first, second)))
        if before is not None:
            pen.between(before, box)
        before = box
    for x, color, what in (
        (20, FROZEN, "frozen"),
        (130, TRAINED, "trained"),
        (250, DATA, "data"),
        (350, FOLDER, "folders of osm/"),
    ):
        pen.parts.append(f'<rect x="{x}" y="500" width="22" height="16" fill="{color}" stroke="#444"/>')
        pen.text(x + 30, 513, what, 13, "normal", "start")
    return pen.svg()


def main() -> int:
    if len(sys.argv) != 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    Path(sys.argv[1]).write_text(draw() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
