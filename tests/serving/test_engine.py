"""Regions of pictures become masks and names, whoever else uses the model."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server_threads import block, drawn_picture, file_of
from standin import Areas

from osm.errors import OsmError
from osm.labeling.naming import NamingRequest
from osm.recognition.regions import Region
from osm.recognition.segmenters.embedded import EmbeddedSegmenter
from osm.serving import engine as engine_module
from osm.serving.engine import DemoPicture, Engine, ImageCache
from osm.serving.jobs import (
    ALPHA_KEY,
    INTERNAL,
    JobAnswer,
    JobFailure,
    JobImage,
    NamingJob,
    NamingOptions,
    RegionPrompt,
)
from osm.serving.page_samples import PageSamples, drawn_scene

REQUEST = NamingRequest()


def job(number: int, options: NamingOptions | None = None) -> NamingJob:
    image = JobImage(f"picture {number}", file_of(drawn_picture(number)))
    return NamingJob(image, (RegionPrompt("mask", block()),), options=options or NamingOptions())


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
    engine.recognizer.set_image(one.image)
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
    with pytest.raises(OsmError, match="outside the image, which has 160 x 120"):
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
    engine.recognizer.set_image(one.image)
    again = engine.recognizer.name([region["segmentation"]], top_k=5)[0][0]
    assert again.text == region["name"] and again.prob == pytest.approx(region["prob"], rel=1e-3)


def test_images_of_several_jobs_are_encoded_once(engine: Engine) -> None:
    own = Engine(engine.recognizer, Areas())
    jobs = [job(number % 2) for number in range(6)]
    results = own.run(jobs)
    assert own.stats.misses == 2 and own.stats.hits == 4 and len(own.cache) == 2
    again = own.run(jobs)
    assert own.stats.misses == 2 and own.stats.hits == 10
    for one, other in zip(results, again, strict=True):
        assert one.regions[0].names[0].text == other.regions[0].names[0].text


def test_the_answers_are_the_recognizers(engine: Engine) -> None:
    """Whatever else is in the batch: names are equal, probabilities within 1e-4."""
    options = NamingOptions(top_k=3, vocabulary=("cat", "dog", "bus"))
    jobs = [job(0), job(1), job(0, options), job(1, NamingOptions(modes=engine.modes[:2])), job(0)]
    results = Engine(engine.recognizer, Areas()).run(jobs)
    for one, result in zip(jobs, results, strict=True):
        assert isinstance(result, JobAnswer)
        engine.recognizer.set_image(Image.open(io.BytesIO(one.image.source)))
        vocabulary = list(one.options.vocabulary) or None
        alone = engine.recognizer.name(
            [block()], modes=one.options.modes, top_k=one.options.top_k, vocabulary=vocabulary
        )
        for name, expected in zip(result.regions[0].names, alone[0], strict=True):
            assert name.text == expected.text and name.mode == expected.mode
            assert name.prob == pytest.approx(expected.prob, abs=1e-4)
            assert [other.text for other in name.top] == [other.text for other in expected.top]


def test_a_bad_job_does_not_harm_others(engine: Engine) -> None:
    bad = [
        NamingJob(JobImage("broken", b"no image"), (RegionPrompt("box", (1, 1, 5, 5)),)),
        NamingJob(job(0).image, (RegionPrompt("box", (100, 1, 5, 5)),)),
        NamingJob(job(0).image, (RegionPrompt("rle", {"size": [3, 3], "counts": [9]}),)),
        NamingJob(job(0).image, (RegionPrompt("png", b"no image"),)),
        job(0, NamingOptions(modes=("colour",))),
        job(0, NamingOptions(vocabulary=("",))),
    ]
    own = Engine(engine.recognizer, Areas())
    results = own.run([job(0), *bad, job(1)])
    assert isinstance(results[0], JobAnswer) and isinstance(results[-1], JobAnswer)
    for result, text in zip(
        results[1:-1], ("image", "region 0", "region 0", "region 0", "mode 'colour'", ""), strict=True
    ):
        assert isinstance(result, JobFailure) and result.kind == "request" and text in result.message, result


def test_a_fault_of_the_program_is_one_of_the_server(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Engine(engine.recognizer, Areas())
    monkeypatch.setattr(own.segmenter, "everything", lambda: 1 / 0)
    result = own.run([NamingJob(job(0).image, everything=3)])[0]
    assert result == JobFailure("naming failed (ZeroDivisionError)", INTERNAL)


def test_a_mask_that_cannot_be_drawn_harms_nobody_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some faults show only when a mask is drawn, for the names or for the answer."""

    def fails() -> np.ndarray:
        raise MemoryError("no room")

    own = Engine(engine.recognizer, Areas())
    plain = engine_module._region
    broken = lambda prompt, *more: Region(fails) if prompt.kind == "png" else plain(prompt, *more)  # noqa: E731
    monkeypatch.setattr(engine_module, "_region", broken)
    bad = RegionPrompt("png", b"")
    jobs = [job(0), NamingJob(job(0).image, (bad,)), NamingJob(job(0).image, (bad,), options=None, masks=True), job(1)]
    results = own.run(jobs)
    assert [isinstance(result, JobAnswer) for result in results] == [True, False, False, True]
    assert {result.message for result in results[1:3]} == {"naming failed (MemoryError)"}


