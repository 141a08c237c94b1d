"""The page in a real browser: headless Chromium, with every request that it makes written down."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_threads import RunningServer, served
from standin import Areas

from osm.io.images import FORMATS
from osm.io.segmentation import draw_segmentation
from osm.serving.app import AccessRules
from osm.serving.engine import Engine
from osm.serving.http_images import ImageLimits
from osm.serving.page_samples import PageSamples, drawn_scene

pytestmark = pytest.mark.slow

_SECONDS = 20_000  # in milliseconds: for anything to appear

# Texts whose contrast with what is behind them is under WCAG's 4.5 : 1 (those of parts that cannot be used are exempt).
PALE = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = color => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = color => {
        const [r, g, b] = color.slice(0, 3).map(v => v / 255).map(v =>
            v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const color = rgba(getComputedStyle(element).backgroundColor);
            if (color[3] > 200) return color;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll("body *")]
        .filter(e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}) && !e.closest(":disabled"))
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .filter(e => !["STYLE", "SCRIPT", "OPTION"].includes(e.tagName))
        .map(e => {
            const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
            return [e.textContent.trim().slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        })
        .filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.fixture(scope="module")
def asked() -> Iterator[list[str]]:
    """Every host that this process, the server's, asks for an address."""
    hosts: list[str] = []
    whole = socket.getaddrinfo

    def noted(host: Any, *arguments: Any, **more: Any) -> Any:
        hosts.append(str(host))
        return whole(host, *arguments, **more)

    socket.getaddrinfo = noted
    yield hosts
    socket.getaddrinfo = whole


@pytest.fixture(scope="module")
def site(engine: Engine, asked: list[str]) -> Iterator[RunningServer]:
    own = Engine(engine.recognizer, Areas())
    with served(own, images=ImageLimits(file_mb=1, megapixels=1), samples=PageSamples()) as found:
        yield found


class Tab:
    """A tab that has loaded the page; it keeps the hosts it asked, and the page's errors."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.context.set_default_timeout(_SECONDS)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.get_by_role("heading", name="What is that?").wait_for()

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Upload an image").click()
        chooser.value.set_files(path)

    def sample(self, title: str) -> None:
        self.page.get_by_role("button", name=title).click()
        self.page.get_by_role("img", name=f"{title}").first.wait_for()
        self.idle()

    def idle(self) -> None:
        """Wait until no request of the page is under way."""
        self.page.locator("#busy").wait_for(state="hidden")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The position on the screen of shares of the image's width and height."""
        box = self.page.locator("#canvas").bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def click(self, x: float, y: float, **more: Any) -> None:
        self.page.mouse.click(*self.place(x, y), **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=6)
        self.page.mouse.up()

    def objects(self, count: int) -> list[str]:
        """Wait until so many objects are named, and return their cards' texts, the latest first."""
        cards = self.page.locator("#gallery li")
        if count:
            cards.nth(count - 1).wait_for()
        self.idle()
        assert cards.count() == count
        return cards.all_inner_texts()

    def download(self, form: str) -> Path:
        self.page.get_by_label("Format").select_option(label=form)
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name="Download").click()
        return Path(download.value.path())

    def pixels(self) -> np.ndarray:
        """What the canvas shows, (H, W, 3)."""
        shot = self.page.locator("#canvas").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def close(self) -> None:
        """Nothing failed, and nobody else was asked for anything."""
        hosts = {url.split("/")[2].split(":")[0] for url in self.requests if url.startswith("http")}
        self.context.close()
        assert hosts == {"127.0.0.1"} and not self.errors, (hosts, self.errors)


