"""The layout and event handlers of the `osm demo` web page.

Importing gradio is slow, so `osm.serving.web` imports this module only when a page is about to be served.
"""

from __future__ import annotations

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
from osm.serving.downloads import DOWNLOADS, JSON, write_download
from osm.serving.engine import DemoPicture, Engine, NamedRegion, parse_names
from osm.serving.page_files import PageFolder, Uploads, read_upload
from osm.terminal import printable

POINT, BOX, PAINT, EVERYTHING = "Point", "Box", "Paint", "Everything"
HINTS = {
    POINT: "Click on a thing in the picture.",
    BOX: "Click on two opposite corners of a box around a thing.",
    PAINT: "Paint over a thing, then press the button.",
    EVERYTHING: "Press the button to find and name all segments of the picture.",
}
BUTTONS = {PAINT: "Name the painted region", EVERYTHING: "Name everything"}
_METHODS = {
    "constrained": "Generate only these names",
    "scored": "Compute the likelihood of each name",
    "mapped": "Generate freely, then choose the nearest name",
}
assert tuple(_METHODS) == METHODS
_CONCURRENT_READS = 4  # number of uploads decoded at the same time, so that a slow upload does not block others
_SHOWN_SIDE = 1400  # maximum side of the displayed image in pixels; a full-size photo would take megabytes per answer


@dataclass
class TabState:
    """The state that gradio stores for each browser tab.

    Attributes:
        picture: the current image.
        corner: the first corner of a box, until the second corner is clicked.
        key: name of the folder that contains the tab's result file; empty before the first result.
        form: the format of the result file.
    """

    picture: DemoPicture | None = None
    corner: tuple[float, float] | None = None
    key: str = ""
    form: str = JSON


@dataclass(frozen=True)
class Limits:
    """Size limits of uploaded images.

    Attributes:
        file_mb: maximum size of a file in MiB.
        megapixels: maximum number of pixels per image, in millions.
        uploads_mb: maximum total size of all pending uploads in MiB, including uploads in progress.
    """

    file_mb: float = 20.0
    megapixels: float = 25.0
    uploads_mb: float = 200.0

    @property
    def pixels(self) -> int:
        """Maximum number of pixels per image."""
        return int(self.megapixels * 1e6)

    @property
    def file_bytes(self) -> int:
        """Maximum size of a file in bytes."""
        return int(self.file_mb * 2**20)


