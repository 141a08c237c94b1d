"""`osm serve` as a process of its own: its worker is killed, it is asked to end, its flags are wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, free_port, wait_until
from server_threads import RunningServer, as_base64, drawn_picture, rle_region

from osm.serving.serve_cli import demo_main, main, model_names, openapi_text

ROOT = Path(__file__).parents[2]
BODY = {"image": as_base64(drawn_picture()), "regions": [rle_region()]}


class Command:
    """A running `osm serve`; what it has said is in `log`."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "osm", "serve", *arguments, "--port", str(self.port)]
        more = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **more}, cwd=ROOT
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def send(self, *arguments: Any, **more: Any) -> tuple[int, Any, dict[str, str]]:
        return RunningServer.send(self, *arguments, **more)  # type: ignore[arg-type]

    def workers(self) -> list[int]:
        """The worker processes; others of Python's own are children as well."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, line in lines.items() if b"spawn_main" in line]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, log


@contextmanager
def running(*arguments: str, **more: Any) -> Iterator[Command]:
    command = Command(*arguments, **more)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()


@pytest.mark.slow
def test_a_killed_worker_and_a_graceful_end(checkpoint: Path) -> None:
    arguments = (f"one={checkpoint}", f"two={checkpoint}", "--segmenter", "none", "--no_page")
    with running(*arguments) as command:
        assert command.first_line == f"http://127.0.0.1:{command.port} (press Ctrl+C to stop)\n"
        assert command.send("/ready")[1]["models"] == {"one": True, "two": True}
        assert command.send("/")[0] == 404
        answers = [command.send("/v1/name", {**BODY, "model": name})[1] for name in ("one", "two")]
        assert answers[0]["regions"] == answers[1]["regions"] and answers[0]["model"] == "one"
        before = command.workers()
        assert len(before) == 2

        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with ThreadPoolExecutor(4) as pool:  # whoever is hit gets one error, and everybody is answered later
            statuses = [found[0] for found in pool.map(lambda _: command.send("/v1/name", BODY), range(4))]
        assert set(statuses) <= {200, 500}
        wait_until(lambda: command.send("/v1/name", BODY)[0] == 200)
        assert command.send("/v1/name", BODY)[1]["regions"] == answers[0]["regions"]
        assert command.send("/health")[0] == 200

        # A request in progress is finished after the signal, and no new one is accepted.
        many = {**BODY, "regions": [rle_region()] * 250, "modes": ["any"]}
        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(command.send, "/v1/name", many)
            wait_until(lambda: b'route="/v1/name"' in command.send("/metrics")[1])
            code, log = command.end()
            assert last.result()[0] in (200, 503)
        assert code == 0, log
        assert "died (signal 9)" in log and "is running again" in log and "Traceback" not in log
        assert "waiting for requests in progress" in log
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", command.port), 5)
        for pid in command.workers():
            assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_key_for_other_machines(checkpoint: Path) -> None:
    """Whoever listens beyond this machine gets a key, and its page takes it from the address."""
    with running(str(checkpoint), "--host", "0.0.0.0", "--segmenter", "none") as command:
        address, _, key = command.first_line.split()[0].partition("/#key=")
        assert address == f"http://0.0.0.0:{command.port}" and len(key) >= 32
        assert command.send("/v1/models")[0] == 401
        assert command.send("/v1/models", None, {"X-API-Key": key})[0] == 200
        assert command.end(signal.SIGINT)[0] == 0
    with running(str(checkpoint), "--segmenter", "none", environment={"OSM_API_KEY": "k" * 12}) as command:
        assert command.send("/v1/name", BODY)[0] == 401
        assert command.send("/v1/name", BODY, {"Authorization": "Bearer " + "k" * 12})[0] == 200


@pytest.mark.slow
def test_a_signal_while_the_model_is_loaded(checkpoint: Path) -> None:
    """It ends without a traceback, and without a worker that goes on."""
    command = [sys.executable, "-m", "osm", "serve", str(checkpoint), "--port", str(free_port()), "--segmenter", "none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def workers() -> list[str]:
        return subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()

    wait_until(workers, process)
    children = workers()
    process.terminate()
    out, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and out == "" and "Traceback" not in log
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_a_model_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--port", str(free_port())]) == 2
    log = capsys.readouterr().err
    assert "none" in log and "Traceback" not in log


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """It is noticed before a model is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(["osm_small", "--port", str(other.getsockname()[1])]) == 2
    assert "cannot listen on this address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port", "0"], "--port 0 must be between 1 and 65535"),
        (["--max_file_mb", "0"], "--max_file_mb 0.0 must be greater than 0"),
        (["--max_body_mb", "20"], "--max_body_mb 20 is too small for an image of --max_file_mb 20"),
        (["--max_batch_requests", "0"], "--max_batch_requests 0 must be 1 or more"),
        (["--batch_wait_ms", "-1"], "--batch_wait_ms -1.0 must be 0 or more"),
        (["--cache_mb", "nan"], "--cache_mb nan must be 0 or more"),
        (["--api_key_file", "none.txt"], "none.txt"),
        (["a", "b/a"], "two models have the name 'a'"),
        (["--samples", "none"], "--samples none: no such folder"),
        (["--allow_origin", "tool.example.org"], "--allow_origin 'tool.example.org' is not an origin"),
        (["--allow_origin", "https://tool.example.org/"], "is not an origin, such as https://tool.example.org"),
        (["--allow_host", "name:8443"], "--allow_host 'name:8443' is not a host name without a port"),
    ],
)
def test_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert sentence in capsys.readouterr().err


def test_short_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("short", "with a space in it", ""):
        (tmp_path / "key").write_text(text)
        assert main(["--api_key_file", str(tmp_path / "key")]) == 2
    log = capsys.readouterr().err
    assert log.count("the API key must be at least 8 printable ASCII characters") == 2 and "is empty" in log


def test_names_of_models() -> None:
    found = model_names(["osm_small", "runs/street/final", "b=runs/street/final", "https://a.example/x=1/model.pt"])
    assert found == {
        "osm_small": "osm_small",
        "street": "runs/street/final",
        "b": "runs/street/final",
        "model": "https://a.example/x=1/model.pt",
    }


def test_demo_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """`osm demo` is the same server."""
    assert demo_main(["--port", "0"]) == 2 and "--port 0" in capsys.readouterr().err
    # The limit of a request follows that of a file, which has no flag of its own here.
    assert demo_main(["--max_file_mb", "60", "--samples", "none"]) == 2
    assert "--samples none: no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo_main(["--max_queue", "3"])


def test_the_schema_is_up_to_date() -> None:
    """`osm serve --openapi > docs/reference/openapi.json` writes it."""
    stored = json.loads((ROOT / "docs/reference/openapi.json").read_text(encoding="utf-8"))
    assert stored == json.loads(openapi_text())
    paths = stored["paths"]
    for path in ("/v1/name", "/v1/segment", "/v1/chat/completions", "/v1/predict", "/predict", "/setup", "/health"):
        assert path in paths
    assert set(paths["/v1/name"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
