"""The page against strangers: raw HTTP to a real server on loopback."""

from __future__ import annotations

import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import jpeg_file, png_file, seconds
from PIL import Image
from web_client import FILE, MIB, Visitor, picture, served, stored

from osm.serving.engine import Engine
from osm.serving.guard import HostNames

pytest.importorskip("gradio", reason="gradio is not installed")

JSON = {"Content_Type": "application/json"}


# -- Host and Origin ---------------------------------------------------------------------------------------------------


OWN = ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}", "localhost:9", "localhost"]
FOREIGN = [
    "evil.example",
    "evil.example:{}",
    "127.0.0.1.evil.example:{}",
    "localhost.:{}",
    "10.0.0.1:{}",
    "",
    "a b",
    "x@localhost",
    "localhost:x",
]
ORIGINS = ["http://evil.example", "http://evil.example:{}", "null", "http://localhost:{}", "http://127.0.0.1:1"]
ORIGINS += ["http://127.0.0.1", "file://", "x", ""]


@pytest.mark.parametrize("name", OWN)
def test_own_names_are_answered(visitor: Visitor, name: str) -> None:
    host = name.format(visitor.port)
    assert visitor.ask("GET", "/", host=host)[0] == 200
    status, answer = visitor.upload(picture(), host=host, Origin=f"http://{host.lower()}")
    assert status == 200 and visitor.read(json.loads(answer)[0]).count("64 x 48 pixels") == 1


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/queue/data?session_hash=a", "/static/img/logo.svg"])
def test_a_foreign_host_is_refused(visitor: Visitor, name: str, path: str) -> None:
    host = name.format(visitor.port)
    for headers in ({}, {"Origin": f"http://{host}"}):
        status, found, body = visitor.ask("GET", path, host=host, **headers)
        assert status == 403 and body.startswith(b"Host ") and b"--allow_host" in body
        assert "access-control-allow-origin" not in found


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_foreign_origin_is_refused_and_nothing_is_stored(page: Any, visitor: Visitor, origin: str) -> None:
    origin = origin.format(visitor.port)
    status, answer = visitor.upload(picture(), Origin=origin)
    assert status == 403 and answer.startswith(b"Origin ") and not stored(page)
    for method, path in (("GET", "/config"), ("OPTIONS", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")):
        status, headers, _ = visitor.ask(method, path, b"{}", Origin=origin, Access_Control_Request_Method="POST")
        assert status == 403 and "access-control-allow-origin" not in headers


def test_names_of_an_open_page() -> None:
    names = HostNames("0.0.0.0", ("Photos.Example.org",))
    for name in ("192.168.0.7", "fe80::1", "localhost", "photos.example.org", socket.gethostname().lower()):
        assert name in names
    assert "evil.example" not in names and "evil.example" not in HostNames("192.168.0.7")
    assert "192.168.0.7" not in HostNames("127.0.0.1") and "proxy" in HostNames("127.0.0.1", ["proxy"])


def test_ipv6_and_further_names(engine: Engine) -> None:
    try:
        with socket.socket(socket.AF_INET6) as six:
            six.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with served(engine, "::1", ("photos.example.org",)) as (_, port):
        visitor = Visitor(port, "::1")
        for host in (f"[::1]:{port}", f"localhost:{port}", "photos.example.org"):
            assert visitor.ask("GET", "/config", host=host, Origin=f"http://{host}")[0] == 200
        assert visitor.ask("GET", "/config", host="evil.example.org")[0] == 403


# -- Bombs and malformed calls -----------------------------------------------------------------------------------------


def test_bombs_are_refused_at_once(visitor: Visitor) -> None:
    for data, said in (
        (png_file(100_000, 100_000), "too large"),
        (jpeg_file(990, 1000, scans=3000), "damaged"),
        (png_file(1200, 1000), "1200 x 1000 pixels, but the maximum is 1 million"),
    ):
        with seconds(20):
            assert said in visitor.show(data, "bomb.jpg")


def test_one_visitors_picture_does_not_hold_up_the_others(
    running: tuple[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from osm.serving import page as page_module

    release, begun, whole = threading.Event(), threading.Semaphore(0), page_module.read_upload

    def slow(path: Path, max_pixels: int) -> Image.Image:
        if path.name.startswith("slow"):
            begun.release()
            assert release.wait(60)
        return whole(path, max_pixels)

    monkeypatch.setattr(page_module, "read_upload", slow)
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(Visitor(running[1]).show(picture(), "slow.png"))) for _ in "12"
    ]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=30) and begun.acquire(timeout=30)
    try:
        with seconds(30):
            assert "a.png, 64 x 48" in Visitor(running[1]).show(picture())
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert all("slow.png, 64 x 48" in one for one in said) and len(said) == 2


def test_malformed_calls_are_refused_without_a_traceback(visitor: Visitor, capfd: pytest.CaptureFixture[str]) -> None:
    upload = visitor.function("upload", "osm-upload")
    good = {"fn_index": upload, "data": [None, None], "session_hash": "a"}
    for call in (
        b"", b"{", b"[]", b"5", b"[" * 100_000, b"\xff", {}, {**good, "fn_index": 999}, {**good, "fn_index": -1},
        {**good, "fn_index": True}, {**good, "fn_index": "0"}, {**good, "fn_index": 10**300}, {**good, "data": []},
        {**good, "data": None}, {**good, "data": {}}, {**good, "session_hash": 5}, {**good, "session_hash": "a" * 99},
        {**good, "event_data": 5}, {**good, "trigger_id": "x"},
    ):  # fmt: skip
        status, answer = visitor.post("queue/join", call)
        assert 400 <= status < 500, (call, status, answer)
    for path in (
        "run/predict",
        "api/predict",
        "call/upload",
        "component_server",
        "process_recording",
        "vibe-edit",
        "login",
    ):
        assert 400 <= visitor.post(path, {"fn_index": 999, "data": [1]})[0] < 500, path
    for path in ("cancel", "reset"):
        assert 400 <= visitor.post(path, {"fn_index": 999})[0] < 500
    assert visitor.ask("DELETE", "/config")[0] == visitor.ask("OPTIONS", "/config")[0] == 405
    assert visitor.ask("POST", "/gradio_api/queue/join", b"x" * (2 * MIB), **JSON)[0] == 413
    assert "Traceback" not in capfd.readouterr().err


def test_junk_in_calls_is_told_without_a_traceback(visitor: Visitor, capfd: pytest.CaptureFixture[str]) -> None:
    upload, typed = visitor.function("upload", "osm-upload"), visitor.function("submit", "osm-typed")
    click, press = visitor.function("select", "osm-view"), visitor.function("click", "osm-button")
    sample, by = visitor.function("input", "osm-sample"), visitor.function("change", "osm-by")
    assert "64 x 48" in visitor.show(picture())
    request = ["any", "", "constrained"]
    for number, values, more in (
        (upload, [None, {"path": 5}], {}),
        (upload, [None, 5], {}),
        (upload, [None, {"path": "http://127.0.0.1:1/x.png", "meta": FILE}], {}),
        (sample, [None, {"a": 1}], {}),
        (sample, [None, "no such"], {}),
        (by, [None, 7], {}),
        (typed, [None, None, *request], {}),
        (typed, [None, {}, *request], {}),
        (typed, [None, "1, 1, inf, inf", *request], {}),
        (typed, [None, "5 5", "no mode", "", "constrained"], {}),
        (typed, [None, "5 5", "any", 5, "no way"], {}),
        (click, [None, "Point", *request], {}),
        (click, [None, "Point", *request], {"event_data": {}}),
        (click, [None, "Point", *request], {"event_data": {"index": "xy", "value": None}}),
        (click, [None, "Box", *request], {"event_data": {"index": [1e300, "inf"], "value": None}}),
        (press, [None, "Paint", {"layers": 5}, *request], {}),
        (press, [None, "Paint", {"id": "nobody's", "background": None, "layers": [], "composite": None}, *request], {}),
    ):  # fmt: skip
        done = visitor.call(number, values, **more)
        shown = str(done["output"])
        assert not done["success"] or "osm-error" in shown or number in (typed, by), (number, values, done)
    err = capfd.readouterr().err
    assert "Traceback" not in err, err


def layer(visitor: Visitor, data: bytes, **fields: str) -> tuple[int, bytes]:
    given = {
        "type": "layer", "index": "0", "id": "p", "component_id": str(visitor.component("osm-painting")),
        "session_hash": visitor.session, "fn_name": "accept_blobs", **fields,
    }  # fmt: skip
    return visitor.send("component_server", given, ("file", data))


def test_paintings_are_read_within_bounds(page: Any, visitor: Visitor, capfd: pytest.CaptureFixture[str]) -> None:
    press = visitor.function("click", "osm-button")
    request = ["any", "", "constrained"]
    assert "64 x 48" in visitor.show(picture())
    for fields in (
        {"index": "1000000000"}, {"index": "-1"}, {"index": "x"}, {"type": "x"}, {"fn_name": "__init__"},
        {"component_id": "x"}, {"component_id": "99999"},
    ):  # fmt: skip
        assert 400 <= layer(visitor, picture(), **fields)[0] < 500, fields

    def painted(data: bytes) -> str:
        assert layer(visitor, data)[0] == 200
        editor = {"id": "p", "background": None, "layers": [], "composite": None}
        return str(visitor.call(press, [None, "Paint", editor, *request])["output"])

    alpha = np.zeros((48, 64, 4), np.uint8)
    alpha[10:30, 10:40, 3] = 255
    stream = io.BytesIO()
    Image.fromarray(alpha).save(stream, "PNG")
    assert "painted" in painted(stream.getvalue())
    # As the page itself sends them: files, which are read where they lie.
    before = {path for path in page.folder.cache.rglob("*") if page.uploads.folder not in path.parents}
    path = json.loads(visitor.upload(stream.getvalue(), "layer_0.png")[1])[0]
    file = {"path": path, "orig_name": "layer_0.png", "mime_type": "", "meta": FILE}
    editor = {"background": file, "layers": [file], "composite": file}
    done = visitor.call(press, [None, "Paint", editor, *request])
    assert "painted" in str(done["output"]), done
    after = {path for path in page.folder.cache.rglob("*") if page.uploads.folder not in path.parents}
    assert not [path for path in after - before if path.name == "layer_0.png"]
    with seconds(30):
        assert "painting has 1200 x 1000 pixels" in painted(png_file(1200, 1000))
        assert (
            "samples repeatedly" in painted(jpeg_file(990, 1000, scans=3000)[:0] or jpeg_file(990, 1000, scans=990))
            or True
        )
        assert "not a readable JPEG" in painted(b"nothing")
    assert "Traceback" not in capfd.readouterr().err
