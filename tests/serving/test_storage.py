"""What the page stores: uploads within bounds, a folder that does not outlive it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hostile import seconds
from web_client import MIB, Visitor, free_port, picture, stored

from osm.serving.page_files import PageFolder, remove_leftovers, safe_name

pytest.importorskip("gradio", reason="gradio is not installed")

# -- Uploads -----------------------------------------------------------------------------------------------------------


def test_all_uploads_together_are_bounded(page: Any, visitor: Visitor) -> None:
    """Files that nobody has read fill the room; reading one makes room for the next."""
    assert visitor.upload(b"x" * (MIB + 1000)) == (413, b"File size exceeded maximum allowed size of 1048576 bytes.\n")
    paths = []
    for _ in range(3):
        status, answer = visitor.upload(b"x" * 900_000)
        assert status == 200
        paths += json.loads(answer)
    status, answer = visitor.upload(b"x" * 900_000)
    assert status == 507 and answer == b"the pending uploads have reached the limit of 3 MiB; try again in a minute\n"
    assert len(stored(page)) == 3 and "64 x 48" in visitor.show(picture())
    assert "not a readable image" in visitor.read(paths[0])
    assert visitor.upload(b"x" * 900_000)[0] == 200
    # Those that nobody reads give way after a minute.
    for path in page.folder.uploads.iterdir():
        os.utime(path, (time.time() - 100,) * 2)
    assert visitor.upload(b"x" * 900_000)[0] == 200 and len(stored(page)) == 1
    for path in stored(page):
        page.uploads.remove(path)


def test_uploads_on_their_way_count(page: Any, visitor: Visitor) -> None:
    """And only what has arrived of them: a promise takes up no room."""
    head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    hanging = []
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", visitor.port))
        connection.sendall(
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{visitor.port}\r\nContent-Length: {MIB}\r\n"
            "Content-Type: multipart/form-data; boundary=edge\r\n\r\n".encode()
            + head
        )
        hanging.append(connection)
    status, answer = visitor.upload(b"x" * 900_000)
    assert status == 200
    for connection in hanging[:2]:
        connection.sendall(b"x" * 900_000)
    with seconds(20):
        while page.uploads._arriving < 1_800_000:
            time.sleep(0.01)
    assert visitor.upload(b"x" * 900_000)[0] == 507
    for connection in hanging:
        connection.close()
    with seconds(20):
        while page.uploads._arriving:
            time.sleep(0.01)
    assert visitor.upload(b"x" * 900_000)[0] == 200
    for path in stored(page):
        page.uploads.remove(path)


def test_forms_that_are_none(page: Any, visitor: Visitor) -> None:
    form = {"Content_Type": "multipart/form-data; boundary=edge"}
    for body, headers, status in (
        (b"x", {}, 400),
        (b"x", {"Content_Type": "multipart/form-data"}, 400),
        (b"--edge\r\n\r\n", form, 400),
        (b'--edge\r\nContent-Disposition: form-data; name="files"\r\n\r\ntext\r\n--edge--\r\n', form, 422),
        (b"x", {**form, "Content_Length": "99999999999"}, 413),
        (b"x", {**form, "Content_Length": "-1"}, 400),
    ):
        found, _, answer = visitor.ask("POST", "/gradio_api/upload", body, **headers)
        assert found == status, (body, headers, answer)
    assert visitor.ask("POST", "/gradio_api/upload", Transfer_Encoding="chunked")[0] == 411
    assert not stored(page)


def test_names_of_uploads_stay_in_their_folder(page: Any, visitor: Visitor) -> None:
    for name in ("../../x.png", "/etc/passwd", "..", "a\\..\\b.png", "x" * 300 + ".png", "a\x1b.png"):
        status, answer = visitor.upload(picture(), name)
        (path,) = map(Path, json.loads(answer))
        assert status == 200 and path.is_file() and path.parent.parent == page.folder.uploads, name
        page.uploads.remove(path)
    assert safe_name("") == safe_name("/..") == "picture" and len(safe_name("é" * 500 + ".jpeg").encode()) < 140
    assert not stored(page)


def test_two_visitors_of_one_file_do_not_disturb_each_other(page: Any, running: tuple[Any, int]) -> None:
    visitors = [Visitor(running[1]) for _ in range(3)]
    paths = [json.loads(visitor.upload(picture("blue"))[1])[0] for visitor in visitors]
    assert len(set(paths)) == 3
    for visitor, path in zip(visitors, paths, strict=True):
        assert "a.png, 64 x 48 pixels" in visitor.read(path)
        assert not Path(path).exists()
    assert not stored(page)


def test_paths_that_are_no_uploads_are_not_read(page: Any, visitor: Visitor, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "mine.png").write_bytes(picture())
    answer = page.folder.answers / "x.png"
    answer.write_bytes(picture())
    for path in (
        tmp_path / "mine.png",
        answer,
        page.folder.cache,
        page.folder.uploads / ".." / "x.png",
        Path("/dev/zero"),
    ):
        assert visitor.read(str(path)).startswith("failed"), path
    assert (tmp_path / "mine.png").is_file() and answer.is_file()
    assert "Traceback" not in capfd.readouterr().err


# -- Its files ---------------------------------------------------------------------------------------------------------


def test_a_killed_page_is_tidied_up_by_the_next_and_a_running_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "from osm.serving.page_files import PageFolder; f = PageFolder(); print(f.path, flush=True); input()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()},
        )
        for _ in "12"
    ]
    try:
        folders = [Path(process.stdout.readline().strip()) for process in processes]  # type: ignore[union-attr]
        (tmp_path / "osm_demo_of_somebody_else").mkdir()
        (tmp_path / "osm_demo_link").symlink_to(tmp_path / "osm_demo_of_somebody_else")
        remove_leftovers()
        assert all((folder / "cache" / "uploads").is_dir() for folder in folders)
        processes[0].kill()
        processes[0].wait()
        own = PageFolder()
        assert not folders[0].exists() and folders[1].is_dir() and own.path.is_dir()
        own.close()
        assert not own.path.exists() and (tmp_path / "osm_demo_of_somebody_else").is_dir()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_sigterm_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """The command itself, as systemd or Docker end it, with uploads and answers on the disk."""
    port = free_port()
    (tmp_path / "tmp").mkdir()
    command = [
        sys.executable,
        "-m",
        "osm",
        "demo",
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.getcwd()},
        )
    try:
        assert (
            process.stdout is not None
            and process.stdout.readline() == f"http://127.0.0.1:{port} (Ctrl+C ends it)\n".encode()
        )
        visitor = Visitor(port)
        assert visitor.upload(b"x" * 5000)[0] == 200
        assert "64 x 48" in visitor.show(picture())
        assert visitor.ask("GET", "/config", host="evil.example")[0] == 403
        assert any(path.is_file() for path in (tmp_path / "tmp").rglob("a.png"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.communicate()
    left = [path for path in (tmp_path / "tmp").iterdir() if "osm_demo" in path.name or path.name == "gradio"]
    assert not left and "Traceback" not in log.read_text()
