"""Where a run is: what a checkpoint must say so that another process, or another number of them, can go on there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from osm.data.stream import Position
from osm.errors import OsmError


@dataclass
class Progress:
    """Counters of a run, and how far the streams of its epoch have come.

    Attributes:
        step: optimiser steps taken. epoch: that it is in. batches: of that epoch that are done.
        batches_per_epoch, streams, workers: of the run that counted them.
        positions: set -> stream -> how far it has come; empty at the start of an epoch.
        salt: of the epoch's draws (see `osm.data.stream`). skipped: samples by reason, over all processes.
        best: the best held-out figure yet.
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

    def document(self) -> dict[str, Any]:
        """As plain json."""
        found = asdict(self)
        found["skipped"] = dict(self.skipped)
        found["positions"] = {
            name: {str(stream): [p.batches, {str(w): n for w, n in p.drawn.items()}] for stream, p in streams.items()}
            for name, streams in self.positions.items()
        }
        return found

    @classmethod
    def read(cls, document: Mapping[str, Any], where: str) -> Progress:
        """Raises OsmError for a document that is none; fields that it lacks keep their defaults."""
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
            for name in ("step", "epoch", "batches", "batches_per_epoch", "streams", "workers", "salt", "names"):
                values[name] = int(values.get(name, 0))
            return cls(**values)
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise OsmError(f"{where}: its progress cannot be read ({error})") from None

    def goes_on_exactly(self, streams: int, workers: int, batches_per_epoch: int) -> bool:
        """Whether a run with these streams takes the very samples that the run before would have taken."""
        if (self.streams, self.batches_per_epoch) != (streams, batches_per_epoch):
            return False
        return not self.batches or max(1, self.workers) == max(1, workers)

    def moved_to(self, streams: int, workers: int, batches_per_epoch: int, accumulation: int) -> Progress:
        """The same share of the schedule in a run whose epochs have other batches; what is left of the epoch is drawn
        anew, and may repeat samples of its first part."""
        done = self.batches / max(1, self.batches_per_epoch)
        per_epoch = math.ceil(batches_per_epoch / accumulation)
        steps = math.ceil(done * per_epoch)
        epoch, steps = (self.epoch + 1, 0) if steps >= per_epoch and self.batches else (self.epoch, steps)
        batches = steps * accumulation
        step = epoch * per_epoch + steps
        return Progress(
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
