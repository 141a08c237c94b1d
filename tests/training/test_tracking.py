"""The log of a run: one process at a time writes it."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S

from osm.errors import OsmError
from osm.training.tracking import Tracker, read_log


def open_tracker(folder: Path) -> Tracker:
    return Tracker(folder, True, "off", "osm", {})


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = open_tracker(tmp_path)
    first.log({"step": 1, "loss": 2.0})
    with pytest.raises(OsmError, match=f"--run_name {tmp_path} is in use by another process"):
        open_tracker(tmp_path)
    first.close()
    open_tracker(tmp_path).close()
    assert [record["step"] for record in read_log(tmp_path)] == [1]


def test_a_half_line_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    tracker = open_tracker(tmp_path)
    tracker.log({"step": 2, "loss": 1.0})
    tracker.close()
    assert [record["loss"] for record in read_log(tmp_path)] == [2.0, 1.0]


def test_a_disk_without_locks_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    open_tracker(tmp_path).close()


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from osm.training.tracking import Tracker\n"
        "Tracker(Path(sys.argv[1]), True, 'off', 'osm', {}); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=PATIENCE_S)
    assert killed.returncode == -9
    open_tracker(tmp_path).close()
