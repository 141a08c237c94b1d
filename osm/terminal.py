"""Text for people: results on standard output, messages through `logging`, progress bars through `tqdm`.

A command's results (names, tables, JSON) are printed by `echo`. Its messages (warnings, notices, progress) are records
of loggers below "osm", which modules create with `message_logger`. Only a command's entry function shows these records
on the terminal (`console_command`), so a program that imports this package decides itself what happens to them.

Text from files and models loses its control characters before it is shown (`printable`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn, ParamSpec

P = ParamSpec("P")

LOGGER = "osm"
"""The logger above all loggers of this package."""
JSON_FLAG = "--log_json"
LINE_SECONDS = 10.0
"""The time between two lines of a progress bar that is not on a terminal."""

# The characters that are written out: C0 (except tab and line feed), DEL and C1; characters that change the direction
# of text; other line breaks; and lone surrogates, which represent the bytes of a file name that is not UTF-8. A line
# feed is written out too, unless the next line is indented by two spaces. Our own continuation lines are indented, so
# text from a file cannot imitate a message of ours.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|\n(?!  )"
)
_NAMES = {"\n": "\\n", "\r": "\\r"}


def printable(text: object) -> str:
    """Return the text with control characters written out (`\\x1b`, `\\n`, `\\u202e`), for a terminal or a page.

    A line break is kept if the next line is indented by two spaces.
    """
    return _CONTROL.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return _NAMES.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def echo(*lines: object, flush: bool = False) -> None:
    """Print a command's results to standard output, one line per argument, each made `printable`."""
    print("\n".join(map(printable, lines)), flush=flush)


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# -- messages ----------------------------------------------------------------------------------------------------------


class MessageLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose messages are made `printable` when they are logged.

    Its methods take two more keyword arguments:
        fields: values that belong to the message. They are in the JSON object of `--log_json`, and in `record.fields`.
        to_stdout: whether a command shows the message on standard output instead of standard error.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Clean the message, and move our keyword arguments into the record."""
        fields, to_stdout = kwargs.pop("fields", None) or {}, kwargs.pop("to_stdout", False)
        kwargs["extra"] = {**kwargs.get("extra", {}), "fields": dict(fields), "to_stdout": to_stdout}
        return printable(msg), kwargs


def message_logger(module: str) -> MessageLogger:
    """Return the logger of a module, for `message_logger(__name__)`."""
    return MessageLogger(logging.getLogger(module))


class LineFormatter(logging.Formatter):
    """Formats a record as a line for people.

    The line begins with "error: ", "warning: " or "warning (REASON): " if the record has such a level, and REASON is
    its field `reason`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the printable line."""
        prefix = {logging.ERROR: "error: ", logging.WARNING: "warning: "}.get(record.levelno, "")
        reason = getattr(record, "fields", {}).get("reason")
        if reason and record.levelno == logging.WARNING:
            prefix = f"warning ({reason}): "
        return printable(prefix + record.getMessage())


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line, with `time` (UTC), `level`, `logger`, `message` and `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; `fields` is absent if the record has none."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if fields := getattr(record, "fields", None):
            document["fields"] = _plain(fields)
        return json.dumps(document)


def _plain(value: Any) -> Any:
    """Return the value as strict JSON can hold it: non-finite numbers and unknown types become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return printable(value)


class ConsoleHandler(logging.Handler):
    """Shows records on the terminal: as lines for people, or all on standard error as JSON.

    The streams are looked up for each record because tests and notebooks replace them.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.setFormatter(JsonFormatter() if as_json else LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record. A progress bar moves out of its way."""
        to_stdout = getattr(record, "to_stdout", False) and not self.as_json
        for bar in _BARS:
            bar.clear()
        print(self.format(record), file=sys.stdout if to_stdout else sys.stderr, flush=True)
        for bar in _BARS:
            bar.refresh()


def _console() -> ConsoleHandler | None:
    handlers = logging.getLogger(LOGGER).handlers
    return next((handler for handler in handlers if isinstance(handler, ConsoleHandler)), None)


@contextlib.contextmanager
def console_messages(as_json: bool = False) -> Iterator[None]:
    """Show this package's messages on the terminal within the context, and restore the loggers afterwards.

    Args:
        as_json: whether messages and Python's warnings are JSON objects. A context within one with JSON has it too.
    """
    logger, outer = logging.getLogger(LOGGER), _console()
    if outer is not None and (outer.as_json or not as_json):
        yield
        return
    handler = ConsoleHandler(as_json)
    shown = [logger, logging.getLogger("py.warnings")] if as_json else [logger]
    with contextlib.ExitStack() as stack:
        for one in shown:
            stack.callback(_restore, one, list(one.handlers), one.level, one.propagate)
            one.handlers, one.propagate = [handler, *(kept for kept in one.handlers if kept is not outer)], False
            one.setLevel(logging.INFO)
        if as_json:
            stack.enter_context(_captured_warnings())
        yield


