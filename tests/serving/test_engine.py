"""Places of pictures become masks and names, whoever else uses the model; samples and uploads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standin import Areas

from osm.errors import OsmError
from osm.io.images import FORMATS
from osm.labeling.naming import NamingRequest
from osm.serving import page_files
from osm.serving.engine import DemoPicture, Engine, parse_names
from osm.serving.page_files import drawn_scene, read_upload, sample_images

REQUEST = NamingRequest()


def picture(number: int = 0) -> DemoPicture:
    return DemoPicture(drawn_scene(number).resize((160, 120)), f"scene {number}")


def test_points_boxes_and_paint(engine: Engine) -> None:
    one = picture()
    by_point = engine.point(one, 80, 60, REQUEST)
    assert by_point.mask.shape == (120, 160) and by_point.mask[60, 80] and by_point.area == by_point.mask.sum()
    assert by_point.selected_by == "point 80, 60" and len(by_point.answer.top) == 5
    by_box = engine.box(one, (10, 20, 30, 40), REQUEST)
    assert by_box.area == 30 * 40 and by_box.selected_by == "box 10, 20, 30, 40"
    mask = np.zeros((120, 160), bool)
    mask[20:60, 10:40] = True
    painted = engine.painted(one, mask, REQUEST)
    assert (painted.mask == mask).all() and painted.answer == by_box.answer
    assert engine.recognizer.name([mask], top_k=5)[0][0] == painted.answer


def test_everything_is_cut_to_the_largest(engine: Engine) -> None:
    one = picture()
    found, left_out = engine.everything(one, REQUEST, max_segments=3)
    assert len(found) == 3 and left_out > 0
    assert [a.area for a in found] == sorted((a.area for a in found), reverse=True)
    everything, none = engine.everything(one, REQUEST)
    assert len(everything) == 3 + left_out and none == 0


def test_a_list_of_names(engine: Engine) -> None:
    for method in ("constrained", "scored"):
        named = engine.point(picture(), 80, 60, NamingRequest(vocabulary=("cat", "dog", "bus"), method=method, top_k=3))
        assert {other.text for other in named.answer.top} == {"cat", "dog", "bus"}
    assert parse_names(" cat\n\ndog \ncat") == ("cat", "dog") and parse_names(" \n") == ()


def test_pictures_of_several_people_do_not_mix(engine: Engine) -> None:
    pictures = [picture(number) for number in range(3)]
    alone = [engine.point(one, 80, 60, REQUEST) for one in pictures]
    assert len({str(named.rle) for named in alone}) == 3
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda k: (k % 3, engine.point(pictures[k % 3], 80, 60, REQUEST)), range(18)))
    for k, named in together:
        assert named.rle == alone[k].rle and named.answer.text == alone[k].answer.text


def test_a_picture_is_set_once_for_many_clicks(engine: Engine) -> None:
    areas, one = Areas(), picture()
    own = Engine(engine.recognizer, areas)
    for x in (10, 50, 90):
        own.point(one, x, 60, REQUEST)
    assert areas.pictures == 1


@pytest.mark.parametrize(("x", "y"), [(160, 5), (-1, 5), (5, 120), (float("nan"), 5)])
def test_a_point_outside(engine: Engine, x: float, y: float) -> None:
    with pytest.raises(OsmError, match="outside the picture, which has 160 x 120"):
        engine.point(picture(), x, y, REQUEST)


def test_what_cannot_be_named(engine: Engine) -> None:
    with pytest.raises(OsmError, match="no area"):
        engine.box(picture(), (5, 5, 0, 4), REQUEST)
    with pytest.raises(OsmError, match="nothing is painted"):
        engine.painted(picture(), np.zeros((120, 160), bool), REQUEST)
    with pytest.raises(OsmError, match="mode 'colour'"):
        engine.point(picture(), 5, 5, NamingRequest(mode="colour"))
    with pytest.raises(OsmError, match="no segmenter"):
        Engine(engine.recognizer).point(picture(), 5, 5, REQUEST)


def test_document(engine: Engine) -> None:
    one = picture()
    one.named.append(engine.point(one, 80, 60, REQUEST))
    document = json.loads(json.dumps(one.document()))
    (region,) = document["regions"]
    assert (document["image"], document["width"], document["height"]) == ("scene 0", 160, 120)
    assert region["segmentation"]["size"] == [120, 160] and len(region["top"]) == 5
    # What it says can be asked for again.
    again = engine.recognizer.name([region["segmentation"]], top_k=5)[0][0]
    assert again.text == region["name"] and again.prob == pytest.approx(region["prob"], rel=1e-3)


def test_samples(tmp_path: Path) -> None:
    drawn = sample_images()
    assert all(make().size == (512, 512) for make in drawn.values()) and len(drawn) == page_files._SCENES
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    assert list(sample_images(tmp_path)) == ["photo.JPG", *drawn]
    (tmp_path / "._photo.JPG").write_bytes(bytes(99))  # macOS's
    Image.new("RGB", (8, 6)).save(tmp_path / "web.webp")
    assert list(sample_images(tmp_path)) == ["photo.JPG", "web.webp", *drawn]
    assert sample_images(tmp_path)["web.webp"]().size == (8, 6)
    (tmp_path / "photo.JPG").unlink()
    (tmp_path / "web.webp").unlink()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(OsmError, match="--samples"):
            sample_images(folder)


def test_uploads(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    assert read_upload(tmp_path / "good.png", 1200).size == (40, 30)
    with pytest.raises(OsmError, match="^good.png has 40 x 30 pixels, but the maximum is 0.001199 million$"):
        read_upload(tmp_path / "good.png", 1199)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(OsmError, match=f"^text.jpg is not a readable image: expected a {FORMATS}$"):
        read_upload(tmp_path / "text.jpg", 1200)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:1500])
    with pytest.raises(OsmError, match="^half.png is damaged"):
        read_upload(tmp_path / "half.png", 1200)