def test_point_box_everything_and_download(browser: Any, site: RunningServer, tmp_path: Path) -> None:
    tab = Tab(browser, site.address)
    drawn_scene(1).save(tmp_path / "street.png")
    tab.upload(tmp_path / "street.png")
    tab.page.get_by_role("img", name="street.png, 512 x 512 pixels").wait_for()
    tab.idle()
    assert tab.page.locator("#canvas").bounding_box()["y"] < 100  # the picture is at the top
    tab.click(0.5, 0.75)
    (card,) = tab.objects(1)
    assert "point 256" in card and "%" in card and "pixels" in card
    assert tab.page.locator("#answer .name").inner_text() and tab.page.locator("#answer tr").count() == 5

    tab.page.get_by_role("radio", name="Box").click()
    tab.drag((0.25, 0.25), (0.75, 0.5))
    card, _ = tab.objects(2)
    assert "box 128, 128, 256, 128" in card and "32768 pixels" in card.replace(",", "")
    document = json.loads(tab.download("JSON of this page").read_text())
    assert document["image"] == "street.png" and len(document["regions"]) == 2
    mask = draw_segmentation(document["regions"][1]["segmentation"], (512, 512))
    assert mask[128:256, 128:384].all() and mask.sum() == 256 * 128

    tab.page.get_by_role("button", name="Everything").click()
    tab.page.get_by_text("segment 1 ").or_(tab.page.get_by_text("segment 2 ")).first.wait_for()
    tab.idle()
    count = tab.page.locator("#gallery li").count()
    assert count > 2
    document = json.loads(tab.download("COCO (RLE)").read_text())
    named = [card for card in tab.page.locator("#gallery li").all_inner_texts() if "no name" not in card]
    assert len(document["annotations"]) <= len(named) and document["images"][0]["file_name"] == "street.png"

    tab.page.locator("#gallery .drop").first.click()
    assert tab.page.locator("#gallery li").count() == count - 1
    tab.page.locator("#gallery .pick").first.click()
    tab.page.locator("#answer .name").wait_for()
    tab.page.get_by_role("button", name="Choose another image").click()
    tab.page.get_by_role("heading", name="What is that?").wait_for()
    assert not tab.page.locator("#objects").is_visible()
    assert not tab.page.locator("#answer").is_visible()  # it was of the image before
    tab.close()


def test_preview_and_points(browser: Any, site: RunningServer) -> None:
    """The segment under the pointer is shown; further points add to the object or remove from it."""
    tab = Tab(browser, site.address)
    tab.sample("Drawn scene 1")
    plain = tab.pixels()
    tab.page.mouse.move(*tab.place(0.3, 0.3))
    tab.page.mouse.move(*tab.place(0.31, 0.3))
    for _ in range(100):
        if (np.abs(tab.pixels() - plain).max(-1) > 20).sum() > 200:
            break
        tab.page.wait_for_timeout(50)
    else:
        raise AssertionError("no preview")
    assert tab.page.locator("#gallery li").count() == 0  # nothing is named by it
    tab.page.mouse.move(2, 2)
    tab.click(0.3, 0.3)
    tab.objects(1)
    tab.page.keyboard.down("Shift")
    tab.click(0.6, 0.6)
    tab.page.keyboard.up("Shift")
    tab.page.get_by_text("2 points").wait_for()
    (card,) = tab.objects(1)
    tab.page.get_by_role("radio", name="Remove from the object").click()
    tab.click(0.9, 0.1)
    tab.page.get_by_text("3 points").wait_for()
    (card,) = tab.objects(1)  # it is still one object
    sent = [url for url in tab.requests if url.endswith("/v1/segment")]
    assert sent
    tab.page.get_by_role("radio", name="New object").click()
    tab.click(0.7, 0.2)
    tab.objects(2)
    # Choosing an object in the gallery shows its answer and its points again.
    tab.page.locator("#gallery .pick").nth(1).click()
    assert tab.page.locator("#gallery li").nth(1).get_attribute("class") == "selected"
    tab.close()


def test_removing_needs_an_object(browser: Any, site: RunningServer) -> None:
    tab = Tab(browser, site.address)
    tab.sample("Drawn scene 1")
    tab.page.get_by_role("radio", name="Remove from the object").click()
    tab.click(0.5, 0.5)
    tab.page.get_by_role("alert").get_by_text("First click on an object").wait_for()
    tab.close()