def _restore(logger: logging.Logger, handlers: list[logging.Handler], level: int, propagate: bool) -> None:
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@contextlib.contextmanager
def _captured_warnings() -> Iterator[None]:
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


def console_command(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a command's entry function, which has a parameter `argv`: its messages are shown on the terminal.

    With `--log_json` among the arguments they are JSON objects.
    """
    signature = inspect.signature(main)

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        argv = signature.bind(*args, **kwargs).arguments.get("argv")
        with console_messages(JSON_FLAG in (sys.argv[1:] if argv is None else argv)):
            return main(*args, **kwargs)

    return run


def json_flag() -> list[str]:
    """Return the arguments with which a command of ours that this one starts reports messages in the same form."""
    console = _console()
    return [JSON_FLAG] if console is not None and console.as_json else []


class CommandParser(argparse.ArgumentParser):
    """The argument parser of every command; it adds `--log_json`, which is evaluated by `console_command`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if JSON_FLAG not in self._option_string_actions:  # a parent parser may have added it
            text = "write every message to stderr as one JSON object per line"
            self.add_argument(JSON_FLAG, action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit with code 2."""
        console = _console()
        if console is None or not console.as_json:
            super().error(message)
        message_logger(__name__).error(f"{self.prog}: {message}")
        self.exit(2)


# -- progress ----------------------------------------------------------------------------------------------------------

_BARS: list[Any] = []  # the tqdm bars that are on the terminal now


class ProgressBar:
    """The progress of a job: a `tqdm` bar on a terminal, and otherwise a message now and then.

    Messages have the level INFO and the logger "osm.progress". There is one every `LINE_SECONDS`, and one at the end.
    Nothing is shown to a program that only imports this package and does not configure `logging`. A user gets messages
    instead of a bar with `TQDM_DISABLE=1`.

    Args:
        title: what is worked on.
        total: the number of units of work.
        unit: the plural name of a unit, such as "images".
        done: the number of units that an earlier run finished.
        enabled: False shows nothing, for all ranks but the first.
        lines: False shows nothing where there is no terminal, for a job that logs lines of its own.
    """

    def __init__(
        self, title: object, total: int, unit: str, done: int = 0, enabled: bool = True, lines: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.done = printable(title), total, unit, done
        self.resumed_from = done
        self.started = self.last_line = time.monotonic()
        self._bar: Any = None
        self._lines = enabled and lines and total > 0
        if enabled and total > 0 and _bars_are_shown():
            self._bar = _tqdm_class()(
                desc=self.title, total=total, initial=done, unit=f" {unit}", dynamic_ncols=True, file=sys.stderr
            )
            _BARS.append(self._bar)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def step(self, units: int = 1, **fields: object) -> None:
        """Count finished units.

        Args:
            fields: further figures that are shown, such as `masks=20`.
        """
        self.done += units
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(fields, refresh=False)
            self._bar.update(units)
        elif self._lines and (self.done >= self.total or time.monotonic() - self.last_line >= LINE_SECONDS):
            self._log(fields)

    def _log(self, fields: Mapping[str, object]) -> None:
        self.last_line = time.monotonic()
        rate = (self.done - self.resumed_from) / max(self.last_line - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        more = "".join(f", {name} {value}" for name, value in fields.items())
        message_logger(f"{LOGGER}.progress").info(
            f"{self.title}: {self.done}/{self.total} {self.unit}{more}, {rate:.2f}/s, {clock(left)} left",
            fields={"done": self.done, "total": self.total, "per_second": rate, "seconds_left": left, **fields},
        )

    def close(self) -> None:
        """End the bar. It stays on the terminal as it is."""
        if self._bar is not None:
            _BARS.remove(self._bar)
            self._bar.close()
            self._bar = None


def _bars_are_shown() -> bool:
    console = _console()
    wanted = os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false")
    return wanted and console is not None and not console.as_json and sys.stderr.isatty()


@functools.cache
def _tqdm_class() -> Any:
    """Return tqdm's class without its monitor thread and its lock between processes.

    Processes are forked while a bar is shown, so neither may exist. The import takes a tenth of a second, which only
    jobs with a bar spend.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar
