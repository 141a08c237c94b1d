"""What the servers' tests share: an engine with a stand-in for a segmenter, and a server for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_threads import RunningServer, served
from standin import Areas

from osm.recognition.recognizer import load_recognizer
from osm.serving.engine import Engine
from osm.serving.page_samples import PageSamples


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    return Engine(load_recognizer(checkpoint, device="cpu", max_new_tokens=6), Areas())


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[RunningServer]:
    with served(engine, samples=PageSamples()) as found:
        yield found
