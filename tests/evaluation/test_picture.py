"""A picture of predictions: its size, what stands in it, what it is refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.report import result_images
from osm.evaluation.report.report_cli import picture_main
from osm.evaluation.report.result_images import write_picture


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "JPEG"
        return image.size


@pytest.mark.parametrize(
    ("images", "columns", "across", "down"), [(5, 3, 3, 2), (6, 3, 3, 2), (2, 3, 2, 1), (4, 1, 1, 4), (1, 1, 1, 1)]
)
def test_images_stand_side_by_side(
    mugs: Dataset, folder: Path, tmp_path: Path, images: int, columns: int, across: int, down: int
) -> None:
    """There are five; they are of 8 x 6, enlarged."""
    width, height = size_of(write_picture(tmp_path / "one.jpg", folder, 1, {"pets": mugs}, "pets", 1))
    assert width > 8 and abs(width * 6 - height * 8) <= 8
    path = tmp_path / "new" / "picture.jpg"
    assert write_picture(path, folder, 1, {"pets": mugs}, "pets", images, columns) == path
    assert size_of(path) == (across * (width + 8) - 8, down * (height + 8) - 8)
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.jpg"]


def test_a_wrong_name_is_followed_by_the_right_one(
    mugs: Dataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    def draw(image: Image.Image, masks: np.ndarray, names: list[str], alpha: float) -> Image.Image:
        assert len(masks) == len(names) and all(mask.any() for mask in masks)
        texts.append(names)
        return image

    monkeypatch.setattr(result_images, "draw_names", draw)
    write_picture(tmp_path / "picture.jpg", folder, 1, {"pets": mugs}, "pets", 6)
    assert texts == [
        ["striped kettle", "mug"],
        ["Teapots", "mugs"],
        ["dotted kettle [striped kettle]", "MUG"],
        ["striped mug [striped kettle]", "mug"],
        ["mug [striped kettle]", "striped kettle [mug]"],
    ]


def test_another_set_is_refused(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="--set 'coco': .* only has predictions for pets"):
        write_picture(tmp_path / "picture.jpg", folder, 1, {"pets": mugs}, "coco")
    assert not (tmp_path / "picture.jpg").exists()


def test_images_that_are_gone_are_an_error(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    for path in Path(str(mugs.image_dir)).iterdir():
        path.unlink()
    with pytest.raises(OsmError, match="images"):
        write_picture(tmp_path / "picture.jpg", folder, 1, {"pets": replace(mugs)}, "pets")


def test_the_command(
    mugs: Dataset, folder: Path, pets_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.jpg"
    call = [str(folder), "1", str(path), "--datasets", str(pets_yaml)]
    assert picture_main([*call, "--set", "pets", "--images", "2"]) == 0
    assert capsys.readouterr().out == f"{path}\n" and path.is_file()
    for flags, message in (
        (["--set", "mugs"], "--set 'mugs'"),
        (["--set", "pets", "--images", "0"], "--images 0 must be 1 or more"),
        (["--set", "pets", "--columns", "0"], "--columns 0 must be 1 or more"),
    ):
        assert picture_main([*call, *flags]) == 2
        assert message in capsys.readouterr().err
    call[2] = str(tmp_path / "picture.png")
    assert picture_main([*call, "--set", "pets"]) == 2
    assert "picture.png: expected a file name that ends in .jpg" in capsys.readouterr().err
