"""Terminal output for commands: results on standard output, messages through `logging`, progress bars through `tqdm`.

The function `echo` prints a command's results (names, tables, JSON). Warnings, notices and progress messages are logged
by child loggers of "osm", which modules create with `message_logger`. Log records are shown on the terminal only inside
a command's entry point (`console_command`). A program that imports this package therefore decides for itself how the
package's log records are shown.

The function `printable` escapes control characters in text from files and models before the text is shown.
"""

from __future__ import annotations

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
from typing import Any, ParamSpec, TextIO

P = ParamSpec("P")

LOGGER = "osm"
"""The name of the parent logger for all loggers in this package."""
JSON_FLAG = "--log_json"
PIPE_CLOSED = 141
"""The exit code of a command whose output pipe was closed: 128 + SIGPIPE, as reported by shells."""
LINE_SECONDS = 10.0
"""The minimum number of seconds between progress messages, which replace the progress bar if there is no terminal."""

# Control characters that `printable` escapes: C0 (except tab and line feed), DEL and C1.
# Unicode line breaks and characters that change the text direction are escaped too.
# Lone surrogates, which represent undecodable bytes in file names, are escaped too.
# A line feed is escaped unless the next line is indented by two spaces.
# Continuation lines of this package's own messages are indented, so their line feeds are not escaped.
# Text from a file cannot fake a new message, because a line feed before an unindented line is escaped.
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|\n(?!  )"
)
_NAMES = {"\n": "\\n", "\r": "\\r"}


def printable(text: object) -> str:
    """Escape control characters (`\\x1b`, `\\n`, `\\u202e`) so that a text is safe to show on a terminal or web page.

    Line feeds are escaped too, except those before a line indented by two spaces.
    """
    return _CONTROL.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return _NAMES.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def echo(*lines: object, flush: bool = False) -> None:
    """Print a command's results to standard output, one line per argument. Control characters are escaped.

    If the output pipe is closed, as in `osm list configs | head -1`, the command exits without reporting an error.
    """
    with _quiet_if_closed():
        _write(sys.stdout, "\n".join(map(printable, lines)), flush)


def _write(stream: TextIO | None, text: str, flush: bool) -> None:
    """Write a text and its newline in one call.

    If PYTHONUNBUFFERED is set, `print` writes the newline separately, so another process that shares the terminal or
    log file can write in between. The processes of torchrun or of scripts/test_8gpu.sh would then join their lines.
    A stream that was closed before the command started (`2>&-`) is None.
    """
    if stream is None:
        return
    stream.write(text + "\n")
    if flush:
        stream.flush()


@contextlib.contextmanager
def _quiet_if_closed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Standard output is replaced, because Python flushes it at exit and would report the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None


