"""Data flows one way: a module imports only from folders upstream of its own, and never in a circle."""

from __future__ import annotations

import ast
from collections import Counter

import import_graph
import pytest


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph.read_graph()


def test_every_folder_has_its_place(graph: dict[str, set[str]]) -> None:
    assert {import_graph.room(module) for module in graph} == set(import_graph.ORDER)


def test_no_arrow_points_upward(graph: dict[str, set[str]]) -> None:
    assert not import_graph.upward(graph)


def test_no_circle(graph: dict[str, set[str]]) -> None:
    assert not import_graph.circles(graph)


def test_the_checks_see_what_they_are_for() -> None:
    assert import_graph.upward({"osm.io.images": {"osm.models.osm"}, "osm.models.osm": {"osm.io.images"}}) == [
        "osm.io.images -> osm.models.osm"
    ]
    found = import_graph.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert [sorted(circle) for circle in found] == [["a", "b", "c"]]


def test_names_are_unique() -> None:
    """Of public classes in the whole package, and of modules (a folder's own `base` aside)."""
    classes: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for path in import_graph.package_files():
        modules[path.stem] += path.stem not in ("__init__", "__main__", "base")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes.update(n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))
    assert not [name for name, times in classes.items() if times > 1]
    assert not [name for name, times in modules.items() if times > 1]
