"""`osm sample` names masks in the photos that come with the package, and draws one picture of all."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from osm.cli import main
from osm.labeling.sample_photos import PANEL_HEIGHT, sample_photos


def test_the_photos_have_masks() -> None:
    photos = sample_photos()
    assert [photo.name for photo in photos] == ["astronaut", "coffee", "chelsea"]
    for photo in photos:
        assert photo.masks.shape[1:] == photo.image.size[::-1]
        assert photo.masks.any((1, 2)).all() and 0.01 < photo.masks.mean() < 0.8


def test_all_masks_are_named_and_drawn(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "photos.jpg"
    assert main(["sample", str(out), "--checkpoint", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {photo.name: len(photo.masks) for photo in sample_photos()}
    assert [line.split(":")[0] for line in lines] == [*counts, "picture"]
    assert all(line.count("%") == counts[line.split(":")[0]] for line in lines[:-1]) and lines[-1].endswith(str(out))
    with Image.open(out) as picture:
        assert picture.height == PANEL_HEIGHT and picture.width > 3 * PANEL_HEIGHT


def test_a_picture_that_cannot_be_written_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["sample", str(tmp_path / "file" / "x.jpg"), "--checkpoint", str(checkpoint)]) == 2
    assert "x.jpg" in capsys.readouterr().err