def test_a_device_that_failed_for_good(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No job can succeed any more, so the process has to end."""

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    own = Engine(engine.recognizer, Areas())
    monkeypatch.setattr(own.recognizer, "encode_images", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        own.run([job(0)])


def test_the_cache_is_bounded(engine: Engine) -> None:
    one = engine.recognizer.encode_images([drawn_picture(0)])[0]
    cache = ImageCache(2 * one.bytes)
    for key in "abc":
        cache.put(key, one)
    assert len(cache) == 2 and cache.bytes == 2 * one.bytes and cache.get("a") is None
    cache.get("b")
    cache.put("d", one)
    assert cache.get("c") is None and cache.get("b") is one  # the least recently used one was dropped
    nothing = ImageCache(one.bytes - 1)
    nothing.put("a", one)
    assert len(nothing) == nothing.bytes == 0


def test_users_who_take_turns(engine: Engine) -> None:
    """The embedded segmenter returns to an image without segmenting it again."""
    segmenter = EmbeddedSegmenter(engine.recognizer)
    own, runs, plain = Engine(engine.recognizer, segmenter), [], segmenter.set_image
    segmenter.set_image = lambda image: runs.append(1) or plain(image)  # type: ignore[method-assign]
    pictures = [picture(k) for k in range(2)]
    first = [own.point(one, 80, 60, REQUEST).rle for one in pictures]
    again = [own.point(one, 80, 60, REQUEST).rle for one in pictures]
    assert first == again and first[0] != first[1] and len(runs) == 2
    for _ in range(20):
        own.point(picture(0), 10, 10, REQUEST)
    assert len(own._states) == 8


def test_an_encoded_image_holds_its_own_memory_only(engine: Engine) -> None:
    for one in engine.recognizer.encode_images([drawn_picture(k) for k in range(3)]):
        for part in filter(None, one.state):
            for tensor in part:
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_colors_under_an_alpha_mask_are_kept(engine: Engine) -> None:
    """A transparent pixel's color is part of the picture, not white or black."""
    rgb = drawn_picture(2)
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray(block().astype(np.uint8) * 255))
    image = JobImage(ALPHA_KEY + "a", file_of(rgba))
    found = Engine(engine.recognizer).run([NamingJob(image, (RegionPrompt("alpha"),), masks=True)])[0]
    plain = Engine(engine.recognizer).run([NamingJob(JobImage("b", file_of(rgb)), (RegionPrompt("mask", block()),))])[0]
    assert found.regions[0].names == plain.regions[0].names and found.regions[0].area == block().sum()


def test_samples(tmp_path: Path) -> None:
    titles = [one["title"] for one in PageSamples().listing()]
    assert [title.split()[0] for title in titles] == ["Astronaut", "Coffee", "Chelsea", *["Drawn"] * 4]
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._photo.JPG").write_bytes(bytes(99))  # macOS's
    Image.new("RGB", (800, 600)).save(tmp_path / "web.webp")
    samples = PageSamples(tmp_path)
    assert [one["title"] for one in samples.listing()] == ["photo.JPG", "web.webp", *titles]
    assert Image.open(io.BytesIO(samples.jpeg("1"))).size == (800, 600)
    assert Image.open(io.BytesIO(samples.jpeg("1", thumbnail=True))).size == (256, 192)
    (tmp_path / "photo.JPG").unlink()
    (tmp_path / "web.webp").unlink()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(OsmError, match="--samples"):
            PageSamples(folder)
