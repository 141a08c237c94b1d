"""Paths that are no regular files are refused before they are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from osm.errors import OsmError
from osm.files import check_regular_file


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