class Page:
    """The event handlers of the demo page, which the function `build` connects to the layout.

    Each event handler returns new values for five components: the message, the image, the answer, the history and the
    download.

    Args:
        engine: names the regions.
        samples: for each sample image, its title and the function that loads the image.
        limits: size limits of uploads.
    """

    def __init__(self, engine: Engine, samples: dict[str, Callable[[], Image.Image]], limits: Limits) -> None:
        self.engine, self.samples, self.limits = engine, samples, limits
        self.folder = PageFolder()
        self.uploads = Uploads(self.folder.uploads, int(limits.uploads_mb * 2**20))

    def upload(self, tab: TabState, path: str) -> list[Any]:
        """Show an uploaded image. The uploaded file is removed after it has been read."""
        file = Path(path)
        try:
            return self._take(tab, DemoPicture(read_upload(file, self.limits.pixels), file.name))
        except OsmError as error:
            return _only_message(markup.error(str(error)))
        finally:
            file.unlink(missing_ok=True)
            self.uploads.remove(file)

    def sample(self, tab: TabState, title: str | None) -> list[Any]:
        """Show the sample image with the given title."""
        if title not in self.samples:
            return _only_message(markup.error("Choose one of the sample pictures in the list"))
        try:
            return self._take(tab, DemoPicture(self.samples[title](), title))
        except OsmError as error:
            return _only_message(markup.error(str(error)))

    def click(self, tab: TabState, by: str, *request: Any, event: gr.SelectData) -> list[Any]:
        """Handle a click on the image, which selects a point or a corner of a box."""
        if tab.picture is None:
            return _no_picture()
        scale = tab.picture.image.width / shown_size(tab.picture.image)[0]
        try:
            x, y = (float(value) * scale for value in event.index)
        except (TypeError, ValueError):
            return _only_message(markup.error("The position of the click is malformed: expected two numbers"))
        if by != BOX:
            return self._answer(tab, lambda picture, w: [self.engine.point(picture, x, y, w)], request)
        if tab.corner is None:
            if not (0 <= x < tab.picture.image.width and 0 <= y < tab.picture.image.height):
                return _only_message(markup.error(f"{x:g}, {y:g} is outside the picture"))
            tab.corner = (x, y)
            marked = _with_cross(_shown(tab.picture.image), x / scale, y / scale)
            return [markup.note(f"First corner: {x:.0f}, {y:.0f}. Click the opposite one"), marked, *_unchanged(3)]
        box = _box(tab.corner, (x, y))
        tab.corner = None
        return self._answer(tab, lambda picture, w: [self.engine.box(picture, box, w)], request)

    def typed(self, tab: TabState, text: str, *request: Any) -> list[Any]:
        """Handle typed coordinates in pixels: `x, y` selects a point, and `x, y, width, height` selects a box."""
        try:
            numbers = [float(part) for part in (text or "").replace(",", " ").split()]
        except ValueError:
            numbers = []
        if len(numbers) == 2:
            x, y = numbers
            return self._answer(tab, lambda picture, w: [self.engine.point(picture, x, y, w)], request)
        if len(numbers) == 4:
            return self._answer(tab, lambda picture, w: [self.engine.box(picture, numbers, w)], request)
        return _only_message(
            markup.error(f"{(text or '')[:60]!r} is not a position: expected x, y or x, y, width, height in pixels")
        )

    def press(self, tab: TabState, by: str, painting: dict[str, Any] | None, *request: Any) -> list[Any]:
        """Handle a click on the button shown in the selection modes Paint and Everything."""
        if by == PAINT:
            return self._answer(
                tab,
                lambda picture, w: [self.engine.painted(picture, painted_mask(painting, picture.image), w)],
                request,
            )
        skipped = 0

        def work(picture: DemoPicture, w: NamingRequest) -> list[NamedRegion]:
            nonlocal skipped
            found, skipped = self.engine.everything(picture, w)
            return found

        result = self._answer(tab, work, request, whole=True)
        if skipped:
            result[0] = markup.note(f"The largest segments are named; {skipped} smaller ones are skipped")
        return result

    def _take(self, tab: TabState, picture: DemoPicture) -> list[Any]:
        tab.picture, tab.corner = picture, None
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
        tab: TabState,
        work: Callable[[DemoPicture, NamingRequest], list[NamedRegion]],
        request: tuple[Any, ...],
        whole: bool = False,
    ) -> list[Any]:
        picture = tab.picture
        tab.corner = None
        if picture is None:
            return _no_picture()
        try:
            asked = parse_request(*request)
            found = work(picture, asked)
        except OsmError as error:
            return _only_message(markup.error(str(error)))
        if tab.picture is not picture:  # the user chose a different image in the meantime
            return _unchanged(5)
        picture.named += found
        labels = [f"{k} {one.answer.text}" if whole else one.answer.text for k, one in enumerate(found, 1)]
        return [
            "",
            _overlay(picture.image, found, labels),
            markup.everything(found) if whole else markup.answer(found[0], asked.method if asked.vocabulary else ""),
            markup.history(picture.named),
            gr.DownloadButton(value=self._file(tab, picture), interactive=True),
        ]

    def choose_form(self, tab: TabState, form: str) -> Any:
        """Change the format of the download, and return the updated download."""
        if form not in DOWNLOADS:
            return gr.skip()
        tab.form = form
        if tab.picture is None or not tab.picture.named:
            return gr.skip()
        return gr.DownloadButton(value=self._file(tab, tab.picture), interactive=True)

    def _file(self, tab: TabState, picture: DemoPicture) -> str:
        """Write a browser tab's result file and return its path. Each new answer overwrites the file."""
        tab.key = tab.key or uuid4().hex
        folder = self.folder.answers / tab.key
        folder.mkdir(exist_ok=True)
        return str(write_download(picture, tab.form, folder))


