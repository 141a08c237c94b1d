"""The position of a training run: counters stored in a checkpoint, from which any number of processes can resume."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from osm.data.stages import MAX_SKIPS_IN_A_ROW
from osm.data.stream import Position
from osm.errors import OsmError, shown

# These are upper bounds for the counters in a checkpoint; a checkpoint with a larger counter is treated as corrupt.
_LARGE = 1 << 48
_MOST = {
    **dict.fromkeys(("step", "epoch", "batches", "batches_per_epoch", "salt", "names", "skipped_steps"), _LARGE),
    "saves": _LARGE,
    "streams": 1 << 16,
    "workers": 1 << 12,
}


@dataclass
class RunPosition:
    """A run's counters, and the positions of its sample streams within the current epoch.

    Attributes:
        step: the number of optimizer steps so far.
        epoch: the current epoch.
        batches: the number of finished batches of the current epoch.
        batches_per_epoch: the batches per epoch of the run that wrote the counters.
        streams: the number of sample streams of that run.
        workers: the number of data workers of that run.
        salt: the salt of the epoch's random draws (see `osm.data.stream`).
        names: the number of names that were trained on.
        skipped_steps: the number of optimizer steps that were skipped.
        skipped: reason -> number of skipped samples, over all processes.
        positions: dataset -> stream -> position of the stream; empty at the start of an epoch.
        best: the best value of the held-out metric so far.
        saves: the number of written checkpoints. Unlike `step`, `saves` never decreases when the batch size or the
            number of processes changes.
        scaler: the state of the loss scaler with fp16; empty for any other precision.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    batches_per_epoch: int = 0
    streams: int = 0
    workers: int = 0
    salt: int = 0
    names: int = 0
    skipped_steps: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    positions: dict[str, dict[int, Position]] = field(default_factory=dict)
    best: float | None = None
    saves: int = 0
    scaler: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the run position as a JSON document."""
        found = asdict(self)
        found["skipped"] = dict(self.skipped)
        found["positions"] = {
            name: {str(stream): [p.batches, {str(w): n for w, n in p.drawn.items()}] for stream, p in streams.items()}
            for name, streams in self.positions.items()
        }
        return found

    @classmethod
    def read(cls, document: Mapping[str, Any], where: str) -> RunPosition:
        """Parse the JSON document of a run position, as returned by `document`. Missing fields keep their defaults.

        Args:
            document: the JSON document.
            where: the beginning of error messages.

        Raises:
            OsmError: the document is invalid, or a count is negative or implausibly large.
        """
        known = {item.name for item in fields(cls)}
        try:
            values = {key: value for key, value in document.items() if key in known}
            values["skipped"] = Counter({str(k): int(v) for k, v in values.get("skipped", {}).items()})
            values["positions"] = {
                name: {
                    int(stream): Position(int(p[0]), {int(w): int(n) for w, n in p[1].items()})
                    for stream, p in streams.items()
                }
                for name, streams in values.get("positions", {}).items()
            }
            for name, most in _MOST.items():
                values[name] = _bounded(name, values.get(name, 0), most)
            if values.get("best") is not None:
                values["best"] = _number("best", values["best"])
            values["scaler"] = {str(key): _number("scaler", value) for key, value in values.get("scaler", {}).items()}
            return cls(**values)
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise OsmError(f"{where}: the checkpoint's progress cannot be read ({error})") from None

    def check_bounds(self, epochs: int, batch_sizes: Mapping[str, int], where: str) -> None:
        """Raise OsmError if a checkpoint contains a counter that its run cannot have reached.

        Args:
            epochs: the larger number of epochs: that of the run that wrote the counters, or that of this run.
            batch_sizes: dataset -> batch size.
            where: the beginning of error messages.

        Raises:
            OsmError: a counter is larger than is possible in such a run.
        """
        if self.epoch > epochs:
            raise OsmError(f"{where}: the checkpoint is at epoch {self.epoch}, but the run has only {epochs} epochs")
        if self.batches > self.batches_per_epoch and self.streams:
            raise OsmError(
                f"{where}: the checkpoint is at batch {self.batches}, but an epoch has only "
                f"{self.batches_per_epoch} batches"
            )
        for name, streams in self.positions.items():
            for stream, position in streams.items():
                if not 0 <= position.batches <= self.batches_per_epoch:
                    raise OsmError(
                        f"{where}: sample stream {stream} of dataset {name} is at batch {position.batches}, but an "
                        f"epoch has only {self.batches_per_epoch} batches"
                    )
                # At most MAX_SKIPS_IN_A_ROW unusable samples precede each used sample; more would end the run.
                most = position.batches * batch_sizes.get(name, 1) * (MAX_SKIPS_IN_A_ROW + 1)
                for worker, drawn in position.drawn.items():
                    if not 0 <= drawn <= most:
                        raise OsmError(
                            f"{where}: data-loader worker {worker} (dataset {name}, sample stream {stream}) is "
                            f"recorded as having drawn {drawn} samples for {position.batches} batches, but it can "
                            f"have drawn at most {most}"
                        )

    def resumes_exactly(self, streams: int, workers: int, batches_per_epoch: int) -> bool:
        """Return whether a run resumed with the given settings draws exactly the same samples as the earlier run."""
        if (self.streams, self.batches_per_epoch) != (streams, batches_per_epoch):
            return False
        return not self.batches or max(1, self.workers) == max(1, workers)

    def converted_to(self, streams: int, workers: int, batches_per_epoch: int, accumulation: int) -> RunPosition:
        """Return the equivalent position in a run with a different epoch length, at the same fraction of the schedule.

        The epoch's remaining samples are drawn with new random numbers, so some samples may occur twice in the epoch.

        Args:
            streams: the number of sample streams of the new run.
            workers: the number of data workers of the new run.
            batches_per_epoch: the batches per epoch of the new run.
            accumulation: the number of micro-batches per optimizer step.
        """
        done = self.batches / max(1, self.batches_per_epoch)
        per_epoch = math.ceil(batches_per_epoch / accumulation)
        steps = math.ceil(done * per_epoch)
        epoch, steps = (self.epoch + 1, 0) if steps >= per_epoch and self.batches else (self.epoch, steps)
        batches = steps * accumulation
        step = epoch * per_epoch + steps
        return RunPosition(
            **{
                **{item.name: getattr(self, item.name) for item in fields(self)},
                "step": step,
                "epoch": epoch,
                "batches": batches,
                "batches_per_epoch": batches_per_epoch,
                "streams": streams,
                "workers": workers,
                "salt": self.step + 1 if batches else 0,
                "positions": {},
            }
        )


def _bounded(name: str, value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"the counter {name} is {shown(value)}, but must be an integer from 0 to {most}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {shown(value)}, but must be a number")
    return value
