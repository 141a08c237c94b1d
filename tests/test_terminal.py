"""No control character of a file's name, or of anything that a file says, reaches the terminal."""

from __future__ import annotations

import ast
import os
import pickle
import sys
import unicodedata
from pathlib import Path

import pytest

from osm.cli import main
from osm.errors import OsmError, SampleError
from osm.terminal import echo, printable

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
    echo("a", EVIL, before="\r", end="!\n")
    echo(EVIL, file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == f"\ra\n{printable(EVIL)}!\n" and err == printable(EVIL) + "\n"


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
