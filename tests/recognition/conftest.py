"""A tiny LLM whose names can be enumerated, and embeddings for its input."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_llm
from torch import Tensor, nn

ROWS, LENGTH = 5, 7


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """An LLM with large logits, so that it generates different names for different inputs."""
    torch.manual_seed(0)
    llm = tiny_llm(tmp_path_factory.mktemp("llm"))
    with torch.no_grad():
        llm.lm_head.weight.mul_(8)
    return llm.eval()


@pytest.fixture(scope="module")
def embeds(llm: nn.Module) -> Tensor:
    """Random embeddings (ROWS, LENGTH, width)."""
    generator = torch.Generator().manual_seed(1)
    width = llm.get_input_embeddings().embedding_dim
    return torch.randn(ROWS, LENGTH, width, generator=generator)
