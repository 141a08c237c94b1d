"""Where `osm label` finds images and masks: lists, shards, URLs, ids, label maps, mask PNGs, videos."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import S3Server

from osm.errors import OsmError, SampleError
from osm.io.segmentation import encode_rle
from osm.labeling.formats import recognized
from osm.labeling.formats.label_format import LabelShape
from osm.labeling.label_tasks import LabelInput, counted, find_tasks

SIZE = (64, 48)


def photo(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8))


def mask(number: int) -> np.ndarray:
    found = np.zeros(SIZE[::-1], bool)
    found[5:20, 4 + number : 30 + number] = True
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        photo(number).save(folder / "sub" / f"COCO_val_{number:012d}.png")
    return folder


def decoded(found: LabelInput) -> dict[str, list[np.ndarray]]:
    """The masks of each image, after its pixels have been read."""
    result = {}
    for task in found.tasks:
        size = task.image.photo(None).size
        assert found.reader is not None and task.source is not None
        shapes = list(found.reader.shapes(task.source, size))
        assert not [shape for shape in shapes if isinstance(shape, SampleError)]
        result[task.file_name] = [shape.mask for shape in shapes if isinstance(shape, LabelShape)]
    return result


def instances(path: Path, count: int = 4, name: str = "sub/COCO_val_{:012d}.png") -> Path:
    rows = [{"id": k, "image_id": k, "category_id": 1, "segmentation": encode_rle(mask(k))} for k in range(count)]
    listed = [{"id": k, "file_name": name.format(k), "width": SIZE[0], "height": SIZE[1]} for k in range(count)]
    path.write_text(json.dumps({"images": listed, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}))
    return path


def test_a_list_of_images(images: Path, tmp_path: Path) -> None:
    """Relative to the list, in the order of the list; masks of other images are counted."""
    listed = tmp_path / "some.txt"
    names = [f"images/sub/COCO_val_{k:012d}.png" for k in (2, 0)]
    listed.write_text("# chosen\n" + "\n".join(names) + "\n")
    auto = find_tasks(str(listed), auto=True)
    assert [task.file_name for task in auto.tasks] == [f"COCO_val_{k:012d}.png" for k in (2, 0)]
    found = find_tasks(str(listed), str(instances(tmp_path / "a.json")))
    assert found.left_out == 2
    assert [np.array_equal(one, mask(k)) for k, [one] in zip((0, 2), decoded(found).values(), strict=True)] == [
        True
    ] * 2
    listed.write_text("images/sub/none.png\n")
    with pytest.raises(OsmError, match="lists none of the 4 images with masks"):
        find_tasks(str(listed), str(tmp_path / "a.json"))


def test_results_have_ids_instead_of_names(images: Path, tmp_path: Path) -> None:
    """The number is in the file's name, or a COCO json lists the names."""
    file = tmp_path / "results.json"
    rows = [{"image_id": k, "segmentation": encode_rle(mask(k)), "score": 0.5} for k in (3, 1, 3)]
    file.write_text(json.dumps(rows))
    assert recognized(file).name == "coco_results"
    found = decoded(find_tasks(str(images), str(file)))
    assert list(found) == [f"sub/COCO_val_{k:012d}.png" for k in (3, 1)] and len(next(iter(found.values()))) == 2
    for number in (3, 1):
        (images / f"{number}.png").write_bytes((images / "sub" / f"COCO_val_{number:012d}.png").read_bytes())
    document = instances(tmp_path / "instances.json")
    named = find_tasks(str(document), str(file), str(images))
    assert [task.file_name for task in named.tasks] == [f"sub/COCO_val_{k:012d}.png" for k in (3, 1)]
    file.write_text(json.dumps([{**rows[0], "image_id": 99}]))
    with pytest.raises(OsmError, match="lists no image with this id"):
        find_tasks(str(document), str(file), str(images))


def test_label_maps_and_folders_of_mask_pngs(images: Path, tmp_path: Path) -> None:
    for number in range(2):
        ids = np.zeros(SIZE[::-1], np.uint8)
        ids[mask(number)], ids[-3:] = 7, 255
        (tmp_path / "maps" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "voc").mkdir(exist_ok=True)
        saved = Image.fromarray(ids, "P")
        saved.putpalette(list(range(256)) * 3)
        saved.save(tmp_path / "voc" / f"COCO_val_{number:012d}.png")
        folder = tmp_path / "pngs" / f"COCO_val_{number:012d}"
        folder.mkdir(parents=True)
        for k in range(12):
            Image.fromarray(mask(k)).save(folder / f"{k}.png")
    assert recognized(tmp_path / "voc").name == "label_maps"
    found = decoded(find_tasks(str(images), str(tmp_path / "voc")))
    assert [np.array_equal(one, mask(k)) for k, [one] in enumerate(found.values())] == [True, True]
    assert recognized(tmp_path / "pngs").name == "mask_folders"
    [first, _] = decoded(find_tasks(str(images), str(tmp_path / "pngs"))).values()
    assert all(np.array_equal(one, mask(k)) for k, one in enumerate(first)) and len(first) == 12
    with pytest.raises(OsmError, match="holds no masks in a known format"):
        find_tasks(str(images))  # PNGs beside nothing are photos


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    photo(number).save(buffer, "JPEG")
    return buffer.getvalue()


