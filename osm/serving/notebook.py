"""A notebook widget that shows an image and names the regions that the user clicks on or draws a box around.

The widget works with any interactive matplotlib backend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from osm.errors import OsmError
from osm.io.images import as_rgb
from osm.labeling.naming import NamingRequest
from osm.recognition.draw import draw_names
from osm.serving import notebook_html
from osm.serving.engine import DemoPicture, Engine, NamedRegion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAG = 4.0  # in screen pixels; a shorter drag counts as a click
_LINES = 8  # number of history entries in the figure; the HTML table has all of them
_ORANGE = "#e69f00"


class Explorer:
    """An interactive image in a notebook, and the regions named in the image.

    >>> explorer = Explorer(load_engine("runs/osm_small/final"), "street.jpg")
    >>> explorer.show()  # click on an object, or drag a box around it
    >>> explorer.click(120, 80).answer.text  # the same with coordinates

    In a notebook, an `Explorer` is displayed as an HTML table of all named regions.

    Args:
        engine: the engine that names the regions.
        image: a path, a PIL image or a uint8 array (H, W, 3).
        request: naming options. The attribute `request` may be replaced at any time.
    """

    def __init__(
        self, engine: Engine, image: Image.Image | np.ndarray | str | Path, request: NamingRequest | None = None
    ) -> None:
        title = Path(image).name if isinstance(image, (str, Path)) else "picture"
        self.engine, self.picture = engine, DemoPicture(as_rgb(image), title)
        self.request = request or NamingRequest()
        self.figure: Figure | None = None
        self._pressed: Any = None  # the event of the pressed mouse button
        self._rubber: Any = None  # the rectangle that is being drawn

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the image in pixels."""
        return self.picture.image.size

    @property
    def history(self) -> list[NamedRegion]:
        """All regions named so far, oldest first."""
        return self.picture.named

    def click(self, x: float, y: float) -> NamedRegion:
        """Name the object at (x, y) in pixels.

        Raises:
            OsmError: the point is outside the image.
        """
        return self._keep(self.engine.point(self.picture, x, y, self.request))

    def box(self, x: float, y: float, width: float, height: float) -> NamedRegion:
        """Name the object in a box, given in pixels.

        Raises:
            OsmError: the box has no area or starts outside the image.
        """
        return self._keep(self.engine.box(self.picture, (x, y, width, height), self.request))

    def save(self, path: str | Path) -> Path:
        """Write the masks (as COCO RLEs), names and probabilities of all named regions to a JSON file."""
        path = Path(path)
        path.write_text(json.dumps(self.picture.document(), indent=1), encoding="utf-8")
        return path

    def show(self) -> Figure:
        """Show the clickable image, the most likely names for the latest region, and the history of named regions."""
        from matplotlib import pyplot as plt

        self.figure = plt.figure(figsize=(9, 5))
        parts = self.figure.add_gridspec(2, 2, width_ratios=(2, 1), left=0.02, right=0.96, top=0.9, bottom=0.08)
        # The figure has three axes: the image, the bar chart of names, and the history, in that order.
        for place in (parts[:, 0], parts[0, 1], parts[1, 1]):
            self.figure.add_subplot(place)
        canvas = self.figure.canvas
        canvas.mpl_connect("button_press_event", self._press)
        canvas.mpl_connect("motion_notify_event", self._move)
        canvas.mpl_connect("button_release_event", self._release)
        self._draw()
        return self.figure

    def _repr_html_(self) -> str:
        return notebook_html.history(self.history)

    def _keep(self, found: NamedRegion) -> NamedRegion:
        self.history.append(found)
        self._draw()
        return found

    # -- the figure ----------------------------------------------------------------------------------------------------

    def _draw(self, message: str = "Click on a thing, or drag a box around it") -> None:
        if self.figure is None:
            return
        view, bars, past = self.figure.axes
        for axes in (view, bars, past):
            axes.clear()
            axes.set_axis_off()
        shown = self.picture.image
        if self.history:
            last = self.history[-1]
            shown = draw_names(shown, last.mask[None], [last.answer.text], alpha=0.4)
            _draw_bars(bars, last)
        view.imshow(np.asarray(shown))
        view.set_title(message, fontsize=10)
        past.set_title("Named so far", fontsize=10, loc="left")
        lines = [
            f"{one.answer.text or 'no name'}  {one.answer.prob:.0%}  ({one.selected_by})" for one in self.history[::-1]
        ]
        past.text(0, 1, "\n".join(lines[:_LINES]), va="top", fontsize=8, parse_math=False)
        self.figure.canvas.draw_idle()

    def _ours(self, event: Any) -> bool:
        """Return whether a mouse event is a left click on the image while no toolbar tool (zoom or pan) is active."""
        assert self.figure is not None
        toolbar = self.figure.canvas.toolbar
        return event.inaxes is self.figure.axes[0] and event.button == 1 and not (toolbar and toolbar.mode)

    def _press(self, event: Any) -> None:
        self._pressed = event if self._ours(event) else None

    def _move(self, event: Any) -> None:
        if self._pressed is None or self.figure is None or event.inaxes is not self.figure.axes[0]:
            return
        if self._rubber is None:
            from matplotlib.patches import Rectangle

            self._rubber = Rectangle((0, 0), 0, 0, fill=False, edgecolor=_ORANGE, linewidth=2)
            event.inaxes.add_patch(self._rubber)
        x, y, width, height = _corners(self._pressed, event)
        self._rubber.set_bounds(x, y, width, height)
        self.figure.canvas.draw_idle()

    def _release(self, event: Any) -> None:
        start, self._pressed, self._rubber = self._pressed, None, None
        if start is None:
            return
        if event.inaxes is not start.inaxes:
            self._draw("The box ended outside the picture: drag it again")
            return
        if np.hypot(event.x - start.x, event.y - start.y) < _DRAG:
            self._try(lambda: self.click(start.xdata, start.ydata))
        else:
            self._try(lambda: self.box(*_corners(start, event)))

    def _try(self, work: Callable[[], NamedRegion]) -> None:
        try:
            work()
        except OsmError as error:  # an exception in an event handler would not be visible
            self._draw(str(error))


def _corners(start: Any, end: Any) -> tuple[float, float, float, float]:
    left, right = sorted((start.xdata, end.xdata))
    top, bottom = sorted((start.ydata, end.ydata))
    left, top = (
        max(0.0, left),
        max(0.0, top),
    )  # 0 is the center of the first pixel, so the pixel's edge is negative
    return left, top, right - left, bottom - top


def _draw_bars(axes: Any, named: NamedRegion) -> None:
    top = named.answer.top
    maybe = "unsure: maybe " if named.answer.unsure else ""
    axes.set_title(
        f"{maybe}{named.answer.text or 'no name'}  {notebook_html.likely_share(named.answer)}", fontsize=12, loc="left"
    )
    axes.barh(range(len(top)), [other.prob or other.cosine or 0.0 for other in top], color=_ORANGE)
    for place, other in enumerate(top):
        axes.text(
            0.01,
            place,
            f"{other.text}  {notebook_html.candidate_value(other)}",
            va="center",
            fontsize=9,
            parse_math=False,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(4.5, -0.5)
