"""Offline and quiet: no host is asked for what lies on the disk, and stderr holds the project's own lines alone."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from processes import PATIENCE_S
from tiny import tiny_llm, tiny_model_section
from tiny_run import TRAIN, Workshop

from osm.config import from_dict
from osm.models.factory import build
from osm.models.model_config import ModelConfig
from osm.quiet import quiet_gguf, quiet_libraries, quiet_lines

# Every attempt at the network is written down, and fails as it would without one.
RECORDER = """
import os, socket
def refuse(place, *_, **__):
    host = place[0] if isinstance(place, tuple) else place
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{host}\\n")
    raise OSError("no network here")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


@pytest.fixture
def run(tmp_path: Path):
    """Runs Python without a network and without HF_HUB_OFFLINE; returns its streams and the hosts it asked for."""
    (tmp_path / "recorder").mkdir()
    (tmp_path / "recorder" / "sitecustomize.py").write_text(RECORDER)
    attempts = tmp_path / "attempts"

    def run_one(*arguments: str, **environment: str) -> tuple[str, list[str], list[str]]:
        attempts.write_text("")
        paths = [str(tmp_path / "recorder"), str(TRAIN.parents[1]), str(TRAIN.parents[1] / "tests")]
        settings = {**os.environ, "ATTEMPTS": str(attempts), "PYTHONPATH": os.pathsep.join(paths), **environment}
        settings.pop("HF_HUB_OFFLINE", None)
        process = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=settings, timeout=PATIENCE_S
        )
        assert process.returncode == 0, process.stderr
        lines = [line for line in re.split(r"[\r\n]+", process.stderr) if line.strip()]
        return process.stdout, lines, attempts.read_text().split()

    return run_one


def test_naming_asks_no_host_and_says_nothing_else(run, tmp_path: Path) -> None:
    """Of a model whose parts are folders; two pictures, each in two modes."""
    pytest.importorskip("peft")
    model, _ = build(from_dict(ModelConfig, tiny_model_section(tmp_path), "model"))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "pictures" / f"{name}.png")
    picture = str(tmp_path / "pictures" / "a.png")
    flags = ["--checkpoint", str(tmp_path / "model"), "--device", "cpu"]
    out, errors, hosts = run("-m", "osm", "name", picture, *flags, "--box", "5,5,40,40", "--box", "1,1,9,9")
    assert (errors, hosts) == ([], []) and out.count("\n") == 2
    two = ["--output_dir", str(tmp_path / "vis"), "--segmenter", "embedded"]
    out, errors, hosts = run("-m", "osm", "folder", str(tmp_path / "pictures"), *flags, *two)
    assert "2 images named" in out and hosts == []
    assert [line.split("] ")[0] for line in errors] == ["[1/2", "[2/2"]  # a line a picture, of the command's own


def test_weights_in_the_hubs_cache_cost_one_look_for_the_hub(run, tmp_path: Path) -> None:
    """With peft, transformers also looks for an adapter: without a network it would retry for half a minute."""
    pytest.importorskip("peft")
    repository = tmp_path / "hub" / "models--nobody--tiny"
    tiny_llm(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    code = "import osm.models.llm as m; print(m.load_llm(m.LlmConfig('nobody/tiny', 'hub'))[2])"
    out, errors, hosts = run("-c", code, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert "source='hub'" in out and errors == []
    # Our own try, and one of huggingface_hub for its list of agents. None is made again.
    assert set(hosts) == {"huggingface.co"} and len(hosts) <= 2


def test_training_says_its_own_lines_alone(run, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    _, errors, hosts = run(str(TRAIN), *workshop.arguments(tmp_path / "run", "--num_epochs", "1"))
    strange = [line for line in errors if not re.match(r"(epoch|step|data|trained|pan|tower|model|\d)", line)]
    assert (strange, hosts) == ([], [])


def test_only_those_lines_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("timm.models._builder")
    with caplog.at_level(logging.INFO, logger.name), quiet_lines():
        logger.warning("Unexpected keys (%s) found", "head")
        logger.warning("something else")
    logger.warning("Unexpected keys (%s) found", "head")
    assert [record.getMessage() for record in caplog.records] == ["something else", "Unexpected keys (head) found"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_users_bars_are_as_they_were(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as told

    before = told.is_progress_bar_enabled()
    try:
        (told.enable_progress_bar if wanted else told.disable_progress_bar)()
        with quiet_libraries():
            assert not told.is_progress_bar_enabled()
        assert told.is_progress_bar_enabled() == wanted
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")  # a user asks for them
        with quiet_libraries():
            assert told.is_progress_bar_enabled() == wanted
    finally:
        (told.enable_progress_bar if before else told.disable_progress_bar)()


@pytest.fixture
def bars() -> Iterator[None]:
    """Progress bars of the libraries, whatever an earlier test of this process has left."""
    from transformers.utils import logging as told

    before = told.is_progress_bar_enabled()
    told.enable_progress_bar()
    yield
    if not before:
        told.disable_progress_bar()


def test_a_gguf_file_is_read_without_a_bar(bars: None, capfd: pytest.CaptureFixture[str]) -> None:
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    with quiet_libraries(), quiet_gguf():
        assert list(reader.tqdm(range(3), desc="Converting")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    with quiet_gguf():  # the bars of the libraries are not disabled
        list(reader.tqdm(range(3), desc="Converting"))
    assert "Converting" in capfd.readouterr().err
