#!/usr/bin/env python
"""The import graph of the package, which is read from its source, checked by a test, and drawn for the docs.

python benchmarks/import_graph.py docs/images/import_graph.png
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The folders and top-level modules of the package, from upstream to downstream. A module imports from its own room
# and from those before it.
ORDER = (
    *(
        "terminal",
        "startup",
        "quiet",
        "memory_reuse",
        "errors",
        "command_parser",
        "registry",
        "documents",
        "files",
        "shipped",
        "html_pages",
    ),
    *("storage", "io", "datasets", "config", "forms", "data", "prepare"),
    *("models", "training", "recognition", "sharing", "labeling", "evaluation", "planning", "synthetic", "serving"),
    *("listing", "fetch", "command_stages", "quickstart", "finetune", "cli", "completion", "__main__"),
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
    """Draw a matrix of the number of imports of each room (row) from each room (column), in the order of `ORDER`.

    An upward arrow would be a number above the diagonal.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rooms = [name for name in ORDER if name != "__main__"]
    pairs = Counter((room(a), room(b)) for a, targets in graph.items() for b in targets)
    lines = Counter[str]()
    for file in package_files():
        lines[room(module_name(file))] += len(file.read_text(encoding="utf-8").splitlines())
    counts = [[pairs[row, column] for column in rooms] for row in rooms]
    figure, axes = plt.subplots(figsize=(11, 9))
    shades = [
        [count**0.5 if place < number else 0 for place, count in enumerate(row)] for number, row in enumerate(counts)
    ]
    axes.imshow(shades, cmap="Blues", vmax=2 * max(map(max, shades)))
    for number, row in enumerate(counts):
        for place, count in enumerate(row):
            if number == place:
                axes.text(place, number, "\u25a0", ha="center", va="center", color="0.75")
            elif count:
                axes.text(place, number, count, ha="center", va="center", fontsize=8, color="black")
    axes.set_xticks(range(len(rooms)), rooms, rotation=60, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rooms)), [f"{name}  ({lines[name]:,} lines)" for name in rooms])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("imported folder or module (upstream on the left); the numbers count imports of modules")
    axes.set_ylabel("importing folder or module (upstream at the top)")
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=90, bbox_inches="tight")
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
