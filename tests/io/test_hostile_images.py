"""Pictures that claim or expand to gigabytes, or take hours: a reason, in little memory and time; damage likewise."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import bmp_file, jpeg_file, jpeg_segment, pictures, run_python, saved, seconds, with_segments
from PIL import Image, ImageFile, PngImagePlugin, features

from osm.errors import OsmError, SampleError
from osm.forms.set_files import read_file as read_bytes
from osm.io import images
from osm.io.headers import has_few_scans, repeated_samples
from osm.io.images import as_rgb, decode, open_image, read_ids, read_panoptic, read_pixels, read_rgb
from osm.serving.http_images import display_jpeg
from osm.synthetic.collages import Cutout

HERE = Path(__file__).parent
# Reads every picture in four ways, in a process that may take 300 MB and 20 seconds beyond what it has taken so far.
CHILD = """
import json, pickle, resource, sys, warnings
from osm.io.images import read_ids, read_panoptic, read_pixels, read_rgb
from osm.errors import SampleError
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (300 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
warnings.simplefilter("error" if sys.argv[2] == "strict" else "ignore")
found = {}
for name, data in pickle.load(open(sys.argv[1], "rb")).items():
    for read in (read_rgb, read_pixels, read_ids, read_panoptic):
        try:
            read(data)
        except SampleError as error:
            found[f"{name}, {read.__name__}"] = error.reason
        else:
            found[f"{name}, {read.__name__}"] = "read"
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know how much memory is in use")
@pytest.mark.parametrize("warnings", ["strict", "quiet"])
def test_pictures_that_claim_much_take_little(tmp_path: Path, warnings: str) -> None:
    made = pictures()
    (tmp_path / "files").write_bytes(pickle.dumps({name: data for name, (data, _) in made.items()}))
    assert max(len(data) for data, _ in made.values()) < 2 << 20
    done = run_python(CHILD, str(tmp_path / "files"), warnings)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {f"{name}, {read}": reason for name, (_, reason) in made.items()
                for read in ("read_rgb", "read_pixels", "read_ids", "read_panoptic")}  # fmt: skip
    # A JPEG is no label map, whatever its scans: it is refused before they are counted.
    refused = {
        f"{name}, read_ids" for name, (_, reason) in made.items() if reason == "image_truncated" and "jpeg" in name
    }
    expected |= dict.fromkeys(refused, "mask_not_ids")
    found = json.loads(done.stdout)
    if warnings == "strict":  # Pillow warns of some before it refuses them
        assert found.keys() == expected.keys() and "read" not in found.values()
    else:
        assert found == expected


def test_the_bounds_are_on_pixels_and_on_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(images, "MAX_SIDE", 400)
    for size, passes in (
        ((100, 100), True),
        ((101, 100), False),
        ((400, 2), True),
        ((401, 1), False),
        ((1, 401), False),
    ):
        data = saved(Image.new("RGB", size), "PNG")
        if passes:
            assert read_rgb(data).size == size
            continue
        with pytest.raises(SampleError) as caught:
            read_rgb(data)
        assert caught.value.reason == "image_too_large"


def test_scans_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few, many = jpeg_file(64, 64, scans=5), jpeg_file(64, 64, scans=40)
    monkeypatch.setattr(images, "MAX_REPEATED_SAMPLES", 20 * 64 * 64)
    (tmp_path / "x.jpg").write_bytes(few)
    for source in (few, tmp_path / "x.jpg"):
        assert read_rgb(source).size == (64, 64)
        assert read_pixels(source, (16, 16)).shape == (16, 16, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    for at_least in (None, (8, 8)):  # an eighth of the size has as many scans
        with pytest.raises(SampleError, match="broken data .the JPEG scans decode over 81920 samples more than once"):
            read_pixels(many, at_least)


def test_files_with_few_scans_repeat_few_samples() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    files = {name: data for name, (data, _) in pictures().items() if data.startswith(b"\xff\xd8")}
    files |= {f"{scans} scans": jpeg_file(64, 72, scans=scans) for scans in (1, 5, 40)}
    files |= {f"progressive {kind}": saved(photo, "JPEG", progressive=True, subsampling=kind) for kind in range(3)}
    few = 0
    for name, data in files.items():
        try:
            size = open_image(data).size
        except SampleError:
            continue
        for most in (0, 10**4, 10**6, 10**8, images.MAX_REPEATED_SAMPLES):
            if has_few_scans(data, size, most):
                assert repeated_samples(data, most) <= most, name
                few += 1
    assert few > 10
    assert has_few_scans(files["1 scans"], (64, 72), images.MAX_REPEATED_SAMPLES)


def test_ordinary_progressive_jpegs_of_any_size_pass() -> None:
    twenty = jpeg_file(11_000, 10_900, scans=14)
    assert (
        twenty.count(b"\xff\xda") == 20
        and 19 * 11_000 * 10_900 <= repeated_samples(twenty, 1 << 60) <= images.MAX_REPEATED_SAMPLES
    )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"quality": 100, "subsampling": 1}):
        data = saved(noise, "JPEG", progressive=True, **options)
        at = data.index(b"\xff\xc2") + 5
        large = data[:at] + (10_900).to_bytes(2, "big") + (11_000).to_bytes(2, "big") + data[at + 4 :]
        assert data.count(b"\xff\xda") >= 10
        assert 0 < repeated_samples(large, 1 << 60) <= images.MAX_REPEATED_SAMPLES
    assert repeated_samples(saved(noise, "JPEG"), 0) == 0
    assert read_rgb(jpeg_file(64, 64, scans=400)).size == (64, 64)  # small: whatever it has is done at once


