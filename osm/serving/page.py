"""The page in the browser. It imports gradio: `osm.serving.web` loads it when a page is to be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from osm.errors import OsmError
from osm.labeling.naming import NamingRequest
from osm.recognition.draw import draw_names
from osm.recognition.recognizer import METHODS
from osm.serving import markup
from osm.serving.calls import bound_paintings, read_in_place, without_tracebacks
from osm.serving.engine import Engine, Named, Picture, names_of
from osm.serving.samples import uploaded
from osm.serving.storage import PageFolder, Uploads
from osm.terminal import printable

POINT, BOX, PAINT, EVERYTHING = "Point", "Box", "Paint", "Everything"
HINTS = {
    POINT: "Click on a thing in the picture.",
    BOX: "Click on two opposite corners of a box around a thing.",
    PAINT: "Paint over a thing, then press the button.",
    EVERYTHING: "Press the button: the picture is cut into segments, and each gets a name.",
}
BUTTONS = {PAINT: "Name what is painted", EVERYTHING: "Name everything"}
_METHODS = {
    "constrained": "Only these can be written",
    "scored": "Each one's exact likelihood",
    "mapped": "Written freely, then the nearest",
}
assert tuple(_METHODS) == METHODS
_UPLOADS_AT_ONCE = 4  # are read: one that takes seconds does not hold up the others
_SHOWN_SIDE = 1400  # of the picture on the page: a photo of a phone would be megabytes with every answer


@dataclass
class Visit:
    """What one tab of a browser sees; gradio keeps one for each."""

    picture: Picture | None = None
    corner: tuple[float, float] | None = None  # of a box, until its second one is clicked
    key: str = ""


@dataclass(frozen=True)
class Limits:
    """Of uploads: their bytes are counted where they arrive, their pixels once they are there.

    Attributes:
        uploads_mb: of all files that arrived or are arriving, and were not read yet.
    """

    file_mb: float = 20.0
    megapixels: float = 25.0
    uploads_mb: float = 200.0

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)

    @property
    def file_bytes(self) -> int:
        return int(self.file_mb * 2**20)


class Page:
    """What the page's parts do when they are used; `build` lays them out.

    Each handler returns values for message, picture, answer, history and download, in that order.
    """

    def __init__(self, engine: Engine, pictures: dict[str, Callable[[], Image.Image]], limits: Limits) -> None:
        self.engine, self.pictures, self.limits = engine, pictures, limits
        self.folder = PageFolder()
        self.uploads = Uploads(self.folder.uploads, int(limits.uploads_mb * 2**20))

    def upload(self, visit: Visit, path: str) -> list[Any]:
        """Takes an uploaded file, which is removed once it is read."""
        file = Path(path)
        try:
            return self._take(visit, Picture(uploaded(file, self.limits.pixels), file.name))
        except OsmError as error:
            return _told(markup.error(str(error)))
        finally:
            file.unlink(missing_ok=True)
            self.uploads.remove(file)

    def sample(self, visit: Visit, title: str | None) -> list[Any]:
        if title not in self.pictures:
            return _told(markup.error("Choose one of the sample pictures in the list"))
        try:
            return self._take(visit, Picture(self.pictures[title](), title))
        except OsmError as error:
            return _told(markup.error(str(error)))

    def click(self, visit: Visit, by: str, *request: Any, event: gr.SelectData) -> list[Any]:
        """A click on the picture: a point, or a corner of a box."""
        if visit.picture is None:
            return _none()
        scale = visit.picture.image.width / shown_size(visit.picture.image)[0]
        try:
            x, y = (float(value) * scale for value in event.index)
        except (TypeError, ValueError):
            return _told(markup.error("The click is at no place: two numbers are needed"))
        if by != BOX:
            return self._answer(visit, lambda picture, w: [self.engine.point(picture, x, y, w)], request)
        if visit.corner is None:
            if not (0 <= x < visit.picture.image.width and 0 <= y < visit.picture.image.height):
                return _told(markup.error(f"{x:g}, {y:g} is outside of the picture"))
            visit.corner = (x, y)
            marked = _with_cross(_shown(visit.picture.image), x / scale, y / scale)
            return [markup.note(f"First corner: {x:.0f}, {y:.0f}. Click the opposite one"), marked, *_same(3)]
        box = _box(visit.corner, (x, y))
        visit.corner = None
        return self._answer(visit, lambda picture, w: [self.engine.box(picture, box, w)], request)

    def typed(self, visit: Visit, text: str, *request: Any) -> list[Any]:
        """`x, y` or `x, y, width, height` in pixels: what a click does, without a mouse."""
        try:
            numbers = [float(part) for part in (text or "").replace(",", " ").split()]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            x, y = numbers
            return self._answer(visit, lambda picture, w: [self.engine.point(picture, x, y, w)], request)
        if len(numbers) == 4:
            return self._answer(visit, lambda picture, w: [self.engine.box(picture, numbers, w)], request)
        return _told(
            markup.error(f"{(text or '')[:60]!r} is no place: x, y or x, y, width, height are needed, in pixels")
        )

    def press(self, visit: Visit, by: str, painting: dict[str, Any] | None, *request: Any) -> list[Any]:
        """The button of Paint and of Everything."""
        if by == PAINT:
            return self._answer(
                visit,
                lambda picture, w: [self.engine.painted(picture, painted_mask(painting, picture.image), w)],
                request,
            )
        left_out = 0

        def work(picture: Picture, w: NamingRequest) -> list[Named]:
            nonlocal left_out
            found, left_out = self.engine.everything(picture, w)
            return found

        result = self._answer(visit, work, request, whole=True)
        if left_out:
            result[0] = markup.note(f"The largest segments are named; {left_out} smaller ones are left out")
        return result

    def _take(self, visit: Visit, picture: Picture) -> list[Any]:
        visit.picture, visit.corner = picture, None
        size = f"{picture.image.width} x {picture.image.height} pixels"
        return [
            markup.note(f"{picture.title}, {size}"),
            gr.Image(_shown(picture.image), alt_text=printable(f"{picture.title}, {size}")),
            "",
            markup.history([]),
            gr.DownloadButton(interactive=False),
        ]

    def _answer(
        self,
        visit: Visit,
        work: Callable[[Picture, NamingRequest], list[Named]],
        request: tuple[Any, ...],
        whole: bool = False,
    ) -> list[Any]:
        picture = visit.picture
        visit.corner = None
        if picture is None:
            return _none()
        try:
            asked = request_of(*request)
            found = work(picture, asked)
        except OsmError as error:
            return _told(markup.error(str(error)))
        if visit.picture is not picture:  # another one was chosen meanwhile, and is shown
            return _same(5)
        picture.named += found
        labels = [f"{k} {one.answer.text}" if whole else one.answer.text for k, one in enumerate(found, 1)]
        return [
            "",
            _overlay(picture.image, found, labels),
            markup.everything(found) if whole else markup.answer(found[0], asked.method if asked.vocabulary else ""),
            markup.history(picture.named),
            gr.DownloadButton(value=self._file(visit, picture), interactive=True),
        ]

    def _file(self, visit: Visit, picture: Picture) -> str:
        """One file a visit, written anew with every answer."""
        visit.key = visit.key or uuid4().hex
        path = self.folder.answers / visit.key / "names.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(picture.document(), indent=1), encoding="utf-8")
        return str(path)


def build(page: Page, title: str = "What is that? - osm demo") -> gr.Blocks:
    """The page's parts, and what each of them calls."""
    bound_paintings(page.limits.pixels, page.uploads)
    # What the page shows is removed from the disk an hour after.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        visit = gr.State(Visit())
        gr.HTML(markup.INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row(equal_height=True):
                    file = gr.UploadButton(
                        "Upload a picture", file_types=["image"], min_width=200, elem_id="osm-upload"
                    )
                    sample = gr.Dropdown(
                        list(page.pictures),
                        value=None,
                        label="Or a sample picture",
                        min_width=200,
                        filterable=False,
                        elem_id="osm-sample",
                    )
                by = gr.Radio(list(HINTS), value=POINT, label="Choose by", elem_id="osm-by")
                hint = gr.HTML(_hint(POINT))
                message = gr.HTML("", elem_id="osm-message")
                view = gr.Image(
                    label="Picture", interactive=False, buttons=["fullscreen"], format="jpeg", elem_id="osm-view"
                )
                painting = gr.ImageEditor(
                    label="Picture to paint on",
                    visible=False,
                    sources=(),
                    transforms=(),
                    layers=False,
                    format="png",
                    brush=gr.Brush(default_size=24, colors=[("#e69f00", 0.6)], color_mode="fixed"),
                    buttons=[],
                    elem_id="osm-painting",
                )
                button = gr.Button(BUTTONS[PAINT], variant="primary", visible=False, elem_id="osm-button")
                typed = gr.Textbox(
                    label="Without a mouse: x, y or x, y, width, height in pixels, then Enter",
                    placeholder="120, 80",
                    elem_id="osm-typed",
                )
            with gr.Column(scale=2, min_width=300):
                answer = gr.HTML("", elem_id="osm-answer")
                request = _request_parts(page.engine.modes)
                history = gr.HTML(markup.history([]), elem_id="osm-history")
                download = gr.DownloadButton(
                    "Download masks and names (JSON)", interactive=False, elem_id="osm-download"
                )
        shown = [message, view, answer, history, download]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [view]}
        parts = [by, hint, view, painting, button]
        reset: dict[str, Any] = {"fn": switch, "inputs": [visit, by], "outputs": parts[1:], "api_visibility": "private"}
        read_in_place(file, page.uploads)
        file.upload(page.upload, [visit, file], shown, concurrency_limit=_UPLOADS_AT_ONCE, **private).then(**reset)
        sample.input(page.sample, [visit, sample], shown, **private).then(**reset)
        by.change(**reset)
        view.select(_click(page), [visit, by, *request], shown, **private)
        typed.submit(page.typed, [visit, typed, *request], shown, **private)
        button.click(page.press, [visit, by, painting, *request], shown, **private)
    without_tracebacks(blocks)
    return blocks


