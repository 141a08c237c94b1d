#!/usr/bin/env python3
"""Draws docs/images/demo.jpg: a box on the page of `osm demo`, in a headless Chromium.

    python3 scripts/draw_demo_picture.py CHECKPOINT [--picture FILE] [--place X,Y,W,H] [--output docs/images/demo.jpg]

Without --picture, the image is scikit-image's coffee (by Rachel Michetti, CC0). The script needs Chromium and `pip
install '.[test]'`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
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

    command = [sys.executable, "-m", "osm", "demo", "--checkpoint", args.checkpoint, "--port", str(PORT)]
    command += ["--segmenter", args.segmenter]
    command += ["--sam_checkpoint", args.sam_checkpoint] if args.sam_checkpoint else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # the server has started
        shot = photograph(args.picture, args.place, args.width, args.dark)
    finally:
        process.terminate()
        process.wait()

    from PIL import Image

    Image.open(BytesIO(shot)).convert("RGB").save(args.output, quality=85)
    return 0


def photograph(picture: Path, place: str, width: int, dark: bool) -> bytes:
    """A PNG of the page after a place of a picture was named."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", is_mobile=width < 600
        )
        page.goto(f"http://127.0.0.1:{PORT}")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Upload an image").click()
        chooser.value.set_files(picture)
        page.locator("#canvas").wait_for()
        page.locator("#busy").wait_for(state="hidden")
        page.locator("#typed").fill(place)
        page.locator("#typed").press("Enter")
        page.locator("#answer .name").wait_for(timeout=120_000)
        page.wait_for_timeout(500)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        shot = page.screenshot(full_page=True)
        browser.close()
    return shot


if __name__ == "__main__":
    sys.exit(main())
