"""What the demos' tests share: a tiny model in a folder, and an engine with a stand-in for a segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from standin import Areas
from tiny import tiny_model_yaml
from web_client import Visitor, served

from osm.models.factory import build, load_model_config
from osm.recognition.recognizer import load_recognizer
from osm.serving.engine import Engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model whose queries are large enough to lead its LLM."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo")
    model, _ = build(load_model_config(str(tiny_model_yaml(folder))))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(3).add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "final")
    return folder / "final"


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
