"""The page's handlers, without a browser, and the command's flags."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.labeling.formats import recognized
from osm.labeling.formats.label_format import LabelShape
from osm.recognition.answers import Alternative, Recognition
from osm.serving import markup, web
from osm.serving.engine import DemoPicture, Engine, NamedRegion
from osm.serving.page_files import sample_images

pytest.importorskip("gradio", reason="gradio is not installed")

from osm.serving import page as page_module
from osm.serving.downloads import DOWNLOADS  # noqa: E402
from osm.serving.page import BOX, EVERYTHING, PAINT, POINT, Limits, Page, TabState  # noqa: E402

ANY = ("any", "", "constrained")


@pytest.fixture
def page(engine: Engine) -> Page:
    return Page(engine, sample_images(), Limits())


@pytest.fixture
def visit(page: Page) -> TabState:
    visit = TabState()
    page.sample(visit, "Drawn scene 1")
    return visit


def at(x: float, y: float) -> Any:
    return SimpleNamespace(index=[x, y])


def test_two_clicks_make_a_box(page: Page, visit: TabState) -> None:
    message, marked, *_ = page.click(visit, BOX, *ANY, event=at(300, 200))
    assert "First corner: 300, 200" in message and isinstance(marked, Image.Image)
    message, view, answer, history, download = page.click(visit, BOX, *ANY, event=at(100, 120))
    assert message == "" and "box 100, 120, 200, 80" in history and "osm-name" in answer
    document = json.loads(Path(download.value["path"]).read_text())
    assert document["image"] == "Drawn scene 1" and len(document["regions"]) == 1
    page.click(visit, BOX, *ANY, event=at(5, 5))
    page_module.switch(visit, POINT)  # the corner is forgotten
    assert "point 100, 120" in page.click(visit, POINT, *ANY, event=at(100, 120))[3]


def test_every_format_of_the_download(page: Page, visit: TabState) -> None:
    """A single file as it is, and several files as a ZIP file; equal answers are equal files."""
    page.click(visit, POINT, *ANY, event=at(100, 120))
    assert visit.picture is not None
    mask = visit.picture.named[0].mask
    for form in DOWNLOADS:
        path = Path(page.choose_form(visit, form).value["path"])
        before = path.read_bytes()
        assert Path(page.choose_form(visit, form).value["path"]).read_bytes() == before
        if form in ("yolo", "labelme", "xanylabeling", "coco"):
            folder = path.parent / form
            folder.mkdir(exist_ok=True)
            if path.suffix == ".zip":
                zipfile.ZipFile(path).extractall(folder)
                path = folder / form if (folder / form).is_dir() else folder
            [source] = recognized(path).sources(path)
            [shape] = recognized(path).shapes(source, visit.picture.image.size)
            assert isinstance(shape, LabelShape) and (shape.mask == mask).mean() > 0.99
    files = {file.name for folder in page.folder.answers.iterdir() for file in folder.iterdir() if file.is_file()}
    assert files >= {"names.json", "labels.json", "labels_polygons.json", "yolo.zip", "cvat.xml", "labels.csv"}
    page.choose_form(visit, "nonsense")
    assert visit.form == form


def test_clicks_on_a_large_picture_are_scaled_back(page: Page) -> None:
    visit = TabState(DemoPicture(Image.new("RGB", (2800, 700), "red")))
    assert page_module.shown_size(visit.picture.image) == (1400, 350)
    _, view, *_ = page.click(visit, POINT, *ANY, event=at(1000, 300))
    assert view.size == (1400, 350) and visit.picture.named[0].selected_by == "point 2000, 600"


@pytest.mark.parametrize("text", ["", "here", "1", "1, 2, 3", "900, 20", "nan, 4", "5, 5, 0, 9"])
def test_a_place_that_is_none(page: Page, visit: TabState, text: str) -> None:
    message = page.typed(visit, text, *ANY)[0]
    assert 'class="osm-error" role="alert"' in message and not visit.picture.named


def test_painting_is_scaled_to_the_picture(page: Page, visit: TabState) -> None:
    layer = np.zeros((256, 256, 4), np.uint8)
    layer[100:120, 50:80, 3] = 150
    page.press(visit, PAINT, {"layers": [layer]}, *ANY)
    assert visit.picture.named[0].area == 40 * 60
    assert "nothing is painted" in page.press(visit, PAINT, {"layers": []}, *ANY)[0].lower()


def test_everything_says_what_it_leaves_out(page: Page, visit: TabState, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page.engine.everything
    monkeypatch.setattr(page.engine, "everything", lambda picture, request: whole(picture, request, max_segments=2))
    message, _, table, *_ = page.press(visit, EVERYTHING, None, *ANY)
    assert "smaller ones are skipped" in message and table.count("<tr>") == 3


def test_without_a_picture(page: Page) -> None:
    for answer in (page.click(TabState(), POINT, *ANY, event=at(1, 1)), page.press(TabState(), EVERYTHING, None, *ANY)):
        assert "Choose a picture first" in answer[0]
    assert "sample pictures in the list" in page.sample(TabState(), "../../etc/passwd")[0]


def test_an_answer_for_a_picture_that_is_gone_is_not_shown(page: Page, visit: TabState) -> None:
    point = page.engine.point

    def slow(*arguments: Any) -> NamedRegion:
        page.sample(visit, "Drawn scene 2")  # chosen while the first is still being named
        return point(*arguments)

    page.engine = SimpleNamespace(point=slow)  # type: ignore[assignment]
    assert page.click(visit, POINT, *ANY, event=at(100, 100)) == page_module._unchanged(5)
    assert visit.picture.title == "Drawn scene 2" and not visit.picture.named


def test_uploads_are_read_and_removed(page: Page, tmp_path: Path) -> None:
    visit = TabState()
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("no picture")
    assert "good.png, 40 x 30 pixels" in page.upload(visit, str(tmp_path / "good.png"))[0]
    assert "text.jpg is not a readable image" in page.upload(visit, str(tmp_path / "text.jpg"))[0]
    assert visit.picture.title == "good.png" and not list(tmp_path.iterdir())


def test_names_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    answer = Recognition("any", evil, 0.5, top=(Alternative(evil, 0.5),), said=evil)
    named = NamedRegion(evil, {"size": [1, 1], "counts": "01"}, 1, answer)
    parts = (markup.answer(named), markup.everything([named]), markup.history([named]), markup.error(evil))
    assert all("<img" not in part and "&lt;img" in part for part in parts)


def test_an_unsure_name_is_shown_as_one() -> None:
    top = (Alternative("cup", 0.6), Alternative("bowl", 0.2))
    for answer, head, row in (
        (Recognition("any", "cup", 0.61, top=top), ">cup <small>61.0%</small>", "<td>cup</td>"),
        (
            Recognition("any", "cup", 0.61, top=top, calibrated_prob=0.337, unsure=True),
            ">unsure: maybe cup <small>34% likely correct</small>",
            '<td>maybe cup</td><td class="osm-number">34%</td>',
        ),
        (
            Recognition("any", "cup", 0.61, top=top, calibrated_prob=0.72),
            ">cup <small>72% likely correct</small>",
            '<td>cup</td><td class="osm-number">72%</td>',
        ),
    ):
        named = NamedRegion("point 1, 2", {"size": [1, 1], "counts": "01"}, 1, answer)
        assert head in markup.answer(named) and row in markup.history([named]) and row in markup.everything([named])


def test_a_cosine_is_not_shown_as_a_probability() -> None:
    top = (Alternative("cup", cosine=0.81), Alternative("bowl", cosine=-0.05))
    named = NamedRegion("point 1, 2", {}, 1, Recognition("any", "cup", 0.61, top=top, said="mug"))
    shown = markup.answer(named, "mapped")
    assert (
        "Cosine" in shown
        and ">0.81<" in shown
        and ">-0.05<" in shown
        and "81" not in shown.replace("0.81", "").replace("width:81%", "")
    )


def test_markup_of_a_region_without_a_name() -> None:
    named = NamedRegion("point 1, 2", {}, 0, Recognition("any", skipped="the mask is empty"))
    assert "The mask is empty." in markup.answer(named) and "no name: the mask is empty" in markup.history([named])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "0"], "--port 0 must be between 1 and 65535"),
        (["--max_file_mb", "0"], "--max_file_mb 0.0 must be over 0"),
        (["--max_megapixels", "nan"], "--max_megapixels nan"),
        (["--samples", "/no/such/folder"], "--samples /no/such/folder: no such folder"),
        (["--host", "0.0.0.0", "--samples", "/none"], "warning: --host 0.0.0.0: the page has no password"),
    ],
)
def test_flags(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert web.main(["--checkpoint", "none", *flags]) == 2
    assert said in capsys.readouterr().err
