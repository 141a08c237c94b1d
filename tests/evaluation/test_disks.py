"""Predictions and reports on full disks, and with pictures that go in mid-run: exit 3, and the same bytes later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_namer import FakeNamer
from PIL import Image
from small_disk import fill, mounted

from osm.datasets.table import Dataset
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate_cli import generate_main
from osm.evaluation.report.report_cli import report_main


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as place:
        yield place


def generate(out: Path, table: Path, namer: FakeNamer | None = None) -> int:
    command = ["0", "1", "my.pt", str(out), "--sets", "pets", "--datasets", str(table)]
    return generate_main(command, lambda *_, **__: namer or FakeNamer())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(found: dict[str, bytes]) -> dict[str, Any]:
    return {name: {**json.loads(data), "seconds": 0} if "meta" in name else data for name, data in found.items()}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_full_disk_ends_prediction_with_a_sentence(
    disk: Path, pets_yaml: Path, tmp_path: Path, pages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "whole", pets_yaml) == 0
    (disk / "out").mkdir()
    filler = fill(disk, pages)
    capsys.readouterr()
    assert generate(disk / "out", pets_yaml) == 3
    error = last_line(capsys)
    assert error.startswith(f"error: {disk / 'out'}/pets_") and "No space left on device" in error
    assert "run the same command to resume once there is free space again" in error
    assert not list((disk / "out").glob("*.tmp"))
    filler.unlink()
    assert generate(disk / "out", pets_yaml) == 0
    assert without_times(files(disk / "out")) == without_times(files(tmp_path / "whole"))


def test_a_full_disk_ends_reports_and_scores_with_a_sentence(
    disk: Path, pets_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "pred", pets_yaml) == 0
    filler = fill(disk)
    flags = ["--predictions", f"run={tmp_path / 'pred'}", "--parts", "1", "--datasets", str(pets_yaml)]
    call = [str(disk), *flags, "--metrics", "published", "--pictures", "0", "--surest", "0"]
    capsys.readouterr()
    assert report_main(call) == 3
    assert f"error: out_dir {disk}: No space left on device" in last_line(capsys)
    figures = ["--datasets", str(pets_yaml), "--json", str(disk / "figures.json")]
    assert evaluate_main([str(tmp_path / "pred"), "1", *figures]) == 3
    assert f"error: --json {disk / 'figures.json'}: No space left on device" in last_line(capsys)
    assert sorted(path.name for path in disk.iterdir()) == ["filler"]
    filler.unlink()
    assert report_main(call) == 0 and report_main([str(tmp_path / "report"), *call[1:]]) == 0
    assert files(disk) == files(tmp_path / "report")


class Vandal(FakeNamer):
    """Removes a file after some images."""

    def __init__(self, victim: Path, after: int) -> None:
        super().__init__()
        self.victim, self.after = victim, after

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: Any) -> Any:
        if len(self.calls) == self.after:
            self.victim.rename(self.victim.with_suffix(".away"))
        return super().name_image(image, masks, modes)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_picture_that_goes_in_mid_run_is_named(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "whole", pets_yaml) == 0
    victim = tmp_path / "pets" / folder / "1.png"  # the fourth that is named
    assert generate(tmp_path / "out", pets_yaml, Vandal(victim, 1)) == 3
    error = last_line(capsys)
    assert f"error: {victim}: No such file or directory; the file existed when the run started" in error
    assert generate(tmp_path / "out", pets_yaml) == 2  # one that is missing from the start is known before any naming
    assert f"set 'pets': 1 of the 4 files to read are missing; the first one is {victim}" in last_line(capsys)
    os.mkfifo(victim)
    assert generate(tmp_path / "out", pets_yaml) == 2
    assert f"{victim} is not a regular file, but a FIFO" in last_line(capsys)
    victim.unlink()
    victim.with_suffix(".away").rename(victim)
    assert generate(tmp_path / "out", pets_yaml) == 0
    assert without_times(files(tmp_path / "out")) == without_times(files(tmp_path / "whole"))