def build(page: Page, title: str = "What is that? - osm demo") -> gr.Blocks:
    """Lay out the demo page and connect its components to the event handlers."""
    bound_paintings(page.limits.pixels, page.uploads)
    # Every ten minutes (600 seconds), gradio deletes displayed files that are older than an hour (3600 seconds).
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        tab = gr.State(TabState())
        gr.HTML(markup.INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row(equal_height=True):
                    file = gr.UploadButton(
                        "Upload a picture", file_types=["image"], min_width=200, elem_id="osm-upload"
                    )
                    sample = gr.Dropdown(
                        list(page.samples),
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
                form = gr.Dropdown(
                    [(title, name) for name, title in DOWNLOADS.items()],
                    value=JSON,
                    filterable=False,
                    label="Format of the download",
                    elem_id="osm-form",
                )
                download = gr.DownloadButton("Download masks and names", interactive=False, elem_id="osm-download")
        shown = [message, view, answer, history, download]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [view]}
        parts = [by, hint, view, painting, button]
        reset: dict[str, Any] = {"fn": switch, "inputs": [tab, by], "outputs": parts[1:], "api_visibility": "private"}
        read_in_place(file, page.uploads)
        file.upload(page.upload, [tab, file], shown, concurrency_limit=_CONCURRENT_READS, **private).then(**reset)
        sample.input(page.sample, [tab, sample], shown, **private).then(**reset)
        by.change(**reset)
        view.select(_click(page), [tab, by, *request], shown, **private)
        typed.submit(page.typed, [tab, typed, *request], shown, **private)
        form.input(page.choose_form, [tab, form], download, api_visibility="private")
        button.click(page.press, [tab, by, painting, *request], shown, **private)
    without_tracebacks(blocks)
    return blocks


def _request_parts(modes: tuple[str, ...]) -> list[gr.components.Component]:
    """Create the controls for a naming request: mode, vocabulary and method."""
    with gr.Accordion("How it answers", open=False, elem_id="osm-request"):
        mode = gr.Dropdown(
            list(modes),
            value="any",
            filterable=False,
            label="Mode",
            info="Names as in one dataset, or any names",
        )
        names = gr.Textbox(
            label="Only these names, one per line", info="Empty: any name", lines=3, max_lines=8, elem_id="osm-names"
        )
        method = gr.Radio(
            [(text, method) for method, text in _METHODS.items()], value=METHODS[0], label="How they are used"
        )
    return [mode, names, method]


def _click(page: Page) -> Callable[..., list[Any]]:
    def click(tab: TabState, by: str, mode: str, names: str, method: str, event: gr.SelectData) -> list[Any]:
        return page.click(tab, by, mode, names, method, event=event)

    return click


def switch(tab: TabState, by: str) -> list[Any]:
    """Switch the selection mode, and return gradio updates for the hint, the image, the painting and the button."""
    tab.corner = None
    background = _shown(tab.picture.image) if tab.picture is not None and by == PAINT else None
    painting: Any = {"background": background, "layers": [], "composite": background} if background else None
    return [
        _hint(by),
        gr.Image(visible=by != PAINT or background is None),
        gr.ImageEditor(value=painting, visible=background is not None),
        gr.Button(BUTTONS.get(by, ""), visible=by in BUTTONS),
    ]


def parse_request(mode: str, names: str | None, method: str) -> NamingRequest:
    """Convert the values of the page's mode, vocabulary and method controls to a naming request."""
    return NamingRequest(mode, parse_names(names or ""), method)


def painted_mask(painting: dict[str, Any] | None, image: Image.Image) -> np.ndarray:
    """Return the mask of all pixels that the user painted on any layer, as a bool array (H, W) of the image's size."""
    mask = np.zeros(image.size[::-1], bool)
    for layer in (painting or {}).get("layers") or ():
        alpha = Image.fromarray(layer[..., 3] > 0)
        mask |= np.asarray(alpha.resize(image.size, Image.Resampling.NEAREST))
    return mask


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) in pixels at which an image is displayed."""
    scale = min(1.0, _SHOWN_SIDE / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _shown(image: Image.Image) -> Image.Image:
    size = shown_size(image)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _overlay(image: Image.Image, found: list[NamedRegion], labels: list[str]) -> Image.Image:
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


def _unchanged(count: int) -> list[Any]:
    return [gr.skip() for _ in range(count)]


def _only_message(message: str) -> list[Any]:
    return [message, *_unchanged(4)]


def _no_picture() -> list[Any]:
    return _only_message(markup.error("Choose a picture first: upload one or select a sample"))
