"""Reports the progress of a run: log lines, a progress bar, a JSONL log, a PNG loss curve, and optionally wandb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import check_regular_file, lock
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)


class Tracker:
    """Writes a training run's log. Only rank 0 writes.

    Args:
        folder: the folder of `log.jsonl` and `loss.png`.
        enabled: whether this process is the main process.
        wandb: "off", "offline" or "online".
        project: the name of the wandb project.
        config: the configuration of the run, which is sent to wandb.

    Raises:
        OsmError: a different process is training in the folder, or wandb is not installed.
    """

    def __init__(self, folder: Path, enabled: bool, wandb: str, project: str, config: Mapping[str, Any]) -> None:
        self.folder, self.enabled = folder, enabled
        self._wandb: Any = None
        self._bar: ProgressBar | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a+", encoding="utf-8")
        if not lock(self._file):  # two runs in one folder would resume from each other's checkpoints
            self._file.close()
            raise OsmError(f"--run_name {folder} is in use by another process; wait for it to finish, or stop it")
        self._end_half_line()
        if wandb != "off":
            try:
                import wandb as library
            except ImportError:
                raise OsmError(f"--wandb {wandb}: the package wandb is not installed (pip install wandb)") from None
            options: dict[str, Any] = {"mode": wandb, "config": dict(config)}
            self._wandb = library.init(project=project, name=folder.name, dir=folder, **options)

    def _end_half_line(self) -> None:
        """Terminate an incomplete last log line left by a killed run, so that the next record starts on a new line.

        An incomplete line stays in `log.jsonl`, but `read_log` skips it.
        """
        with (self.folder / "log.jsonl").open("rb") as file:
            data = file.read()
        if data and not data.endswith(b"\n"):
            self._file.write("\n")

    def show_progress(self, step: int, total: int) -> None:
        """Show a progress bar for the optimizer steps if standard error is a terminal.

        If standard error is not a terminal, progress is reported only in log lines.
        """
        self._bar = ProgressBar("training", total, "steps", step, enabled=self.enabled, lines=False)

    def step(self) -> None:
        """Advance the progress bar by one optimizer step."""
        if self._bar is not None:
            self._bar.step()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record to `log.jsonl` and wandb, and show its loss in the progress bar.

        A log record is a flat mapping that contains the key `step`.
        """
        if not self.enabled:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._bar is not None and "loss" in record:
            self._bar.step(0, loss=f"{record['loss']:.4f}")
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in record.items() if isinstance(v, (int, float))}, step=record.get("step"))

    def report(self, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """Log a message that commands show on standard output. With `--log_json`, the `fields` are logged too."""
        if self.enabled:
            logger.info(text, fields=fields, to_stdout=True)

    def close(self) -> None:
        """Close the progress bar, the log file and the wandb run."""
        if self._bar is not None:
            self._bar.close()
        if self.enabled:
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the step records from a run's log. If a resumed run repeated a step, the step's last record is used.

    Incomplete lines are skipped. If a run is resumed with a different batch size or number of processes, its steps are
    renumbered, because each step now contains a different number of samples. If the resumed run starts at step
    100, earlier records with a step number above 100 are skipped, because the resumed run uses these numbers again.
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
    """Plot `log.jsonl` to `loss.png`: the loss per step, and each dataset's loss in its own mode and in mode `any`."""
    from matplotlib.figure import Figure  # not pyplot, which takes longer to import

    records = read_log(folder)
    if not records:
        return
    figure = Figure(figsize=(7, 4))
    # Fixed margins, because the automatic layouts draw the figure twice.
    axes = figure.subplots(gridspec_kw={"left": 0.15, "right": 0.98, "bottom": 0.13, "top": 0.97})
    axes.plot(
        [r["step"] for r in records], [r["loss"] for r in records], color="black", linewidth=2, label="all sets, summed"
    )
    for name in sorted({key for r in records for key in r if key.startswith("loss/")}):
        points = [(r["step"], r[name]) for r in records if name in r]
        style = "--" if name.endswith("/any") else "-"
        axes.plot(*zip(*points, strict=True), style, linewidth=1, label=name.removeprefix("loss/"))
    axes.set(xlabel="optimizer step", ylabel="cross entropy of a token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    temporary = folder / "loss.png.tmp"
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(folder / "loss.png")
