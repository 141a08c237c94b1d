"""`osm label --engine ray` on a Ray cluster of this machine, whose worker and driver are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from noise_photos import noise_photos
from processes import PATIENCE_S, wait_until

from osm.labeling.label_cli import main
from osm.labeling.parts.part_store import PartStore

pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.slow
WORKER = b"ray::MapWorker"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_photos(tmp_path_factory.mktemp("data"))


def command(photos: Path, out: Path, checkpoint: Path, *more: str) -> list[str]:
    model = ["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "4", "--part_images", "1"]
    return [str(photos / "images"), str(out), "--masks", str(photos / "masks.json"), *model, *more]


def files(out: Path) -> dict[str, bytes]:
    store = PartStore(str(out))
    return {name: store.read(f"parts/{name}") or b"" for name in store.names("parts")}


class Driver:
    """A run of the command that can be killed; its workers are found by a variable that they inherit."""

    def __init__(self, words: list[str]) -> None:
        self.token = time.time_ns()
        environment = {**os.environ, "OSM_RAY_TEST": str(self.token)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "osm", "label", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def workers(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_worker = (path / "cmdline").read_bytes().startswith(WORKER)
                owned = f"OSM_RAY_TEST={self.token}".encode() in (path / "environ").read_bytes()
            except OSError:
                continue
            if is_worker and owned:
                found.append(int(path.name))
        return found

    def wait_for_parts(self, out: Path, count: int) -> None:
        wait_until(lambda: len(files(out)) >= count, self.process)


def test_the_same_parts_whatever_is_killed(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert main(command(photos, tmp_path / "local", checkpoint, "--to", "parts")) == 1  # one image failed
    expected = files(tmp_path / "local")
    words = command(photos, tmp_path / "ray", checkpoint, "--engine", "ray", "--processes", "2")

    driver = Driver(words)
    driver.wait_for_parts(tmp_path / "ray", 1)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.communicate()
    wait_until(lambda: not driver.workers(), message="the workers of a killed driver go on")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray" / "parts").glob("part*")}

    driver = Driver(words)
    wait_until(driver.workers, driver.process)
    os.kill(driver.workers()[0], signal.SIGKILL)
    said, errors = driver.process.communicate(timeout=PATIENCE_S)
    assert driver.process.returncode == 1, errors
    assert said.splitlines()[0].startswith("11 images, ") and files(tmp_path / "ray") == expected
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray" / "parts").glob("part*")}
    failed = "part-000003-00000.parquet"  # is tried again
    assert {name for name, stamp in before.items() if after[name] != stamp} <= {failed}


def test_a_cluster_that_is_not_there(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(photos, tmp_path, checkpoint, "--engine", "ray", "--ray_address", "no address")
    assert main(words) == 2
    assert "--ray_address no address" in capsys.readouterr().err
