"""The command `osm`: its commands are there, and it asks for no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import PATIENCE_S

import osm
from osm.cli import COMMANDS, main


def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-m", "osm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_how_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: ") and "--" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_what_it_does_not_know(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--no_such_flag"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert list(listed) == list(COMMANDS)
    assert all(command.what in listed[name] for name, command in COMMANDS.items())


def test_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: osm COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["paint", "--datasets", "Train", ""])
def test_an_unknown_command_is_answered_with_the_known(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and f"osm {name}:" in error and all(known in error for known in COMMANDS)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"osm {osm.__version__}\n")


@pytest.mark.parametrize("arguments", [("--help",), ("scenes", "--help"), ("quickstart", "--help")], ids=" ".join)
def test_help_does_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, flags=("-X", "importtime"))
    assert done.returncode == 0 and "usage: osm" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "osm.cli" in imported
    assert not imported & {"torch", "transformers", "timm"}


def test_the_exit_code_is_the_commands() -> None:
    done = run("scenes", "nowhere", "--size", "1")
    assert done.returncode == 2 and done.stderr.startswith("error: --size 1 ")
