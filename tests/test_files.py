"""Only regular files are opened, text is read as editors write it, and files are replaced as a whole."""

from __future__ import annotations

import codecs
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from old_files import make_old

from osm.errors import OsmError
from osm.files import check_regular_file, read_text, remove_abandoned, replacing


def test_what_is_not_a_regular_file_is_refused_unopened(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, kind in (
        (fifo, "a FIFO"),
        (tmp_path / "link", "a FIFO"),
        (tmp_path, "a folder"),
        (tmp_path / "socket", "a socket"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(OsmError) as caught:
            check_regular_file(path, "checkpoint")
        assert str(caught.value) == f"checkpoint {path} is not a regular file, but {kind}"


def test_regular_links_and_missing_files_pass(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "loop", tmp_path / "missing", "nul\0byte"):
        check_regular_file(path, "checkpoint")


TEXT = "cup\nplâte\n日本\n"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_as_editors_write_it(tmp_path: Path, coding: str, end: str) -> None:
    path = tmp_path / "names.txt"
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(coding, b"")
    path.write_bytes(mark + TEXT.replace("\n", end).encode(coding))
    assert read_text(path, "--names") == TEXT


def test_what_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for data, told in (
        (b"cup\nplate\nd\xe9j\xe0", "line 3: the byte 0xe9 is not valid UTF-8; save the file as UTF-8"),
        ("cup\nplate".encode("utf-16-le"), "line 1 contains a NUL character"),
        (codecs.BOM_UTF16_LE + b"abc", "line 1: the byte 0x63 is not valid UTF-16"),
        (bytes(10), "line 1 contains a NUL character"),
    ):
        path.write_bytes(data)
        with pytest.raises(OsmError) as caught:
            read_text(path, "--names")
        assert told in str(caught.value) and str(caught.value).startswith(f"--names {path}: ")
    with pytest.raises(OsmError, match=f"--names {path}: the file exceeds the maximum size of 9 bytes"):
        read_text(path, "--names", 9)
    with pytest.raises(OsmError, match="--names .*none.txt: No such file"):
        read_text(tmp_path / "none.txt", "--names")
    with pytest.raises(OsmError, match="--names"):
        read_text("nul\0byte", "--names")


def test_processes_that_replace_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # its context ended last
    assert os.listdir(tmp_path) == ["part.json"]


def test_what_killed_processes_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    killed = "import os, signal, sys; from pathlib import Path; from osm.files import replacing\n"
    killed += "with replacing(Path(sys.argv[1]), shared=True) as file: os.kill(os.getpid(), signal.SIGKILL)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", killed, str(tmp_path / "part.json")], check=False)
    old, new = tmp_path.iterdir()
    (tmp_path / "notes.tmp").touch()
    (tmp_path / ".part.json.tmp").touch()
    for path in tmp_path.iterdir():
        if path != new:
            make_old(path)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "notes.tmp", ".part.json.tmp"}
    remove_abandoned(tmp_path / "missing")