def test_paint(browser: Any, site: RunningServer) -> None:
    tab = Tab(browser, site.address)
    tab.sample("Drawn scene 1")
    tab.page.get_by_role("radio", name="Paint").click()
    tab.page.get_by_role("button", name="Name the painted region").click()
    tab.page.get_by_text("Nothing is painted").wait_for()
    tab.drag((0.4, 0.5), (0.6, 0.5))
    tab.page.get_by_role("button", name="Name the painted region").click()
    (card,) = tab.objects(1)
    assert "painted" in card
    document = json.loads(tab.download("JSON of this page").read_text())
    mask = draw_segmentation(document["regions"][0]["segmentation"], (512, 512))
    ys, xs = np.nonzero(mask)
    assert abs(ys.mean() - 256) < 8 and abs(xs.mean() - 256) < 8 and 80 < np.ptp(xs) < 150 and mask.mean() < 0.05
    tab.close()


def test_mistakes_are_told_in_a_sentence(browser: Any, site: RunningServer, tmp_path: Path) -> None:
    tab = Tab(browser, site.address)
    (tmp_path / "text.jpg").write_text("no picture")
    tab.upload(tmp_path / "text.jpg")
    tab.page.get_by_text(f"not a readable {FORMATS}").wait_for()
    Image.new("RGB", (1100, 1000)).save(tmp_path / "wide.png")
    tab.upload(tmp_path / "wide.png")
    tab.page.get_by_text("1100 x 1000 pixels; the maximum is 1 million").wait_for()
    (tmp_path / "heavy.png").write_bytes(os.urandom(1_200_000))
    tab.upload(tmp_path / "heavy.png")
    tab.page.get_by_text("but the maximum is 1048576").wait_for()
    # A message goes with the next picture, and the first click after it counts.
    tab.sample("Drawn scene 2")
    assert not tab.page.locator("#message").is_visible()
    tab.click(0.5, 0.5)
    tab.objects(1)
    tab.page.get_by_label("Keyboard input").fill("600, 5")
    tab.page.get_by_role("button", name="Name", exact=True).click()
    tab.page.get_by_text("outside the image, which has 512 x 512 pixels").wait_for()
    tab.page.get_by_label("Keyboard input").fill("here")
    tab.page.get_by_role("button", name="Name", exact=True).click()
    tab.page.get_by_text('"here" is not a position').wait_for()
    tab.close()


def test_any_readable_format(browser: Any, site: RunningServer, tmp_path: Path) -> None:
    """A browser cannot show a TIFF of 16 bits, so the server sends what it sees."""
    Image.fromarray(np.full((40, 60), 30_000, np.uint16)).save(tmp_path / "deep.tif")
    tab = Tab(browser, site.address)
    tab.upload(tmp_path / "deep.tif")
    tab.page.get_by_role("img", name="deep.tif, 60 x 40 pixels").wait_for()
    tab.close()


def test_by_keyboard_alone(browser: Any, site: RunningServer) -> None:
    tab = Tab(browser, site.address)
    tab.page.get_by_role("button", name="Drawn scene 1").wait_for()
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or tab.page.evaluate("document.activeElement === document.body")
        if "Drawn scene 1" in tab.page.evaluate("document.activeElement.textContent"):
            break
    tab.page.keyboard.press("Enter")
    tab.page.get_by_role("img", name="Drawn scene 1").first.wait_for()
    tab.idle()
    seen: list[str] = []
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        where = "document.activeElement.id || document.activeElement.textContent.trim()"
        seen.append(tab.page.evaluate(where))
        if seen[-1] == "typed":
            break
    assert seen[-1] == "typed" and "everything" in seen and "other" in seen, seen
    tab.page.keyboard.type("256, 400")
    tab.page.keyboard.press("Enter")
    (card,) = tab.objects(1)
    assert "point 256, 400" in card
    tab.page.get_by_role("radio", name="Point").focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.get_by_role("radio", name="Box").get_attribute("aria-checked") == "true"
    tab.close()