def _request_parts(modes: tuple[str, ...]) -> list[gr.components.Component]:
    """Mode, list of names, and how it is used."""
    with gr.Accordion("How it answers", open=False, elem_id="osm-request"):
        mode = gr.Dropdown(
            list(modes),
            value="any",
            filterable=False,
            label="Mode",
            info="Names in the manner of one data set, or of any",
        )
        names = gr.Textbox(
            label="Only these names, one a line", info="Empty: any name", lines=3, max_lines=8, elem_id="osm-names"
        )
        method = gr.Radio(
            [(text, method) for method, text in _METHODS.items()], value=METHODS[0], label="How they are used"
        )
    return [mode, names, method]


def _click(page: Page) -> Callable[..., list[Any]]:
    def click(visit: Visit, by: str, mode: str, names: str, method: str, event: gr.SelectData) -> list[Any]:
        return page.click(visit, by, mode, names, method, event=event)

    return click


def switch(visit: Visit, by: str) -> list[Any]:
    """Shows what a way of choosing needs: hint, picture, painting, button."""
    visit.corner = None
    background = _shown(visit.picture.image) if visit.picture is not None and by == PAINT else None
    painting: Any = {"background": background, "layers": [], "composite": background} if background else None
    return [
        _hint(by),
        gr.Image(visible=by != PAINT or background is None),
        gr.ImageEditor(value=painting, visible=background is not None),
        gr.Button(BUTTONS.get(by, ""), visible=by in BUTTONS),
    ]