def test_tar_files_of_sa1b_and_shards(tmp_path: Path) -> None:
    """Both have a json beside each image; a png beside a jpg is a label map."""
    for shard in range(2):
        members = {}
        for number in range(2):
            row = {"segmentation": encode_rle(mask(number)), "predicted_iou": 0.9, "id": 5}
            members[f"sa_{number}.jpg"] = jpeg(number)
            members[f"sa_{number}.json"] = json.dumps({"image": {}, "annotations": [row]}).encode()
        tar(tmp_path / f"{shard:06d}.tar", members)
    found = find_tasks(f"{tmp_path}/{{000000..000001}}.tar")
    assert [task.file_name for task in found.tasks] == [f"{s:06d}/sa_{n}.jpg" for s in (0, 1) for n in (0, 1)]
    assert all(np.array_equal(one, mask(k % 2)) for k, [one] in enumerate(decoded(found).values()))
    auto = find_tasks(f"{tmp_path}/{{000000..000001}}.tar", auto=True)
    assert [task.image for task in auto.tasks] == [task.image for task in found.tasks]
    with_masks = find_tasks(f"{tmp_path}/000001.tar", str(instances(tmp_path / "a.json", 2, "sa_{}.jpg")))
    assert [task.image for task in with_masks.tasks] == [task.image for task in found.tasks[2:]]
    (tmp_path / "000000.tar").write_bytes((tmp_path / "000000.tar").read_bytes()[:2000])
    with pytest.raises(OsmError, match=r"000000\.tar: it is truncated"):
        find_tasks(f"{tmp_path}/000000.tar", auto=True)
    tar(tmp_path / "c.tar", {"../../d/a.jpg": jpeg(0)})
    assert [task.file_name for task in find_tasks(f"{tmp_path}/c.tar", auto=True).tasks] == ["c/d/a.jpg"]
    tar(tmp_path / "b.tar", {"a.jpg": jpeg(0), "a.cls": b"3"})
    with pytest.raises(OsmError, match="no sample has an image and a json with masks"):
        find_tasks(f"{tmp_path}/b.tar")


def test_a_broken_file_of_masks_costs_its_image_alone(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], console: None
) -> None:
    """A label map, or the json of a sample. It is read when its image is labeled, or when masks are counted."""
    (tmp_path / "voc").mkdir()
    for number in range(2):
        saved = Image.fromarray(mask(number).astype(np.uint8), "P")
        saved.putpalette(list(range(256)) * 3)
        saved.save(tmp_path / "voc" / f"COCO_val_{number:012d}.png")
    (tmp_path / "voc" / "COCO_val_000000000001.png").write_bytes(b"no image")
    row = json.dumps({"annotations": [{"segmentation": encode_rle(mask(0))}]}).encode()
    members = {"a.jpg": jpeg(0), "a.json": row, "b.jpg": jpeg(1), "b.json": b"[{"}
    shard = tar(tmp_path / "a.tar", members)
    for found in (find_tasks(str(images), str(tmp_path / "voc")), find_tasks(str(shard))):
        assert len(found.tasks) == 2 and found.reader is not None
        assert counted(found) == 1 and "its masks are not counted" in capsys.readouterr().err
        good, bad = (task.source for task in found.tasks)
        assert good is not None and bad is not None and len(list(found.reader.shapes(good, SIZE))) == 1
        try:
            [error] = found.reader.shapes(bad, SIZE)
        except OsmError as raised:
            error = raised
        assert isinstance(error, OsmError)


def test_a_folder_on_s3(images: Path, clean_s3: S3Server, tmp_path: Path) -> None:
    for file in images.rglob("*.png"):
        clean_s3.put("bucket", f"photos/{file.relative_to(images).as_posix()}", file.read_bytes())
    clean_s3.put("bucket", "a.json", instances(tmp_path / "a.json").read_bytes())
    auto = find_tasks("s3://bucket/photos", auto=True)
    assert [task.file_name for task in auto.tasks] == [f"sub/COCO_val_{k:012d}.png" for k in range(4)]
    found = decoded(find_tasks("s3://bucket/photos", "s3://bucket/a.json"))
    assert all(np.array_equal(one, mask(k)) for k, [one] in enumerate(found.values())) and len(found) == 4


def test_masks_that_refer_to_the_stored_pixels_of_a_rotated_photo(tmp_path: Path) -> None:
    """As in `osm prepare`: the stated size decides whether the EXIF orientation is applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(0).save(tmp_path / "a.jpg", exif=exif)
    [task] = find_tasks(str(tmp_path), auto=True).tasks
    assert task.image.photo(None).size == SIZE[::-1] and task.image.photo(SIZE).size == SIZE


@pytest.fixture
def clip(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a video of so many frames, whose gray value is ten times the position of the frame."""
    av = pytest.importorskip("av")

    def write(count: int) -> Path:
        path = tmp_path / "clip.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((*SIZE[::-1], 3), 10 * number, np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


def test_the_frames_of_a_video(clip: Callable[[int], Path], tmp_path: Path) -> None:
    from osm.labeling.video import extract_frames

    folder = extract_frames(clip(8), tmp_path / "frames", [1, 5])
    files = sorted(folder.glob("*.jpg"))
    assert [file.name for file in files] == ["000001.jpg", "000005.jpg"]
    assert [np.asarray(Image.open(file)).mean() for file in files] == pytest.approx([10, 50], abs=4)
    before = [file.stat().st_mtime_ns for file in files]
    extract_frames(tmp_path / "clip.mp4", tmp_path / "frames", [1, 5])
    assert [file.stat().st_mtime_ns for file in files] == before  # nothing is decoded again
    assert len(list(extract_frames(tmp_path / "clip.mp4", tmp_path / "all").glob("*.jpg"))) == 8
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(OsmError, match="is not a video that can be decoded"):
        extract_frames(tmp_path / "bad.mp4", tmp_path / "bad")
