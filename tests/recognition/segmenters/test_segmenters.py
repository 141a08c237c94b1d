"""All segmenters keep one promise: SAM by its package, SAM 2 by transformers, and the one of the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sams import ANY, tiny_sam, tiny_sam2
from test_namer import built  # noqa: F401  (a fixture)

from osm.errors import OsmError
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters import load_segmenter
from osm.recognition.segmenters.embedded import EmbeddedSegmenter
from osm.recognition.segmenters.mask_generation import load_mask_generator
from osm.recognition.segmenters.sam import SamSegmenter, load_sam, type_of
from osm.recognition.segmenters.tree import merged, neighbours

SIZE = (90, 60)


def scene() -> Image.Image:
    """A red and a blue box on green, with a little noise."""
    pixels = np.full((*SIZE[::-1], 3), (30, 160, 60), np.uint8)
    pixels[10:35, 8:40], pixels[25:55, 55:85] = (210, 40, 40), (40, 60, 200)
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(params=["sam", "sam2", "embedded"])
def segmenter(request: pytest.FixtureRequest, built: Any, tmp_path: Path) -> Any:  # noqa: F811
    if request.param == "sam":
        return SamSegmenter(tiny_sam(), **ANY)
    if request.param == "sam2":
        options = {"points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": 0.0}
        return load_mask_generator(tiny_sam2(tmp_path / "sam2"), **options)
    return EmbeddedSegmenter(Recognizer(*built))


def test_masks_of_the_images_size(segmenter: Any) -> None:
    segmenter.set_image(scene())
    found = segmenter.everything()
    assert found and [s.area for s in found] == sorted((s.area for s in found), reverse=True)
    found += [segmenter.at_points([(20, 20)]), segmenter.at_points([(20, 20), (70, 40)], [True, False])]
    found.append(segmenter.in_box([8, 10, 32, 25]))
    for segment in found:
        assert segment.mask.shape == SIZE[::-1] and segment.mask.dtype == bool and 0 <= segment.score <= 1
    again = segmenter.in_box([8, 10, 32, 25])
    assert (again.mask == found[-1].mask).all()
    segmenter.set_image(scene().resize((40, 70)))  # the one before is forgotten
    assert segmenter.in_box([0, 0, 20, 20]).mask.shape == (70, 40)


def test_what_cannot_be_meant_is_refused(segmenter: Any) -> None:
    for ask in (segmenter.everything, lambda: segmenter.at_points([(1, 1)]), lambda: segmenter.in_box([0, 0, 5, 5])):
        with pytest.raises(OsmError, match="no image is set"):
            ask()
    segmenter.set_image(scene())
    for points, inside, message in [
        ([(90, 5)], None, "outside of the image, which is 90 x 60"),
        ([(1, 2, 3)], None, "is not \\[x, y\\]"),
        ([(1, float("nan"))], None, "is not"),
        ([], None, "at least one point"),
        ([(1, 1)], [False], "give at least one point that the segment must contain"),
        ([(1, 1)], [True, False], "1 points, but `inside` has 2 values"),
    ]:
        with pytest.raises(OsmError, match=message):
            segmenter.at_points(points, inside)
    for box, message in [
        ([95, 5, 10, 10], "does not overlap"),
        ([1, 1, 0, 5], "does not overlap"),
        ([1, 1, 5], "is not"),
    ]:
        with pytest.raises(OsmError, match=message):
            segmenter.in_box(box)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_the_embedded_one_tells_things_apart(built: Any) -> None:  # noqa: F811
    segmenter = load_segmenter(recognizer=Recognizer(*built))
    segmenter.set_image(scene())
    red, blue = np.zeros((2, *SIZE[::-1]), bool)
    red[10:35, 8:40], blue[25:55, 55:85] = True, True
    for thing, point in ((red, (20, 20)), (blue, (70, 40))):
        assert max(iou(s.mask, thing) for s in segmenter.everything()) > 0.9
        assert iou(segmenter.at_points([point]).mask, thing) > 0.8  # a corner may be a superpixel of its own
    assert iou(segmenter.in_box([4, 6, 40, 33]).mask, red) > 0.8  # the box is larger than the thing
    both = segmenter.at_points([(20, 20), (70, 40)]).mask
    assert (both & red).sum() > 0.9 * red.sum() and (both & blue).sum() > 0.9 * blue.sum()
    without = segmenter.at_points([(20, 20), (70, 40)], [True, False]).mask
    assert iou(without, red) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (64, 64)])
def test_the_embedded_one_takes_any_picture(built: Any, size: tuple[int, int]) -> None:  # noqa: F811
    segmenter = EmbeddedSegmenter(Recognizer(*built))
    segmenter.set_image(Image.new("RGB", size, (9, 9, 9)))
    (whole,) = segmenter.everything()
    assert whole.mask.shape == size[::-1] and whole.mask.all()
    assert segmenter.at_points([(0, 0)]).mask.all() and segmenter.in_box([0, 0, *size]).mask.all()


def test_no_more_segments_than_asked_for(built: Any) -> None:  # noqa: F811
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (120, 120, 3), np.uint8))
    segmenter = EmbeddedSegmenter(Recognizer(*built), segments=3)
    segmenter.set_image(noise)
    assert len(segmenter.everything()) == 3
    with pytest.raises(OsmError, match="segments 0 must be"):
        EmbeddedSegmenter(Recognizer(*built), segments=0)


def test_the_tree_merges_the_likest_first() -> None:
    labels = np.array([[0, 1, 2, 3]])
    features = np.array([[0.0], [0.1], [5.0], [5.3]])
    tree = merged(features, np.ones(4), neighbours(labels))
    assert [sorted(members.tolist()) for members in tree.members[4:]] == [[0, 1], [2, 3], [0, 1, 2, 3]]
    assert tree.areas.tolist() == pytest.approx([1, 1, 1, 1, 2, 2, 4])
    assert tree.persistence[4] > tree.persistence[5] > tree.persistence[3] > tree.persistence[0] > 0


def test_sams_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of the type that its name tells gives what the model gives that it is from."""
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: tiny_sam(seed=5))
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(tiny_sam(seed=1).state_dict(), path)
    loaded, direct = load_segmenter(checkpoint=path, device="cpu", **ANY), SamSegmenter(tiny_sam(seed=1), **ANY)
    for one in (loaded, direct):
        one.set_image(scene())
    first, second = loaded.everything(), direct.everything()
    assert first and all((a.mask == b.mask).all() for a, b in zip(first, second, strict=True))
    (tmp_path / "mine.pth").write_bytes(path.read_bytes())
    with pytest.raises(OsmError, match="mine.pth: the file name does not contain the SAM type"):
        load_sam(tmp_path / "mine.pth")
    assert load_sam(tmp_path / "mine.pth", "vit_b", **ANY)
    with pytest.raises(OsmError, match="--sam_type 'vit_x' is not one of"):
        load_sam(path, "vit_x")
    torch.save({"odd": torch.zeros(1)}, path)
    with pytest.raises(OsmError, match="does not match --sam_type vit_b"):
        load_sam(path)
    path.write_bytes(b"nothing")
    with pytest.raises(OsmError, match="sam_checkpoint .* not loaded|cannot be read"):
        load_sam(path)
    with pytest.raises(OsmError, match="no such file"):
        load_sam(tmp_path / "none_vit_h.pth")


@pytest.mark.parametrize("kind", ["vit_h", "vit_l", "vit_b"])
def test_the_type_is_in_the_name(kind: str) -> None:
    assert type_of(Path(f"SAM_{kind.upper()}_4b8939.pth")) == kind


def test_loading_says_what_is_wrong(built: Any, tmp_path: Path) -> None:  # noqa: F811
    recognizer = Recognizer(*built)
    for options, message in [
        ({"name": "magic"}, "--segmenter 'magic' is neither one of auto, embedded, sam"),
        ({"name": "sam"}, "needs a checkpoint"),
        ({"name": "embedded"}, "recognizer"),
        ({"name": "embedded", "checkpoint": "x.pth", "recognizer": recognizer}, "does not take a checkpoint"),
        ({"checkpoint": tmp_path}, "is not a .pth file, folder or hub id"),
    ]:
        with pytest.raises(OsmError, match=message):
            load_segmenter(**options)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OsmError, match="has model type bert; expected one of sam2"):
        load_segmenter(checkpoint=tmp_path)
