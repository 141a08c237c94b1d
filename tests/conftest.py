"""For all tests: no network is asked, and a process keeps to one thread."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from servers import S3Server

# Hundreds of processes are started. Without bytecode files, each of them compiles all modules that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before torch and the Hugging Face libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests fetch and index is not the user's.
os.environ.setdefault("OSM_CACHE", tempfile.mkdtemp(prefix="osm_test_cache_"))

BUCKETS = ("bucket", "sets")
# With `-n 2 --dist loadfile --no-loadscope-reorder`, these files start first. A slow file that starts last would keep
# one process busy while the other one has no tests left.
SLOW_FILES = (
    "test_quickstart.py",
    "labeling/test_folder.py",
    "training/test_train.py",
    "training/test_kills.py",
    "training/test_parallel.py",
    "training/test_cluster_scripts.py",
    "evaluation/test_train_step.py",
    "synthetic/test_pretraining.py",
    "training/test_faults.py",
    "test_goldens.py",
    "models/test_llm.py",
    "training/test_checkpoints.py",
    "evaluation/test_processes.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Move the tests of the slowest files to the front, without changing the order within a file.

    The tests that are marked `long` are skipped unless OSM_LONG_TESTS is set, as in scripts/full_check.sh.
    """
    if not os.environ.get("OSM_LONG_TESTS"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def console() -> Iterator[None]:
    """Shows messages on the terminal as a command does, for tests that call functions of the library."""
    from osm.terminal import console_messages

    with console_messages():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model whose queries are large enough to lead its LLM."""
    import torch
    from tiny import tiny_model_yaml

    from osm.models.factory import build
    from osm.models.model_config import load_model_config

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo")
    model, _ = build(load_model_config(str(tiny_model_yaml(folder))))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(3).add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "final")
    return folder / "final"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright. The tests are skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium in the path: the pages are not tested in a browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that this process uses for URLs on s3://."""
    from servers import S3Server

    with S3Server() as started:
        started.use(monkeypatch)
        yield started


@pytest.fixture(scope="module")
def shared_s3() -> Iterator[S3Server]:
    """A server of a test file, with the buckets `bucket` and `sets`."""
    from servers import S3Server  # slow to import: most files do without

    with S3Server() as made:
        for name in BUCKETS:
            made.bucket(name)
        yield made


@pytest.fixture
def clean_s3(shared_s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """The file's server with empty buckets, retries that wait for nothing, and a cache of the test's own."""
    shared_s3.use(monkeypatch, OSM_RETRY_SECONDS="0,0", OSM_CACHE=str(tmp_path / "cache"))
    yield shared_s3
    for name in BUCKETS:
        shared_s3.clear(name)
