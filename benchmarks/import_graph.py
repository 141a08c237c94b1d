#!/usr/bin/env python
"""The import graph of the package: read from its source, checked by a test, and drawn for the docs.

python benchmarks/import_graph.py docs/images/import_graph.png
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The folders and top-level modules of the package, from upstream to downstream. A module imports from its own room
# and from those before it.
ORDER = (
    *("terminal", "errors", "registry", "documents", "files", "quiet"),
    *("storage", "io", "datasets", "config", "forms", "data", "prepare"),
    *("models", "training", "recognition", "labeling", "evaluation", "synthetic", "serving"),
    *("listing", "quickstart", "cli", "__main__"),
)


def package_files() -> list[Path]:
    return sorted((ROOT / "osm").rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The folder or top-level module that a module belongs to; `osm` for the package itself."""
    return (module.split(".") + ["osm"])[1] if "." in module else module


def read_graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, in functions and for type checkers too."""
    files = {module_name(path): path for path in package_files()}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        found = graph[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names if alias.name in files)
            elif isinstance(node, ast.ImportFrom) and node.module in files:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found.update(name if name in files else node.module for name in names)
        # The package loads its public names when they are first used, so importing it imports nothing downstream.
        found.discard("osm")
    graph.pop("osm")
    return graph


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports from a room downstream of the importing module's own, as "module -> module"."""
    place = {name: index for index, name in enumerate(ORDER)}
    arrows = ((module, target) for module, targets in graph.items() for target in targets)
    return sorted(f"{a} -> {b}" for a, b in arrows if place[room(b)] > place[room(a)])


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others (strongly connected components)."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = list(graph.get(start, ()))
        while stack:
            module = stack.pop()
            if module not in seen:
                seen.add(module)
                stack.extend(graph.get(module, ()))
        return seen

    after = {module: reachable(module) for module in graph}
    in_circles = sorted(module for module in graph if module in after[module])
    groups: list[list[str]] = []
    for module in in_circles:
        group = next((g for g in groups if module in after[g[0]] and g[0] in after[module]), None)
        if group is None:
            groups.append([module])
        else:
            group.append(module)
    return groups


def draw(graph: Mapping[str, set[str]], path: Path) -> None:
    """Draws the rooms in their order, with an arrow for every pair of rooms of which one imports from the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rooms = [name for name in ORDER if name != "__main__"]
    pairs = {(room(a), room(b)) for a, targets in graph.items() for b in targets if room(a) != room(b)}
    lines: dict[str, int] = dict.fromkeys(rooms, 0)
    for file in package_files():
        if room(module_name(file)) in lines:
            lines[room(module_name(file))] += len(file.read_text(encoding="utf-8").splitlines())
    figure, axes = plt.subplots(figsize=(9, 11))
    height = {name: -index for index, name in enumerate(rooms)}
    for a, b in sorted(pairs):
        if a in height and b in height:
            bend = 0.06 + 0.028 * abs(height[a] - height[b])
            style = {"arrowstyle": "-|>", "color": "tab:blue" if height[a] < height[b] else "tab:red", "alpha": 0.35}
            style["connectionstyle"] = f"arc3,rad={bend}"
            axes.annotate("", (0.32, height[b]), (0.32, height[a]), arrowprops=style)
    for name in rooms:
        label = f"{name}  ({lines[name]:,} lines)"
        axes.text(0.3, height[name], label, ha="right", va="center", fontsize=11, family="monospace")
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(rooms), 1)
    axes.set_title("An arrow points from the importing folder to the imported one.\nNone points downward.", fontsize=11)
    axes.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="where the picture goes, e.g. docs/images/import_graph.png")
    arguments = parser.parse_args()
    graph = read_graph()
    draw(graph, arguments.picture)
    print(f"{len(graph)} modules, {sum(map(len, graph.values()))} imports, {len(upward(graph))} upward")
    return 0


if __name__ == "__main__":
    sys.exit(main())
