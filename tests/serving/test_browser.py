"""The page in a real browser: headless Chromium, with every request that it makes written down."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from osm.io.images import FORMATS
from osm.serving import web
from osm.serving.engine import Engine
from osm.serving.page_files import drawn_scene, sample_images

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="gradio is not installed")

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
    return [...document.querySelectorAll(".gradio-container *")]
        .filter(e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}) && !e.closest(":disabled"))
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .filter(e => !["STYLE", "SCRIPT"].includes(e.tagName))
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
def address(engine: Engine, asked: list[str]) -> Iterator[str]:
    web.import_gradio()
    from osm.serving.page import Limits, Page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = web.PageServer(Page(engine, sample_images(), Limits(file_mb=1, megapixels=1)), "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


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
            self.page.get_by_role("button", name="Upload a picture").click()
        chooser.value.set_files(path)

    def sample(self, title: str) -> None:
        self.page.get_by_label("Or a sample picture").click()
        self.page.get_by_role("option", name=title).click()
        self.page.get_by_alt_text(title).wait_for()

    def picture_is_there(self) -> None:
        self.page.wait_for_function("(e => e && e.complete && e.naturalWidth)(document.querySelector('#osm-view img'))")

    def click(self, x: float, y: float) -> None:
        """At shares of the picture's width and height."""
        image = self.page.locator("#osm-view img")
        self.picture_is_there()
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        image.click(position={"x": box["width"] * x, "y": box["height"] * y})

    def ask(self, x: float, y: float) -> None:
        """A click that names a point. The page drops one that comes while it is still changing: then once more."""
        rows = self.page.locator("#osm-history tbody tr").count()
        for left in (2, 1, 0):
            self.click(x, y)
            try:
                more = "n => document.querySelectorAll('#osm-history tbody tr').length > n"
                self.page.wait_for_function(more, arg=rows, timeout=8000)
                return
            except Exception:
                if not left:
                    raise

    def history(self, text: str) -> None:
        self.page.locator("#osm-history tbody tr", has_text=text).first.wait_for()

    def name(self) -> str:
        self.page.locator("#osm-answer .osm-name").wait_for()
        return self.page.locator("#osm-answer .osm-name").inner_text()

    def close(self) -> None:
        """Nothing failed, and nobody else was asked for anything."""
        hosts = {url.split("/")[2].split(":")[0] for url in self.requests if "://" in url}
        self.context.close()
        assert hosts == {"127.0.0.1"} and not self.errors


def test_point_box_everything_and_download(browser: Any, address: str, tmp_path: Path) -> None:
    tab = Tab(browser, address)
    drawn_scene(1).save(tmp_path / "street.png")
    tab.upload(tmp_path / "street.png")
    tab.page.get_by_alt_text("street.png, 512 x 512 pixels").wait_for()
    tab.ask(0.5, 0.75)
    assert "%" in tab.name()
    tab.history("point")
    assert tab.page.locator("#osm-answer tbody tr").count() == 5

    tab.page.get_by_label("Box").check()
    tab.page.get_by_text("two opposite corners").wait_for()
    tab.click(0.25, 0.25)
    tab.page.get_by_text("First corner").wait_for()
    tab.click(0.75, 0.5)
    tab.history("box")

    tab.page.get_by_label("Everything").check()
    tab.page.get_by_role("button", name="Name everything").click()
    tab.page.get_by_text("Everything that was found").wait_for()
    rows = tab.page.locator("#osm-answer tbody tr").count()
    assert rows > 2
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download").click()
    document = json.loads(Path(download.value.path()).read_text())
    assert document["image"] == "street.png" and len(document["regions"]) == rows + 2
    assert document["regions"][0]["segmentation"]["size"] == [512, 512]

    tab.page.get_by_label("Format of the download").click()
    tab.page.get_by_role("option", name="COCO (RLE)").click()
    for _ in range(50):  # until the page has the answer to the choice
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="Download").click()
        if download.value.suggested_filename == "labels.json":
            break
    named = sum(bool(region.get("name")) for region in document["regions"])
    document = json.loads(Path(download.value.path()).read_text())
    assert document["images"][0]["file_name"] == "street.png"
    assert len(document["annotations"]) == named and document["annotations"][0]["segmentation"]["size"] == [512, 512]
    tab.close()


def test_paint(browser: Any, address: str) -> None:
    tab = Tab(browser, address)
    tab.sample("Drawn scene 1")
    tab.page.get_by_label("Paint").check()
    canvas = tab.page.locator("#osm-painting canvas").first
    canvas.wait_for()
    answered = """() => document.querySelector('#osm-history tbody tr')
        || document.querySelector('#osm-message')?.textContent.includes('Nothing is painted')"""
    for _ in range(5):  # a stroke before the editor has drawn the picture is lost, and nothing tells when it has
        tab.page.wait_for_timeout(1500)
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        tab.page.mouse.move(x, y)
        tab.page.mouse.down()
        tab.page.mouse.move(x + 60, y, steps=8)
        tab.page.mouse.up()
        tab.page.wait_for_timeout(500)
        tab.page.get_by_role("button", name="Name the painted region").click()
        tab.page.wait_for_function(answered)
        if tab.page.locator("#osm-history tbody tr").count():
            break
    tab.history("painted")
    assert int(tab.page.locator("#osm-history tbody td").nth(3).inner_text()) in range(500, 50_000)
    tab.close()


def test_mistakes_are_told_in_a_sentence(browser: Any, address: str, tmp_path: Path) -> None:
    tab = Tab(browser, address)
    tab.page.locator("#osm-typed textarea").fill("5, 5")
    tab.page.locator("#osm-typed textarea").press("Enter")
    tab.page.get_by_text("Choose a picture first").wait_for()
    (tmp_path / "text.jpg").write_text("no picture")
    tab.upload(tmp_path / "text.jpg")
    tab.page.get_by_text(f"text.jpg is not a readable image: expected a {FORMATS}.").wait_for()
    Image.new("RGB", (1100, 1000)).save(tmp_path / "wide.png")
    tab.upload(tmp_path / "wide.png")
    tab.page.get_by_text("wide.png has 1100 x 1000 pixels, but the maximum is 1 million.").wait_for()
    (tmp_path / "heavy.png").write_bytes(os.urandom(1_200_000))
    tab.upload(tmp_path / "heavy.png")
    tab.page.get_by_text("exceed the maximum allowed size of 1").wait_for()
    assert "Traceback" not in tab.page.content()
    tab.close()


def test_by_keyboard_alone(browser: Any, address: str) -> None:
    tab = Tab(browser, address)
    seen: list[str] = []
    for _ in range(40):  # the picture's arrival may take the focus away, and tabbing then begins anew
        tab.page.keyboard.press("Tab")
        seen.append(tab.page.evaluate("document.activeElement.closest('[id^=osm-]')?.id || ''"))
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert not seen[-1] or outline != "none", seen  # where one is can be seen
        if seen[-1] == "osm-sample" and seen.count("osm-sample") == 1:
            tab.page.keyboard.press("ArrowDown")
            tab.page.keyboard.press("Enter")
            tab.page.get_by_alt_text("Drawn scene").wait_for()
            tab.picture_is_there()
        if seen[-1] == "osm-typed":
            break
    assert [place for k, place in enumerate(seen) if place and place not in seen[:k]] == [
        "osm-upload",
        "osm-sample",
        "osm-by",
        "osm-view",
        "osm-typed",
    ]
    tab.page.keyboard.type("256, 400")
    tab.page.keyboard.press("Enter")
    assert "%" in tab.name()
    tab.history("point 256, 400")
    tab.close()


def test_two_tabs_have_a_picture_each(browser: Any, address: str) -> None:
    one, other = Tab(browser, address), Tab(browser, address)
    one.sample("Drawn scene 1")
    other.sample("Drawn scene 2")
    for tab, x in ((one, 0.3), (other, 0.6), (one, 0.5)):
        tab.ask(x, 0.5)
        tab.history(f"point {x * 512:.0f}"[:8])
    assert one.page.locator("#osm-history tbody tr").count() == 2
    assert other.page.locator("#osm-history tbody tr").count() == 1
    assert one.page.get_by_alt_text("Drawn scene 1").count() == other.page.get_by_alt_text("Drawn scene 2").count() == 1
    one.close()
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Any, address: str, scheme: str) -> None:
    options = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    tab = Tab(browser, address, **options)
    tab.sample("Drawn scene 3")
    tab.page.get_by_text("How it answers").click()
    tab.page.get_by_label("Only these names, one per line").fill("cat\ndog")
    tab.ask(0.5, 0.5)
    assert tab.name().split()[0] in ("cat", "dog")
    for by in ("Box", "Paint", "Everything"):
        tab.page.get_by_label(by).check()
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), by
    assert tab.page.evaluate(PALE) == []
    tab.close()


def test_the_server_asked_nobody(address: str, asked: list[str]) -> None:
    """The last one: after all that the others did."""
    assert set(asked) <= {"127.0.0.1", "localhost", "None"}