def test_only_the_scans_of_the_picture_count() -> None:
    """Metadata may hold a thumbnail's marks, and a film may follow the picture."""
    marks = b"\xff\xda" * 30_000
    data = with_segments(saved(Image.new("RGB", (512, 512)), "JPEG"), 30 * jpeg_segment(0xE5, marks))
    assert repeated_samples(data + marks * 20, 0) == 0
    assert read_rgb(data + marks * 20).size == (512, 512)


def test_scans_cannot_be_hidden() -> None:
    plain = jpeg_file(512, 512, scans=9)
    scans = plain[plain.rfind(b"\xff\xda") : -2]
    exactly = repeated_samples(plain, 1 << 60)
    for hidden in (b"\xff\x02\xff\xff", b"\xff\xd3\xff\xff", b"\xff\xff\xff", b"\0" * 9, b"\xff\xe9\0\0", b"\xff\x01"):
        for where in (plain.find(scans), plain.find(scans) + len(scans)):
            assert repeated_samples(plain[:where] + hidden + plain[where:], 1 << 60) >= exactly, hidden
    arithmetic = plain.replace(b"\xff\xc2", b"\xff\xca")
    assert repeated_samples(arithmetic, 1 << 60) > 7 * exactly


def test_whatever_reads_a_picture_bounds_its_scans(tmp_path: Path) -> None:
    """A minute of work in 100 KB, by every way in that takes a file."""
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_file(9_900, 10_000, scans=900))
    readers: tuple[Callable[[Path], object], ...] = (
        read_rgb,
        read_panoptic,
        as_rgb,
        lambda file: display_jpeg(Path(file).read_bytes()),
        lambda file: Cutout(file, file).load(),
    )
    for read in readers:
        with seconds(5), pytest.raises(OsmError, match=r"x.jpg|more than once"):
            read(path)


