"""The long series of scripts/, each as one small case."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kill_series
import pytest

pytestmark = pytest.mark.slow


def test_kills_over_a_change_of_batch_size(tmp_path: Path) -> None:
    found = kill_series.series(tmp_path, kills=2, seed=3, most_steps=4, phases=kill_series.PHASES[:2])
    assert [phase["batch_size"] for phase in found["phases"]] == [1, 2]
    assert all(phase["equal_losses"] >= 3 for phase in found["phases"])


def test_the_series_notices_what_is_lost(tmp_path: Path) -> None:
    """A start that takes an older checkpoint than the one that was announced is a failure."""

    class Taken:
        resumed, lines = ("old", 2), ["resumed from old"]

    with pytest.raises(kill_series.Failed, match="announced new, but the next start took old"):
        kill_series.check_start(Taken(), "new", {"old": 1, "new": 2}, tmp_path)
    kill_series.check_start(Taken(), "old", {"old": 1}, tmp_path)


def test_gpu_smoke_on_a_cpu(tmp_path: Path) -> None:
    out, script = tmp_path / "figures.json", Path(__file__).resolve().parents[2] / "scripts" / "gpu_smoke.py"
    flags = ["--device", "cpu", "--cases", "fsdp", "--steps", "3", "--out", str(out)]
    done = subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (case,) = json.loads(out.read_text())["cases"].values()
    assert case["ok"] and case["seconds_per_step"] > 0
