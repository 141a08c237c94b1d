"""Servers on loopback, retries that wait for nothing, and a cache of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import FileServer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSM_RETRY_SECONDS", "0,0")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder that `server` serves."""
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


@pytest.fixture
def server(shelf: Path) -> Iterator[FileServer]:
    with FileServer(shelf) as started:
        yield started