def request_of(mode: str, names: str | None, method: str) -> NamingRequest:
    return NamingRequest(mode, names_of(names or ""), method)


def painted_mask(painting: dict[str, Any] | None, image: Image.Image) -> np.ndarray:
    """Where any layer of gradio's editor has colour, bool (H, W) at the picture's size."""
    mask = np.zeros(image.size[::-1], bool)
    for layer in (painting or {}).get("layers") or ():
        alpha = Image.fromarray(layer[..., 3] > 0)
        mask |= np.asarray(alpha.resize(image.size, Image.Resampling.NEAREST))
    return mask


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) at which a picture is sent to the browser."""
    scale = min(1.0, _SHOWN_SIDE / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _shown(image: Image.Image) -> Image.Image:
    size = shown_size(image)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _overlay(image: Image.Image, found: list[Named], labels: list[str]) -> Image.Image:
    size = shown_size(image)
    masks = [np.asarray(Image.fromarray(one.mask).resize(size, Image.Resampling.NEAREST)) for one in found]
    return draw_names(_shown(image), np.stack(masks), labels, alpha=0.4)


def _with_cross(image: Image.Image, x: float, y: float) -> Image.Image:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    arm = max(8, max(image.size) // 40)
    for width, color in ((5, (0, 0, 0)), (2, (255, 255, 255))):
        draw.line([(x - arm, y), (x + arm, y)], color, width)
        draw.line([(x, y - arm), (x, y + arm)], color, width)
    return image


def _box(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float, float, float]:
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, second, strict=True))
    return left, top, right - left, bottom - top


def _hint(by: str) -> str:
    return f'<p class="osm-hint">{HINTS[by]}</p>'


def _same(count: int) -> list[Any]:
    return [gr.skip() for _ in range(count)]


def _told(message: str) -> list[Any]:
    return [message, *_same(4)]


def _none() -> list[Any]:
    return _told(markup.error("Choose a picture first: upload one, or take a sample"))