def test_a_path_that_is_no_file_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    for path, kind in ((tmp_path / "x.jpg", "a FIFO"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        for read in (read_rgb, as_rgb):
            with seconds(5), pytest.raises(SampleError, match=f"image {path} is not a regular file, but {kind}"):
                read(path)
        with seconds(5), pytest.raises(SampleError, match="is not a regular file"):
            read_bytes(path)


def test_whatever_pillow_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("RGB", (9, 9)), "PNG")
    for error in (OverflowError, MemoryError, KeyError, AttributeError, RuntimeWarning, RecursionError):
        with monkeypatch.context() as patched:
            patched.setattr(PngImagePlugin.PngImageFile, "_open", lambda _, error=error: (_ for _ in ()).throw(error()))
            with pytest.raises(SampleError) as caught:
                read_rgb(data)
            assert caught.value.reason == "image_unreadable"
        opened = open_image(data)
        monkeypatch.setattr(opened, "load", lambda error=error: (_ for _ in ()).throw(error()))
        with pytest.raises(SampleError) as caught:
            decode(opened)
        assert caught.value.reason == "image_truncated"


def test_a_mode_that_cannot_be_converted_is_a_reason() -> None:
    opened = open_image(saved(Image.new("RGB", (9, 9)), "PNG"))
    with pytest.raises(SampleError) as caught:
        decode(opened, "no such mode")
    assert caught.value.reason == "image_truncated"


def kinds() -> dict[str, bytes]:
    """Pictures of many kinds, with all that may stand beside the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    ids = Image.fromarray((np.arange(1200).reshape(30, 40) // 200).astype(np.uint16))
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("a", "b" * 50, zip=True)
    text.add_itxt("c", "d")
    exif[0x0112], exif[0x010E] = 6, "x" * 30
    return {
        "jpeg": saved(rgb, "JPEG", exif=exif, icc_profile=b"x" * 200, dpi=(72, 72)),
        "progressive": saved(rgb, "JPEG", progressive=True),
        "cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "several": saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "png": saved(rgb, "PNG", pnginfo=text, icc_profile=b"x" * 200, exif=exif),
        "palette": saved(rgb.quantize(16), "PNG", transparency=b"\1\2\3"),
        "animated": saved(rgb, "PNG", save_all=True, append_images=[rgb]),
        "ids": saved(ids, "PNG"),
        "tiff": saved(ids, "TIFF"),
        "lzw": saved(ids, "TIFF", compression="tiff_lzw"),
        "deflate": saved(ids, "TIFF", compression="tiff_adobe_deflate"),
        "lab": saved(Image.new("LAB", (40, 30)), "TIFF"),
        "float": saved(Image.new("F", (30, 20)), "TIFF"),
        "webp": saved(rgb, "WEBP", exif=exif),
        "webp lossless": saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        "webp film": saved(rgb, "WEBP", save_all=True, append_images=[rgb]),
        "bmp": saved(rgb, "BMP"),
        "bmp runs": bmp_file(40, 30, bytes([40, 7, 0, 0]) * 30 + b"\0\1"),
        "gif": saved(rgb.quantize(16), "GIF", transparency=3, comment=b"x" * 300),
        "gif film": saved(rgb, "GIF", save_all=True, append_images=[rgb, rgb.rotate(90)], disposal=2),
        **({"avif": saved(rgb, "AVIF", exif=exif)} if features.check("avif") else {}),
    }


@pytest.mark.filterwarnings("ignore")  # Pillow's of damaged files
def test_damage_of_any_kind_is_a_reason() -> None:
    rng, made = random.Random(0), kinds()
    reasons: set[str] = set()
    with seconds(60):
        for turn in range(1500):
            data = bytearray(made[list(made)[turn % len(made)]])
            if turn % 4 == 3:
                del data[rng.randrange(len(data)) :]
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(data) or 1)  # half of it at either end, where the structure is
                at = rng.choice((at, at, min(at, rng.randrange(300)), max(at, len(data) - 1 - rng.randrange(300))))
                data[at : at + 1] = bytes([rng.choice((0, 255, 127, 128, rng.randrange(256)))])
            for read in (read_rgb, read_pixels, read_ids, read_panoptic):
                try:
                    read(bytes(data))
                except SampleError as error:
                    reasons.add(error.reason)
    assert {"image_unreadable", "image_truncated", "mask_not_ids", "mask_not_rgb"} <= reasons


def test_pictures_are_opened_and_decoded_in_one_place() -> None:
    """`osm.io.images`, which bounds what that costs."""
    others = {
        "io/images.py",
        "training/sharded_layout.py",
        "synthetic/collages.py",
    }  # a pickle's `load()`, and a cut-out's own
    for path in (HERE.parents[1] / "osm").rglob("*.py"):
        name, text = path.relative_to(HERE.parents[1] / "osm").as_posix(), path.read_text()
        if name != "io/images.py":
            assert not re.search(r"Image\.open\(|PIL.* ImageFile\b|imageio|imread", text), path
            assert name in others or not re.search(r"\.load\(\)", text), path


def test_pixels_are_decoded_by_pillow_and_the_fast_decoders_alone() -> None:
    # torchvision's decoders end the process on some damaged PNGs. Its operators on tensors decode nothing.
    for path in (HERE.parents[1] / "osm").rglob("*.py"):
        found = r"torchvision(?!\.ops )|decode_(png|jpeg|image)|import (cv2|simplejpeg|imagecodecs)"
        assert path.name == "fast_decoding.py" or not re.search(found, path.read_text()), path