def clock(seconds: float) -> str:
    """Format a duration in seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# -- messages ----------------------------------------------------------------------------------------------------------


class MessageLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that escapes control characters in its messages (see `printable`).

    The logging methods accept two additional keyword arguments:
        fields: structured values to log with the message, in the JSON object of `--log_json` and in `record.fields`.
        to_stdout: whether a command shows the message on standard output instead of standard error.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        """Escape control characters in the message, and move the additional keyword arguments to the log record."""
        fields, to_stdout = kwargs.pop("fields", None) or {}, kwargs.pop("to_stdout", False)
        kwargs["extra"] = {**kwargs.get("extra", {}), "fields": dict(fields), "to_stdout": to_stdout}
        return printable(msg), kwargs


def message_logger(module: str) -> MessageLogger:
    """Return a module's logger for user-facing messages. Each module calls `message_logger(__name__)` once."""
    return MessageLogger(logging.getLogger(module))


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of plain text.

    Errors are prefixed with "error: ", and warnings with "warning: ". If a warning has a field `reason`, the prefix is
    "warning (REASON): " instead.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the log record as a line of text without control characters."""
        prefix = {logging.ERROR: "error: ", logging.WARNING: "warning: "}.get(record.levelno, "")
        reason = getattr(record, "fields", {}).get("reason")
        if reason and record.levelno == logging.WARNING:
            prefix = f"warning ({reason}): "
        return printable(prefix + record.getMessage())


class JsonFormatter(logging.Formatter):
    """Formats a log record as a one-line JSON object: `time` (UTC), `level`, `logger`, `message` and `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object as text. The key `fields` is omitted if the log record has no fields."""
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
    """Convert a value to strict JSON types: non-finite numbers and values of unsupported types become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return printable(value)


class ConsoleHandler(logging.Handler):
    """Shows log records on the terminal, as lines of plain text or as JSON objects. All JSON goes to standard error.

    `sys.stdout` and `sys.stderr` are looked up for each record, because tests and notebooks replace these streams.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.setFormatter(JsonFormatter() if as_json else LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record. Progress bars are cleared first, and then redrawn below the printed record."""
        to_stdout = getattr(record, "to_stdout", False) and not self.as_json
        for bar in _BARS:
            bar.clear()
        _write(sys.stdout if to_stdout else sys.stderr, self.format(record), flush=True)
        for bar in _BARS:
            bar.refresh()


def _console() -> ConsoleHandler | None:
    handlers = logging.getLogger(LOGGER).handlers
    return next((handler for handler in handlers if isinstance(handler, ConsoleHandler)), None)


@contextlib.contextmanager
def console_messages(as_json: bool = False) -> Iterator[None]:
    """Show this package's messages on the terminal inside the context, and restore the loggers on exit.

    Args:
        as_json: whether messages and Python's warnings are shown as JSON objects. A context inside a context with JSON
            also uses JSON.
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
    """Decorator that shows a command's messages on the terminal. The decorated function needs an `argv` parameter.

    If `argv` contains `--log_json`, the messages are shown as JSON objects.
    """
    signature = inspect.signature(main)

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        argv = signature.bind(*args, **kwargs).arguments.get("argv")
        with console_messages(JSON_FLAG in (sys.argv[1:] if argv is None else argv)):
            code = main(*args, **kwargs)
            if sys.stdout is not None:
                with _quiet_if_closed():
                    sys.stdout.flush()
            return code

    return run


def logs_json() -> bool:
    """Return whether this command logs its messages as JSON."""
    console = _console()
    return console is not None and console.as_json


def json_flag() -> list[str]:
    """Return `["--log_json"]` if this command logs its messages as JSON, and an empty list otherwise.

    A command that starts other `osm` commands appends this list to their arguments, so that all commands log in the
    same format.
    """
    return [JSON_FLAG] if logs_json() else []


# -- progress ----------------------------------------------------------------------------------------------------------

_BARS: list[Any] = []  # the tqdm bars that are currently shown on the terminal


class ProgressBar:
    """Shows the progress of a long-running command: a `tqdm` bar on a terminal, otherwise occasional log messages.

    Progress messages are logged at level INFO by the logger "osm.progress", at most once every `LINE_SECONDS` seconds
    and once at the end. No progress messages are shown in a program that imports this package without configuring
    `logging`. If the environment variable `TQDM_DISABLE=1` is set, log messages replace the progress bar even on a
    terminal.

    Args:
        title: a short description of the job.
        total: the number of units of work.
        unit: the plural name of a unit, such as "images".
        done: the number of units that an earlier run finished.
        enabled: whether any progress is shown; False on all ranks except rank 0.
        lines: whether messages replace the bar if there is no terminal; False for a job that logs its own lines.
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
        """Advance the progress bar by a number of finished units of work.

        Args:
            units: the number of units that were finished since the last call.
            fields: additional values to show, such as `masks=20`.
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
        """Close the progress bar. Its last state remains on the terminal."""
        if self._bar is not None:
            _BARS.remove(self._bar)
            self._bar.close()
            self._bar = None


def _bars_are_shown() -> bool:
    console = _console()
    wanted = os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false")
    shown = wanted and console is not None and not console.as_json
    return shown and sys.stderr is not None and sys.stderr.isatty()


@functools.cache
def _tqdm_class() -> Any:
    """Return a `tqdm` subclass that has no monitor thread and no inter-process lock.

    A running thread or a shared lock would be unsafe, because processes are forked while a progress bar is shown. tqdm
    is imported only when a progress bar is shown, because importing it takes a tenth of a second.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar
