"""No control character of a file's name, or of anything that a file says, reaches the terminal."""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import unicodedata
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S

from osm.cli import main
from osm.errors import OsmError, SampleError
from osm.terminal import ProgressBar, console_messages, echo, message_logger, printable

logger = message_logger("osm.test")
PACKAGE = Path(__file__).resolve().parents[1] / "osm"
# Clears the screen, sets the window's title, turns the writing's direction, begins a line of its own, is not UTF-8.
EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.\rfine\nerror: none\x7f\x85\u2028\udcff"


def controls(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}


def test_control_characters_are_written_out() -> None:
    assert printable("\x1b[2J\x00\x9b\r\n\x7f") == "\\x1b[2J\\x00\\x9b\\r\\n\\x7f"
    assert printable("\u202e\u2066\u2028\udcff") == "\\u202e\\u2066\\u2028\\udcff"
    assert printable("two entries:\n  a\n  b\nc") == "two entries:\n  a\n  b\\nc"
    for plain in ("kitchen table", "Füße – 日本語 עברית", "👩\u200d🚒", "می\u200cروم", "a\tb", "C:\\x", ""):
        assert printable(plain) == plain
    for code in (*range(32), *range(0x7F, 0xA0)):
        assert controls(printable(f"a{chr(code)}b\u202a")) <= {"\t"}
    assert printable(printable(EVIL)) == printable(EVIL) and not controls(printable(EVIL))
    assert printable(Path("a\x1b")) == "a\\x1b"


def test_errors_and_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (OsmError(EVIL), SampleError("image_missing", EVIL), pickle.loads(pickle.dumps(OsmError(EVIL)))):
        assert str(error) == printable(EVIL)
    echo("a", EVIL)
    with console_messages():
        logger.info(EVIL)
        logger.info(EVIL, to_stdout=True)
    out, err = capsys.readouterr()
    assert out == f"a\n{printable(EVIL)}\n{printable(EVIL)}\n" and err == printable(EVIL) + "\n"


def test_a_closed_stream_stops_no_command(tmp_path: Path) -> None:
    """The shell can start a command without standard output or error (`>&-`, `2>&-`)."""
    for closed, command, code in (
        (">&-", ("list", "configs"), 0),
        ("2>&-", ("list", "configs"), 0),
        (">&- 2>&-", ("list", "configs"), 0),
        ("2>&-", ("evaluate", str(tmp_path), "1"), 2),
        (">&-", ("evaluate", str(tmp_path), "1"), 2),
    ):
        words = ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-m", "osm", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == code, (words, done)
        assert "Traceback" not in done.stderr and ("error: " in done.stderr) == (code == 2 and closed == ">&-"), done


def test_lines_name_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    with console_messages():
        logger.info("a notice")
        logger.warning("a warning")
        logger.warning("no mask", fields={"reason": "mask_missing"})
        logger.error(OsmError("a mistake: 100 %"))
    lines = ["a notice", "warning: a warning", "warning (mask_missing): no mask", "error: a mistake: 100 %"]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines))


def test_json_messages(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"loss": float("nan"), "step": 3, "skipped": {"a": 1}, "path": Path(EVIL)}
    with console_messages(as_json=True), console_messages():  # a command within a command keeps the form
        logger.info(EVIL, fields=fields, to_stdout=True)
        logger.warning("two\n  lines")
        warnings.warn("of Python", stacklevel=1)
    out, err = capsys.readouterr()
    first, second, third = map(json.loads, err.splitlines())
    assert not out and not controls(err)
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    shown = {"loss": "nan", "step": 3, "skipped": {"a": 1}, "path": printable(EVIL)}
    assert first == {"level": "INFO", "logger": "osm.test", "message": printable(EVIL), "fields": shown}
    assert (second["level"], second["message"], "fields" in second) == ("WARNING", "two\n  lines", False)
    assert third["logger"] == "py.warnings" and "of Python" in third["message"]


