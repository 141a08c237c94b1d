"""What one sees of a run: a live line, JSON lines, a curve as PNG, wandb where asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import check_regular_file, lock
from osm.terminal import echo


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """A line on stderr with a count, a rate and the time left, at most once a second."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self.what, self.total, self.shown = what, total, shown and total > 0
        self.done, self.started, self.last = 0, time.monotonic(), 0.0

    def step(self) -> None:
        self.done += 1
        if self.shown and time.monotonic() - self.last >= 1:
            self._print("\r" if sys.stderr.isatty() else "\n")

    def close(self) -> None:
        if self.shown:
            self._print("\n")

    def _print(self, end: str) -> None:
        self.last = time.monotonic()
        rate = self.done / max(self.last - self.started, 1e-9)
        left = clock((self.total - self.done) / max(rate, 1e-9))
        echo(f"{self.what}: {self.done}/{self.total}, {rate:.2f}/s, {left} left", end=end, file=sys.stderr, flush=True)


class Tracker:
    """The log of a run; only the main process writes.

    Args:
        folder: `log.jsonl` and `loss.png` go there. wandb: off | offline | online.
    """

    def __init__(self, folder: Path, enabled: bool, wandb: str, project: str, config: Mapping[str, Any]) -> None:
        self.folder, self.enabled = folder, enabled
        self._wandb: Any = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a+", encoding="utf-8")
        if not lock(self._file):  # two runs in one folder would take each other's checkpoints for their own
            self._file.close()
            raise OsmError(f"--run_name {folder}: another process is training there; wait for it, or end it")
        self._end_half_line()
        if wandb != "off":
            try:
                import wandb as library
            except ImportError:
                raise OsmError(f"--wandb {wandb}: the package wandb is not installed (pip install wandb)") from None
            options: dict[str, Any] = {"mode": wandb, "config": dict(config)}
            self._wandb = library.init(project=project, name=folder.name, dir=folder, **options)

    def _end_half_line(self) -> None:
        """What a killed run was writing stays alone on its line."""
        with (self.folder / "log.jsonl").open("rb") as file:
            data = file.read()
        if data and not data.endswith(b"\n"):
            self._file.write("\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one record, a flat mapping with `step`."""
        if not self.enabled:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in record.items() if isinstance(v, (int, float))}, step=record.get("step"))

    def say(self, text: str) -> None:
        if self.enabled:
            echo(text, flush=True)

    def close(self) -> None:
        if self.enabled:
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the step records of a run's log, after a resumed run the latest record of each step.

    A half line is left out. Where a run went on with another batch size or number of processes, its steps were numbered
    anew; older records with a higher number count steps of another length, and are left out.
    """
    records: dict[int, dict[str, Any]] = {}
    check_regular_file(folder / "log.jsonl", "training log")
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if "renumbered_from" in record:
            records = {step: kept for step, kept in records.items() if step <= record["step"]}
        if "loss" in record:
            records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def draw_curve(folder: Path) -> None:
    """Draws `loss.png` from `log.jsonl`: the step's loss, and each set's halves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(folder)
    if not records:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        [r["step"] for r in records], [r["loss"] for r in records], color="black", linewidth=2, label="all sets, summed"
    )
    for name in sorted({key for r in records for key in r if key.startswith("loss/")}):
        points = [(r["step"], r[name]) for r in records if name in r]
        style = "--" if name.endswith("/any") else "-"
        axes.plot(*zip(*points, strict=True), style, linewidth=1, label=name.removeprefix("loss/"))
    axes.set(xlabel="optimiser step", ylabel="cross entropy of a token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    temporary = folder / "loss.png.tmp"
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    temporary.replace(folder / "loss.png")
