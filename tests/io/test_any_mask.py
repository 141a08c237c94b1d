"""Masks as people have them: all are read as the one that is meant, or raise the question that they leave open."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import seconds
from PIL import Image, features
from pycocotools import mask as coco_mask

from osm.errors import OsmError
from osm.io.any_mask import as_mask, mask_drawer, read_mask_file
from osm.recognition.regions import regions_of

SIZE = (40, 60)
MASK = np.zeros(SIZE, bool)
MASK[8:30, 15:45] = True
GREY = MASK.astype(np.uint8) * 255
RLE = coco_mask.encode(np.asfortranarray(MASK.astype(np.uint8)))
RUNS = [15 * 40 + 8, *[22, 18] * 29, 22, 10 + 15 * 40]
NOISE = np.random.default_rng(0).random(SIZE).astype(np.float32)

MEANT: dict[str, Any] = {
    "bool": MASK,
    "0 and 1": MASK.astype(np.uint8),
    "signed": MASK.astype(np.int64),
    "0 and 255": GREY,
    "0 and another": MASK * np.int32(3),
    "0 and 128": MASK * np.uint8(128),
    "float": MASK.astype(np.float32),
    "float 255": GREY.astype(np.float64),
    "half": MASK.astype(np.float16),
    "probabilities": np.where(MASK, 0.6 + 0.4 * NOISE, 0.4 * NOISE),
    "leading": MASK[None],
    "trailing": GREY[..., None],
    "twice leading": MASK[None, None],
    "list": MASK.astype(int).tolist(),
    "columns first": np.asfortranarray(MASK),
    "reversed": MASK[::-1, ::-1][::-1, ::-1],
    "tensor": torch.from_numpy(MASK),
    "bfloat16": torch.from_numpy(MASK).bfloat16(),
    "float16": torch.from_numpy(MASK).half(),
    "int": torch.from_numpy(GREY).int()[None],
    "with gradient": torch.from_numpy(MASK).float().requires_grad_(),
    "sparse": torch.from_numpy(MASK).float().to_sparse(),
    "rle": RLE,
    "rle of text": {**RLE, "counts": RLE["counts"].decode()},
    "rle of a tuple": {**RLE, "size": SIZE},
    "rle of an array": {"size": np.array(SIZE), "counts": np.array(RUNS)},
    "rle of numpy's numbers": {"size": [np.int64(40), np.int32(60)], "counts": [np.int64(run) for run in RUNS]},
    "sam": {"segmentation": MASK, "area": 1, "bbox": [1, 2, 3, 4]},
    "sam rle": {"segmentation": RLE, "predicted_iou": 0.9},
    "pil": Image.fromarray(MASK),
    "pil grey": Image.fromarray(GREY),
}  # fmt: skip

ASKED: dict[str, tuple[Any, str]] = {
    "logits": (np.where(MASK, 10.0, -10.0), "m has values from -10 to 10: are these logits. pass logits=True"),
    "bfloat16 logits": (torch.from_numpy(np.where(MASK, 2.0, -3.0)).bfloat16(), "pass logits=True"),
    "positive": (np.where(MASK, 2.5, 0.25), "are these logits"),
    "signs": (np.where(MASK, 1, -1), "values -1 and 1"),
    "nan": (np.where(MASK, 1, np.nan), "contains NaN"),
    "infinite": (np.where(MASK, np.inf, 0), "values from 0 to inf"),
    "ids": (np.where(MASK, 3, 1), r"holds the ids 1, 3: which id marks the object\? pass label_id"),
    "ids of floats": (np.where(MASK, 3.0, 1.0), "holds the ids 1, 3"),
    "three ids": (MASK * 3 + (NOISE > 0.9), "holds the ids 1, 3, 4"),
    "many": ((NOISE * 255).round().astype(np.uint8), "values up to 255: is it a soft mask"),
    "one id": (np.full(SIZE, 7), "has the value 7 everywhere: is the whole image inside the mask"),
    "all likely": (0.6 + 0.3 * NOISE, "all above 0.5: the mask would cover the whole image"),
    "another shape": (
        MASK[:9],
        r"m has shape \(9, 60\) and dtype bool: expected a binary mask \(0 and 1\) of shape \(40, 60\)",
    ),
    "exchanged": (MASK.T, "its sides are exchanged"),
    "several": (np.stack([MASK] * 3), "it holds 3 masks; pass a single mask"),
    "several of several": (np.stack([MASK] * 6).reshape(1, 6, *SIZE), "it holds 6 masks"),
    "channels": (np.stack([MASK] * 3, -1), "it has 3 channels"),
    "text": ("mask.png", "shape"),
    "objects": (np.full(SIZE, None), "type object"),
    "complex": (MASK.astype(complex), "type complex128"),
    "ragged": ([[0, 1], [1]], "is a list, which cannot be converted to an array"),
    "nothing": (None, "shape"),
    "meta": (torch.from_numpy(MASK).to("meta"), "on the meta device, which has no values"),
    "meta of another shape": (torch.zeros(2, 3, device="meta"), r"shape \(2, 3\)"),
    "dict": ({"mask": MASK}, "is a dict with .*mask"),
    "dict of dicts": ({"segmentation": {"segmentation": MASK}}, "its segmentation is a dict without the key counts"),
    "rle without size": ({"counts": RLE["counts"]}, "RLE size None"),
    "rle without counts": ({"size": list(SIZE)}, "RLE counts"),
    "rle of another size": ({"size": [9, 9], "counts": [81]}, "RLE size .9, 9."),
    "pil of another size": (Image.fromarray(GREY[:9]), "is 60 x 9, its image 60 x 40"),
}  # fmt: skip


@pytest.mark.parametrize("form", MEANT)
def test_every_form_of_one_mask_is_the_same(form: str) -> None:
    found = as_mask(MEANT[form], SIZE, "m")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, MASK)


@pytest.mark.parametrize("form", ASKED)
def test_what_may_mean_two_things_raises_the_question(form: str) -> None:
    value, question = ASKED[form]
    with pytest.raises(OsmError, match=question) as caught:
        as_mask(value, SIZE, "m")
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith("m")


def test_logits_and_labels_are_what_one_says_they_are() -> None:
    for logits in (np.where(MASK, 10.0, -10.0), np.where(MASK, np.inf, -np.inf), torch.tensor(MASK * 2.0 - 1),
                   np.where(MASK, 1, -1), MASK, RLE):  # fmt: skip
        np.testing.assert_array_equal(as_mask(logits, SIZE, "m", logits=True), MASK)
    with pytest.raises(OsmError, match="these are probabilities, not logits"):
        as_mask(MEANT["probabilities"], SIZE, "m", logits=True)
    with pytest.raises(OsmError, match="NaN"):
        as_mask(np.where(MASK, 1, np.nan), SIZE, "m", logits=True)
    for labels in (np.where(MASK, 3, 1), np.where(MASK, 3.0, -1), Image.fromarray(np.where(MASK, np.uint8(3), 1)),
                   torch.from_numpy(np.where(MASK, 3, 0))):  # fmt: skip
        np.testing.assert_array_equal(as_mask(labels, SIZE, "m", label_id=3), MASK)
        with pytest.raises(OsmError, match="m has no pixel with the id 9; it contains .*3"):
            as_mask(labels, SIZE, "m", label_id=9)
    for value in (MASK, RLE):
        with pytest.raises(OsmError, match="ha(s|ve) no ids"):
            as_mask(value, SIZE, "m", label_id=1)
    with pytest.raises(OsmError, match="cannot be combined"):
        as_mask(MASK, SIZE, "m", logits=True, label_id=1)
    with pytest.raises(OsmError, match="label_id 'x' is not an integer"):
        as_mask(MASK, SIZE, "m", label_id="x")  # type: ignore[arg-type]


def test_uniform_masks_are_all_or_nothing_where_they_are_clean() -> None:
    for value in (True, 1, 255, 1.0, np.uint8(255), np.uint16(65535)):
        assert as_mask(np.full(SIZE, value), SIZE, "m").all()
    for value in (False, 0, 0.0):
        assert not as_mask(np.full(SIZE, value), SIZE, "m").any()
    assert not as_mask(0.4 * NOISE, SIZE, "m").any()
    assert as_mask(np.ones((1, 5)), (1, 5), "m").shape == (1, 5)
    with pytest.raises(OsmError, match="sides are exchanged"):
        as_mask(np.ones((5, 1)), (1, 5), "m")


def test_what_a_masked_array_leaves_out_is_outside() -> None:
    masked = np.ma.array(np.ones(SIZE, np.uint8), mask=~MASK)
    np.testing.assert_array_equal(as_mask(masked, SIZE, "m"), MASK)


def test_one_box_or_point_alone_is_a_list_of_it() -> None:
    for more, one in (("boxes", [15, 8, 30, 22]), ("points", [15, 8])):
        for alone in (one, np.array(one), torch.tensor(one)):
            (region,), (listed,) = regions_of((60, 40), **{more: alone}), regions_of((60, 40), **{more: [one]})
            np.testing.assert_array_equal(region.mask, listed.mask)
    assert len(regions_of((60, 40), points=[[1, 1], [2, 2]])) == 2


def test_a_faint_overlay_is_the_mask() -> None:
    red = np.zeros((*SIZE, 4), np.uint8)
    red[..., 0], red[..., 3] = 200, MASK * 102
    np.testing.assert_array_equal(as_mask(Image.fromarray(red), SIZE, "m"), MASK)
    for alpha, told in ((0 * GREY, "is fully transparent"), (GREY // 5 + 9, "maximum alpha 60 of 255")):
        red[..., 3] = alpha
        with pytest.raises(OsmError, match=told):
            as_mask(Image.fromarray(red), SIZE, "m")


def test_masks_are_drawn_when_they_are_needed() -> None:
    mask = MASK.copy()
    for value in (mask, torch.from_numpy(mask), {"segmentation": mask}):
        draw = mask_drawer(value, SIZE, "m")
        mask[0, 0] = True
        assert draw()[0, 0] and draw().dtype == bool
        mask[0, 0] = False


# Files.


def pictures() -> dict[str, tuple[Image.Image, str, dict[str, Any]]]:
    """Files of one mask: a picture, its ending, and how it is saved."""
    grey = Image.fromarray(GREY)
    white = Image.new("L", grey.size, 255)
    palette = Image.fromarray(MASK.astype(np.uint8), "P")
    inverse = Image.fromarray((~MASK).astype(np.uint8), "P")
    red = palette.copy()
    palette.putpalette([0, 0, 0, 255, 255, 255])
    inverse.putpalette([255, 255, 255, 0, 0, 0])
    red.putpalette([0, 0, 0, 128, 0, 0])
    soft = Image.fromarray(np.where(MASK, 250, 10).astype(np.uint8))
    blurred = Image.fromarray(np.where(MASK, 200 + 55 * NOISE, 60 * NOISE).astype(np.uint8))
    edges = GREY.copy()
    edges[7], edges[30], edges[8] = edges[8] // 5, edges[29] // 3, edges[8] // 5 * 4
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "bits": (Image.fromarray(MASK), "png", {}),
        "grey": (grey, "png", {}),
        "0 and 1": (Image.fromarray(MASK.astype(np.uint8)), "png", {}),
        "0 and 7": (Image.fromarray(MASK.astype(np.uint8) * 7), "png", {}),
        "16 bits": (Image.fromarray(MASK.astype(np.uint16) * 65535), "png", {}),
        "16 bits, soft": (Image.fromarray(np.where(MASK, 64_000, 2_570).astype(np.uint16)), "png", {}),
        "32 bits": (Image.fromarray(MASK.astype(np.int32)), "tif", {}),
        "floats": (Image.fromarray(MASK.astype(np.float32) * 0.9), "tif", {}),
        "colour": (grey.convert("RGB"), "png", {}),
        "red": (red.convert("RGB"), "png", {}),
        "palette": (palette, "png", {}),
        "palette, white first": (inverse, "png", {}),
        "palette, red": (red, "png", {}),
        "soft": (soft, "png", {}),
        "blurred": (blurred, "png", {}),
        "edges": (Image.fromarray(edges), "png", {}),
        "jpeg": (grey, "jpg", {"quality": 60}),
        "colour jpeg": (grey.convert("RGB"), "jpg", {"quality": 60}),
        "cmyk": (grey.convert("RGB").convert("CMYK"), "tif", {}),
        "opaque": (grey.convert("RGBA"), "png", {}),
        "grey, opaque": (Image.merge("LA", (grey, white)), "png", {}),
        "alpha": (Image.merge("LA", (white, grey)), "png", {}),
        "alpha of black": (Image.merge("LA", (Image.new("L", grey.size), grey)), "png", {}),
        "alpha of colour": (Image.merge("RGBA", (*grey.convert("RGB").split(), grey)), "png", {}),
        "transparent colour": (grey.convert("RGB"), "png", {"transparency": (0, 0, 0)}),
        "gif": (grey, "gif", {}),
        "gif, transparent": (palette, "gif", {"transparency": 0}),
        "bmp": (grey, "bmp", {}),
        "webp": (grey, "webp", {}),
        "tiff": (grey, "tif", {}),
    }  # fmt: skip
    if features.check("avif"):
        kinds["avif"] = grey, "avif", {}
    return kinds


@pytest.mark.parametrize("kind", pictures())
def test_a_picture_is_the_mask_that_one_sees(tmp_path: Path, kind: str) -> None:
    image, ending, options = pictures()[kind]
    path = tmp_path / f"mask.{ending}"
    image.save(path, **options)
    found = read_mask_file(path, SIZE, f"--mask {path}")
    assert found.dtype == bool
    wrong = 0 if ending in ("png", "tif", "bmp", "gif") else 12  # pixels, of 2400
    assert found.shape == SIZE and (found != (MASK | (np.arange(40)[:, None] == -1))).sum() <= wrong + 30 * (
        kind == "edges"
    )


def test_pictures_that_may_mean_two_things_raise_the_question(tmp_path: Path) -> None:
    palette = Image.fromarray((MASK * 1 + (NOISE > 0.9)).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    labels = np.where(MASK, 3, 1).astype(np.uint8)
    ramp = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    photo = np.stack([ramp, ramp[:, ::-1], np.full_like(ramp, 90)], -1)
    void = (MASK * 2 + (NOISE > 0.9)).astype(np.uint8)
    void[:2] = 255
    bright = Image.fromarray((200 + 55 * NOISE).astype(np.uint8))
    alpha = Image.fromarray(GREY)
    for image, question in (
        (palette, "several colors: which color marks"),
        (palette.convert("RGB"), "several colors"),
        (Image.fromarray(labels), r"holds the ids 1, 3: which id marks the object\? give --mask_id N"),
        (Image.fromarray(labels.astype(np.uint16)), "holds the ids 1, 3"),
        (Image.fromarray(labels.astype(np.uint16) * 300), "holds the ids 300, 900"),
        (Image.fromarray(void), "holds the ids 1, 2, 3, 255"),
        (Image.fromarray((MASK * 100 + (NOISE > 0.7) * 60).astype(np.uint8)), "holds the ids 60, 100, 160"),
        (Image.fromarray((MASK * 170 + (NOISE > 0.5) * 85).astype(np.uint8)), "holds the ids 85, 170, 255"),
        (Image.fromarray(photo), "several colors"),
        (bright, "bright everywhere"),
        (bright.convert("RGB"), "bright everywhere"),
        (Image.new("L", alpha.size, 200), "has the value 200 everywhere"),
        (Image.new("RGB", alpha.size, "red"), "several colors"),
        (Image.fromarray(np.clip(ramp * 0.6 + 50, 0, 255).astype(np.uint8)), "holds the ids|mostly gray"),
        (
            Image.merge("LA", (Image.fromarray(ramp), alpha)),
            "varies in both alpha and brightness: which of the two is the mask",
        ),
        (Image.new("RGBA", alpha.size), "fully transparent"),
        (Image.fromarray(np.where(MASK, -1, 1).astype(np.int32)), "values -1 and 1"),
        (Image.fromarray(np.where(MASK, np.nan, 1).astype(np.float32)), "NaN"),
        (Image.new("L", (60, 41)), "is 60 x 41, its image 60 x 40"),
        (Image.new("L", (40, 60)), "is 40 x 60, its image 60 x 40: rotated by 90 degrees"),
    ):
        path = tmp_path / ("mask.tif" if image.mode in "IF" else "mask.png")
        image.save(path)
        with pytest.raises(OsmError, match=question) as caught:
            read_mask_file(path, SIZE, f"--mask {path}")
        assert str(caught.value).startswith(f"--mask {path}") and len(str(caught.value).splitlines()) == 1


def test_label_maps_in_files(tmp_path: Path) -> None:
    labels = np.where(MASK, 3, 1).astype(np.uint8)
    palette = Image.fromarray(labels, "P")
    palette.putpalette(list(range(12)))
    for image, ending in ((Image.fromarray(labels), "png"), (Image.fromarray(labels.astype(np.uint16)), "tif"),
                          (palette, "png"), (Image.fromarray(labels).convert("RGB"), "png")):  # fmt: skip
        path = tmp_path / f"labels.{ending}"
        image.save(path)
        np.testing.assert_array_equal(read_mask_file(path, SIZE, "--mask x", 3), MASK)
        with pytest.raises(OsmError, match="--mask x has no pixel with the id 2; it contains 1, 3"):
            read_mask_file(path, SIZE, "--mask x", 2)
    clear = Image.merge("LA", (Image.fromarray(labels), Image.fromarray(GREY)))
    for image, ending, told in ((Image.fromarray(labels), "jpg", "as JPEG, which changes ids"),
                                (clear, "png", "mode LA has transparent pixels"),
                                (Image.fromarray(MASK), "png", "with the id 3; it contains 0, 1")):  # fmt: skip
        path = tmp_path / f"labels.{ending}"
        image.save(path)
        with pytest.raises(OsmError, match=told):
            read_mask_file(path, SIZE, "--mask x", 3)


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(GREY).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    np.testing.assert_array_equal(read_mask_file(path, SIZE, "--mask x"), MASK)
    np.testing.assert_array_equal(read_mask_file(path, SIZE, "--mask x", 255), MASK)
    opened, decoded = Image.open(path), Image.open(path)
    decoded.load()
    for image in (opened, decoded):
        np.testing.assert_array_equal(as_mask(image, SIZE, "m"), MASK)
        np.testing.assert_array_equal(as_mask(image, SIZE, "m", label_id=255), MASK)
    with pytest.raises(OsmError, match="m is 60 x 40, its image 40 x 60"):
        as_mask(Image.open(path), SIZE[::-1], "m")


def test_arrays_in_files(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    for array in (MASK, GREY, MASK.astype(np.float32), np.asfortranarray(MASK), MASK[None]):
        np.save(path, array)
        np.testing.assert_array_equal(read_mask_file(path, SIZE, "--mask x"), MASK)
    np.save(path, np.where(MASK, 3, 1))
    np.testing.assert_array_equal(read_mask_file(path, SIZE, "--mask x", 3), MASK)
    for array, question in (
        (np.where(MASK, 9.0, -9.0), "are these logits. save logits > 0"),
        (np.where(MASK, 3, 1), "holds the ids 1, 3: .* --mask_id N"),
        (MASK[:3], r"shape \(3, 60\)"),
        (np.full(SIZE, None), "type object"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(OsmError, match=question):
            read_mask_file(path, SIZE, "--mask x")


def test_arrays_in_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    with pytest.raises(OsmError, match="--mask x: there is no such file"):
        read_mask_file(path, SIZE, "--mask x")

    def npy(header: str, version: bytes = b"\1\0") -> bytes:
        return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + bytes(64)

    good = "{'descr': '|b1', 'fortran_order': False, 'shape': (40, 60), }\n"
    for data in (b"", b"no array", npy(good), npy(good, b"\7\0"), npy(good.replace("|b1", "|O")), npy("[" * 200 + "\n"),
                 npy(good.replace("(40, 60)", "(40, 10**9)")), npy(good.replace("60", "60000000000")),
                 npy(good[:-3] + " " * 20_000 + "}\n")):  # fmt: skip
        path.write_bytes(data)
        with seconds(5), pytest.raises(OsmError, match="--mask x"):
            read_mask_file(path, SIZE, "--mask x")
    path.unlink()
    os.mkfifo(path)
    with seconds(5), pytest.raises(OsmError, match="not a regular file, but a FIFO"):
        read_mask_file(path, SIZE, "--mask x")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, told in (("text.png", "not a readable JPEG"), ("none.png", "there is no such file")):
        with pytest.raises(OsmError, match=f"^--mask x: image .*{name}: {told}"):
            read_mask_file(tmp_path / name, SIZE, "--mask x")