def test_a_library_is_silent_and_restores_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger("osm")
    before = list(root.handlers), root.level, root.propagate
    logger.info("nobody configured logging")
    with ProgressBar("work", 1, "files") as progress:
        progress.step()
    with console_messages(as_json=True):
        assert root.level == logging.INFO
    assert (list(root.handlers), root.level, root.propagate) == before and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_is_one_write(stream: str, unbuffered: str) -> None:
    """Lines of processes that share an output stay whole. A sequenced-packet socket shows each write as one packet."""
    program = """
from osm.terminal import ProgressBar, console_messages, echo, message_logger
with console_messages(), ProgressBar("work", 1, "files") as progress:
    echo("a", "b", flush=True)
    message_logger("osm.test").info("c", to_stdout=True)
    message_logger("osm.test").warning("c")
    progress.step()
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        streams: dict[str, Any] = {stream: theirs, other: subprocess.DEVNULL}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=PATIENCE_S, **streams)
        theirs.close()
        packets = list(iter(lambda: ours.recv(1 << 16).decode(), ""))
    if stream == "stdout":
        assert packets == ["a\nb\n", "c\n"]
    else:
        assert packets[0] == "warning: c\n" and len(packets) == 2
        assert packets[1].startswith("work: 1/1 files") and packets[1].endswith(" left\n")


@pytest.mark.parametrize("place", ["first", "last"])
def test_every_message_of_a_command_is_json(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", str(tmp_path), "1"], ["train", "--nope"], ["nope"], ["prepare", "coco_panoptic"]):
        arguments = ["--log_json", *command] if place == "first" else [*command, "--log_json"]
        try:
            code = main(arguments)
        except SystemExit as stopped:  # argparse's own
            code = stopped.code
        out, err = capsys.readouterr()
        (message,) = map(json.loads, err.splitlines())
        assert (code, out, message["level"]) == (2, "", "ERROR"), command


def test_progress_is_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)

    def work() -> str:
        with console_messages(), ProgressBar(f"work {EVIL}", 3, "files", done=1) as progress:
            progress.step(masks=4)
            logger.info("between")
            progress.step(masks=9)
        return capsys.readouterr().err

    lines = work().splitlines()
    assert lines[0] == "between" and len(lines) == 2 and not controls(lines[1])
    assert lines[1].startswith(f"work {printable(EVIL)}: 3/3 files, masks 9, ") and lines[1].endswith(
        "/s, 0:00:00 left"
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = work()
    assert "3/3" in bar and "masks=9" in bar and "\r" in bar and "between\n" in bar
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert "\r" not in work()


def test_all_text_leaves_by_echo() -> None:
    """A `print` elsewhere would show names as they are."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            found = isinstance(node, ast.Name) and node.id == "print"
            found |= isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "sys.stdout.write",
                "sys.stderr.write",
                "traceback.print_exc",
            )
            assert not found, f"{path}:{node.lineno}"


def test_every_command_cleans_what_it_says_of_a_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Commands that are given a path which is not there, or not what it should be, name it."""
    evil = str(tmp_path / EVIL.replace("/", ""))
    commands = [
        ["folder", evil],
        ["name", evil, "--point", "1,1"],
        ["demo", "--samples", evil],
        ["export", evil, str(tmp_path / "out")],
        ["import", evil, str(tmp_path / "out")],
        ["evaluate", evil, "1"],
        ["report", str(tmp_path / "report"), evil],
        ["compare", evil, evil],
        ["prepare", "coco_panoptic", "--coco_panoptic_json", evil],
        ["scenes", "--out", os.devnull + evil],
        ["collages", "--table", evil],
        ["train", "--config", evil],
        [evil],
    ]
    for command in commands:
        try:
            code = main(command)
        except SystemExit as stopped:  # argparse's own
            code = stopped.code
        out, err = capfd.readouterr()
        assert code == 2, (command, out, err)
        assert not controls(out + err), command
        assert "\nerror: none" not in out + err, command
