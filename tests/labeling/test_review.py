"""The review page, driven in a real browser, and what its corrections change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.io.segmentation import encode_rle
from osm.labeling.formats.label_format import LabelShape
from osm.labeling.label_cli import main as label
from osm.labeling.review import thumbnail
from osm.labeling.review_cli import main as review

NAME = "<b>a & 'b'.png"  # what a page must escape


@pytest.fixture(scope="module")
def command(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("review")
    (folder / "images").mkdir()
    Image.effect_noise((64, 48), 60).convert("RGB").save(folder / "images" / NAME)
    rows = []
    for k in range(5):
        mask = np.zeros((48, 64), bool)
        mask[4 : 20 + 4 * k, 5 * k : 20 + 5 * k] = True
        rows.append({"id": k, "image_id": 1, "segmentation": encode_rle(mask)})
    image = {"id": 1, "file_name": NAME, "width": 64, "height": 48}
    (folder / "masks.json").write_text(json.dumps({"images": [image], "annotations": rows}))
    flags = ["--masks", str(folder / "masks.json"), "--checkpoint", str(checkpoint), "--device", "cpu"]
    return [str(folder / "images"), str(folder / "out"), *flags, "--max_new_tokens", "3"]


def test_names_are_accepted_retyped_and_removed_with_the_keyboard(
    command: list[str], browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(command[1])
    assert label(command) == 0
    assert review([str(out)]) == 0
    assert "5 of 5 objects" in capsys.readouterr().out
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((out / "review.html").as_uri())
    predicted = page.eval_on_selector_all(".card", "cards => cards.map(card => card.dataset.predicted)")
    page.keyboard.press("Enter")  # accepts the first
    page.keyboard.press("Delete")  # removes the second
    page.keyboard.type("urea")  # retypes the third; no letter is a command
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")  # the third is undecided again
    page.keyboard.type("eel cup")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+z")  # the fourth is undecided again
    assert page.inner_text("#progress") == "3 of 5 decided, not saved yet"
    page.on("dialog", lambda dialog: dialog.accept())  # it warns before the page is left
    page.reload()
    assert page.inner_text("#progress") == "3 of 5 decided, not saved yet"  # nothing is lost
    assert page.evaluate("document.activeElement.id") == "card-3"  # the first that is undecided
    page.check("#open")
    assert page.locator(".card:visible").count() == 2
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "corrections.json"
    download.value.save_as(file)
    assert page.inner_text("#progress") == "3 of 5 decided"
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert not faults and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    rows = json.loads(file.read_text())["corrections"]
    assert [row["name"] for row in rows] == [predicted[0], None, "eel cup"]
    assert all(row["file_name"] == NAME for row in rows)
    # The corrections change what is written, and the page shows the rest.
    capsys.readouterr()
    assert label([*command, "--corrections", str(file)]) == 0
    said = capsys.readouterr().out
    assert "3 corrections applied\n" in said
    assert "1 mask left out: removed by a person" in said
    document = json.loads((out / "labels.json").read_text())
    names = {row["id"]: row["name"] for row in document["categories"]}
    found = {row["source_id"]: (names[row["category_id"]], row["score"]) for row in document["annotations"]}
    assert len(found) == 4 and found[rows[2]["shape"]] == ("eel cup", 1.0) and rows[1]["shape"] not in found
    assert review([str(out)]) == 0
    assert "2 of 2 objects" in capsys.readouterr().out
    assert review([str(out), "--all", "--limit", "4"]) == 0
    assert "4 of 5 objects" in capsys.readouterr().out


def test_what_cannot_be_reviewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert review([str(tmp_path)]) == 2
    assert "holds no labels of `osm label`" in capsys.readouterr().err
    assert review([str(tmp_path), "--limit", "0"]) == 2
    assert "--limit 0 must be 1 or more" in capsys.readouterr().err


def test_a_thumbnail_shows_the_object_bright_and_outlined() -> None:
    mask = np.zeros((400, 600), bool)
    mask[100:200, 300:400] = True
    picture = np.asarray(thumbnail(Image.new("RGB", (600, 400), (200, 200, 200)), LabelShape(encode_rle(mask))))
    bright, dark = (picture == 200).all(2), (picture == 80).all(2)
    height, width = picture.shape[:2]
    assert (width, height) == (320, 240) and bright[height // 2, width // 2] and dark[2, 2]
    line = (picture == (255, 176, 0)).all(2)
    assert line.any() and (bright | dark | line).mean() > 0.97
    edge = np.zeros((400, 600), bool)
    edge[399, 599] = True
    assert thumbnail(Image.new("RGB", (600, 400)), LabelShape(encode_rle(edge))).size[0] > 100
