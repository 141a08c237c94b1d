"""The argument parser of all commands: suggestions for misspelled flags, negative numbers as values, `--log_json`."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from osm.errors import did_you_mean
from osm.terminal import JSON_FLAG, logs_json, message_logger

_CALLED_AS: ContextVar[str] = ContextVar("called_as", default="")
# A value such as -5,10,20,30: argparse would read it as a flag.
_NEGATIVE = re.compile(r"^-(\d|\.\d)[-\d.,eE+]*$")
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<word>\S+)")
_CHOICE = re.compile(r"invalid choice: '?(?P<word>[^' ]*)'? \(choose from (?P<options>.*)\)")


@contextlib.contextmanager
def called_as(name: str) -> Iterator[None]:
    """Inside the context, parsers show `name` as the name of the command, as in `osm train`."""
    token = _CALLED_AS.set(name)
    try:
        yield
    finally:
        _CALLED_AS.reset(token)


class DefaultsFormatter(argparse.HelpFormatter):
    """A help formatter that shows the default of every flag whose help text does not state it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        stated = "[" in text or "default" in text
        if not action.option_strings or action.required or stated or action.default is argparse.SUPPRESS:
            return text
        if isinstance(action.default, bool):
            return f"{text} [{'on' if action.default else 'off'}]"
        return f"{text} [none]" if action.default in (None, "", []) else f"{text} [%(default)s]"


class CommandParser(argparse.ArgumentParser):
    """An argument parser with an additional `--log_json` flag, which the `console_command` decorator reads.

    Help and error messages show the name that the command was called by (see `called_as`). An unknown flag or choice is
    reported with the most similar known one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = _CALLED_AS.get()
        if name and not str(kwargs.get("prog", "")).startswith(f"{name} "):  # as that of a subcommand does
            kwargs["prog"] = name
        super().__init__(*args, **{"formatter_class": DefaultsFormatter, **kwargs})
        self._negative_number_matcher = _NEGATIVE
        if JSON_FLAG not in self._option_string_actions:  # a parent parser may have added it
            text = "write every message to stderr as one JSON object per line [off]"
            self.add_argument(JSON_FLAG, action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit with code 2."""
        message += self._suggestion(message)
        if not logs_json():
            super().error(message)
        message_logger(__name__).error(f"{self.prog}: {message}")
        self.exit(2)

    def _suggestion(self, message: str) -> str:
        if found := _UNKNOWN.match(message):
            return did_you_mean(found["word"].partition("=")[0], self._option_string_actions)
        if found := _CHOICE.search(message):
            return did_you_mean(found["word"], re.findall(r"[\w.-]+", found["options"]))
        return ""
