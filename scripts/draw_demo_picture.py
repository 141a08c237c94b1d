#!/usr/bin/env python3
"""Draws docs/images/demo.jpg: a box on the page of `osm demo`, in a headless Chromium.

    python3 scripts/draw_demo_picture.py CHECKPOINT [--picture FILE] [--place X,Y,W,H] [--output docs/images/demo.jpg]

Without --picture it is scikit-image's coffee (by Rachel Michetti, CC0). It needs Chromium, and `pip install '.[test]'`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PORT = 7899


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--segmenter", default="auto")
    parser.add_argument("--sam_checkpoint")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--place", default="150,10,270,290", help="x,y or x,y,width,height in pixels [%(default)s]")
    parser.add_argument("--width", type=int, default=1200, help="of the window [%(default)s]")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--output", default="docs/images/demo.jpg")
    args = parser.parse_args()
    if args.picture is None:
        from skimage import data

        args.picture = Path(data.__file__).parent / "coffee.png"

    from osm.serving import web

    web.import_gradio()
    from osm.serving.engine import load_engine
    from osm.serving.page import Limits, Page

    engine = load_engine(args.checkpoint, args.segmenter, args.sam_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(args.picture, folder)
        from osm.serving.page_files import sample_images

        blocks = web.PageServer(Page(engine, sample_images(Path(folder)), Limits()), "127.0.0.1", PORT)
        shot = photograph(args.picture.name, args.place, args.width, args.dark)
    blocks.close()

    from PIL import Image

    Image.open(BytesIO(shot)).convert("RGB").save(args.output, quality=85)
    return 0


def photograph(title: str, place: str, width: int, dark: bool) -> bytes:
    """A PNG of the page after a place of a sample picture was named."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", is_mobile=width < 600
        )
        page.goto(f"http://127.0.0.1:{PORT}")
        page.get_by_label("Or a sample picture").click()
        page.get_by_role("option", name=title).click()
        page.get_by_alt_text(title).wait_for()
        page.locator("#osm-typed textarea").fill(place)
        page.locator("#osm-typed textarea").press("Enter")
        page.locator("#osm-answer .osm-name").wait_for(timeout=120_000)
        page.wait_for_timeout(1000)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        shot = page.screenshot(full_page=True)
        browser.close()
    return shot


if __name__ == "__main__":
    sys.exit(main())
