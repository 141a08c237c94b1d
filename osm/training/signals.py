"""SIGTERM and SIGINT: not at once, but at the end of the step, and with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from osm.errors import OsmError
from osm.terminal import message_logger

logger = message_logger(__name__)

EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command goes on
EXIT_FAILED = 3  # a run that stopped itself


class Stopped(OsmError):
    """A signal ended the run; its checkpoint is written."""


class StopSignals:
    """Within it, the first SIGTERM or SIGINT is remembered; a second SIGINT ends the process as usual.

    Attributes:
        received: the signal, 0 = none. agreed: all processes know that one of them was asked to end.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number
        logger.info(f"{signal.Signals(number).name}: stopping at the end of this step")
