"""One workshop for all tests of this folder: its shards and its LLM are only read."""

from __future__ import annotations

import pytest
from tiny_run import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))
