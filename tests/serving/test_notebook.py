"""The notebook's picture, by numbers and by the mouse, and the notebook itself from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.backend_bases import MouseEvent
from processes import PATIENCE_S

from osm.errors import OsmError
from osm.labeling.naming import NamingRequest
from osm.serving.engine import Engine
from osm.serving.notebook import Explorer
from osm.serving.page_samples import drawn_scene

NOTEBOOK = Path(__file__).parents[2] / "interactive_demo.ipynb"
HERE = Path(__file__).parent

# To be run in a kernel: the mouse presses and lets go at pixels of the picture.
MOUSE = """
from matplotlib.backend_bases import MouseEvent

def mouse(explorer, start, end):
    canvas, view = explorer.figure.canvas, explorer.figure.axes[0]
    canvas.draw()
    for name, place in (("button_press", start), ("motion_notify", end), ("button_release", end)):
        x, y = view.transData.transform(place)
        canvas.callbacks.process(f"{name}_event", MouseEvent(f"{name}_event", canvas, x, y, 1))
"""


@pytest.fixture
def explorer(engine: Engine) -> Any:
    before = plt.get_backend()
    plt.switch_backend("agg")
    yield Explorer(engine, drawn_scene(0))
    plt.close("all")
    plt.switch_backend(before)


def mouse(explorer: Explorer, start: tuple[float, float], end: tuple[float, float]) -> None:
    scope: dict[str, Any] = {}
    exec(MOUSE, scope)
    scope["mouse"](explorer, start, end)


def test_by_numbers(explorer: Explorer, tmp_path: Path) -> None:
    width, height = explorer.size
    named = explorer.click(width / 2, height / 2)
    explorer.request = NamingRequest(vocabulary=("cat", "dog"), top_k=2)
    assert explorer.box(10, 20, 100, 80).answer.text in ("cat", "dog")
    assert [one.selected_by for one in explorer.history] == ["point 256, 256", "box 10, 20, 100, 80"]
    assert explorer.history[0] is named and "box 10, 20, 100, 80" in explorer._repr_html_()
    assert len(json.loads(explorer.save(tmp_path / "names.json").read_text())["regions"]) == 2
    with pytest.raises(OsmError, match="outside"):
        explorer.click(-5, 5)
    assert len(explorer.history) == 2


def test_by_mouse(explorer: Explorer) -> None:
    figure = explorer.show()
    mouse(explorer, (100, 200), (100, 200))
    assert explorer.history[-1].selected_by == "point 100, 200"
    mouse(explorer, (300, 350), (100, 200))
    assert [round(float(n)) for n in explorer.history[-1].selected_by[4:].split(",")] == [100, 200, 200, 150]
    view, bars, past = figure.axes
    assert len(bars.patches) == len(explorer.history[-1].answer.top) and "point 100, 200" in past.texts[0].get_text()


def test_a_mistake_of_the_mouse_is_told_in_the_figure(explorer: Explorer) -> None:
    explorer.show()
    explorer.request = NamingRequest(mode="colour")
    mouse(explorer, (100, 200), (100, 200))
    assert not explorer.history and explorer.figure is not None
    assert "mode 'colour'" in explorer.figure.axes[0].get_title()
    explorer.request = NamingRequest()
    mouse(explorer, (100, 200), (900, 200))  # let go outside
    assert not explorer.history and "outside" in explorer.figure.axes[0].get_title()
    canvas = explorer.figure.canvas
    canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", canvas, 1, 1, 1))
    assert not explorer.history


def test_it_ships_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_from_top_to_bottom(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("ipympl", reason="ipympl is not installed")
    monkeypatch.setenv("OSM_CHECKPOINT", str(checkpoint))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    new = nbformat.v4.new_code_cell
    segmenter = f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n"
    segmenter += "import standin\nfrom osm.recognition import segmenters\n"
    segmenter += "segmenters.load_segmenter = lambda *a, **k: standin.Areas()"
    clicks = MOUSE + "mouse(explorer, (60, 70), (60, 70)); mouse(explorer, (60, 70), (200, 300))\nexplorer"
    notebook.cells = [new(segmenter), *notebook.cells, new(clicks), new("import matplotlib; matplotlib.get_backend()")]
    nbclient.NotebookClient(notebook, timeout=PATIENCE_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [str(cell.get("outputs", "")) for cell in notebook.cells]
    assert "modes: " in outputs[3] and "jupyter.widget-view" in outputs[5]  # a widget that takes clicks
    assert "point 60, 70" in outputs[-2] and "box 60, 70, 140, 230" in outputs[-2]
    assert "ipympl" in outputs[-1] or "widget" in outputs[-1]
    assert len(json.loads((tmp_path / "names.json").read_text())["regions"]) == 3
