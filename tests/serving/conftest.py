"""What the demos' tests share: an engine with a stand-in for a segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import Areas
from web_client import Visitor, served

from osm.recognition.recognizer import load_recognizer
from osm.serving.engine import Engine


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    return Engine(load_recognizer(checkpoint, device="cpu", max_new_tokens=6), Areas())


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[tuple[Any, int]]:
    with served(engine) as found:
        yield found


@pytest.fixture
def page(running: tuple[Any, int]) -> Any:
    return running[0]


@pytest.fixture
def visitor(running: tuple[Any, int]) -> Visitor:
    return Visitor(running[1])