def test_two_tabs_have_a_picture_each(browser: Any, site: RunningServer) -> None:
    one, other = Tab(browser, site.address), Tab(browser, site.address)
    one.sample("Drawn scene 1")
    other.sample("Drawn scene 2")
    one.click(0.3, 0.5)
    other.click(0.6, 0.5)
    one.objects(1)
    other.objects(1)
    one.click(0.5, 0.5)
    one.objects(2)
    other.objects(1)
    one.close()
    other.close()


def test_a_picture_that_the_server_has_dropped(browser: Any, site: RunningServer) -> None:
    """The page sends it again by itself."""
    tab = Tab(browser, site.address)
    tab.sample("Drawn scene 3")
    site.services.images.stored._files.clear()
    tab.click(0.5, 0.5)
    tab.objects(1)
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Any, site: RunningServer, scheme: str) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    tab = Tab(browser, site.address, **options)
    assert tab.page.evaluate(PALE) == []
    tab.sample("Drawn scene 3")
    tab.page.get_by_text("Naming options").click()
    tab.page.get_by_label("Only these names, one per line").fill("cat\ndog")
    tab.page.touchscreen.tap(*tab.place(0.5, 0.5))
    tab.objects(1)
    assert tab.page.locator("#answer .name").inner_text() in ("cat", "dog")
    for tool in ("Box", "Paint", "Point"):
        tab.page.get_by_role("radio", name=tool).click()
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tool
    assert tab.page.evaluate(PALE) == []
    tab.close()


def test_unsure_names_are_shown(browser: Any, site: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from osm.models.probability_calibration import ProbabilityCalibration

    model = site.worker.engine.recognizer.model
    monkeypatch.setattr(model, "calibration", ProbabilityCalibration(slope=1.0, intercept=-20.0))
    tab = Tab(browser, site.address)
    tab.sample("Drawn scene 1")
    tab.click(0.5, 0.5)
    (card,) = tab.objects(1)
    assert "unsure" in card and "unsure" in tab.page.locator("#answer").inner_text()
    assert "likely to be correct" in tab.page.locator("#answer").inner_text()
    tab.close()


def test_without_a_segmenter(browser: Any, engine: Engine) -> None:
    """Boxes, paintings and typed positions are named as they are; what needs a segmenter cannot be chosen."""
    with served(Engine(engine.recognizer), samples=PageSamples()) as plain:
        tab = Tab(browser, plain.address)
        tab.sample("Drawn scene 1")
        assert tab.page.get_by_role("radio", name="Point").is_disabled()
        assert tab.page.get_by_role("button", name="Everything").is_disabled()
        tab.drag((0.2, 0.2), (0.6, 0.6))
        tab.objects(1)
        tab.page.get_by_label("Keyboard input").fill("256, 256")
        tab.page.keyboard.press("Enter")
        card, _ = tab.objects(2)
        assert "point 256, 256" in card and not tab.page.locator("#message").is_visible()
        tab.close()


def test_a_key_in_the_address_and_one_that_is_typed(browser: Any, engine: Engine) -> None:
    with served(engine, AccessRules(api_key="the-right-key"), samples=PageSamples()) as closed:
        tab = Tab(browser, f"{closed.address}/#key=the-right-key")
        tab.sample("Drawn scene 1")
        assert "key" not in tab.page.url
        tab.close()
        tab = Tab(browser, closed.address)
        tab.page.get_by_label("This server needs an API key").fill("the-right-key")
        tab.page.get_by_role("button", name="Continue").click()
        tab.sample("Drawn scene 1")
        tab.close()


def test_the_server_asked_nobody(site: RunningServer, asked: list[str]) -> None:
    """The last one: after all that the others did."""
    assert set(asked) <= {"127.0.0.1", "localhost", "None"}
