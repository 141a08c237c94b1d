"""The bridge's two ways to look at an image: dense with a mask, and at what is seen alone."""

from __future__ import annotations

import pytest
import torch
from frozen_parts import needs_frozen

from osm.models.bridges.bridge import Instruction
from osm.models.bridges.maskqformer import MaskQFormerBridge, QFormerConfig, visible_key_indices
from osm.models.factory import build
from osm.models.masks import VisibleKeys
from osm.models.model_config import load_model_config

MODES = ("coco", "any")


def some_keys(rows: int, length: int, generator: torch.Generator) -> VisibleKeys:
    mask = torch.rand(rows, length, generator=generator) < 0.2
    context = mask | (torch.rand(rows, length, generator=generator) < 0.3)
    mask[:, 0] = context[:, 0] = True
    return VisibleKeys(mask, context)


@pytest.mark.parametrize("images", [1, 3])
def test_what_is_seen_alone_is_what_dense_attention_gives(images: int) -> None:
    """Rows of several images in any order, some of which see the same keys."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = QFormerConfig(layers=4, width=32, heads=4, mlp_width=64, mask_queries=3, context_queries=5)
    bridge = MaskQFormerBridge(config, MODES, token_width=24, llm_width=40, vocabulary=50).eval()
    rows, length = 12, 60
    index = torch.randint(images, (rows,), generator=generator)
    keys = some_keys(rows, length, generator)
    for row in (3, 4, 9):  # in several modes: the same image and keys as the row before
        index[row] = index[row - 1]
        keys.mask_RL[row], keys.context_RL[row] = keys.mask_RL[row - 1], keys.context_RL[row - 1]
    ids = torch.randint(50, (rows, 6), generator=generator)
    seen = torch.ones_like(ids)
    seen[2:5, 4:] = 0
    instruction = Instruction(ids, seen)
    modes = [MODES[row % 2] for row in range(rows)]
    tokens = torch.randn(images, length, 24, generator=generator)
    dense = bridge(bridge.image_state(tokens), index, keys, instruction, modes).prefix_RPW
    with torch.no_grad():
        found = bridge(bridge.image_state(tokens), index, keys, instruction, modes).prefix_RPW
    torch.testing.assert_close(found, dense.detach(), atol=1e-5, rtol=1e-5)
    groups = visible_key_indices(keys, index.tolist())
    assert [group.rows.stop - group.rows.start for group in groups].count(3) == 1
    assert sum(group.rows.stop - group.rows.start for group in groups) == rows and len(groups) == rows - 3
    # And it does depend on what is seen.
    with torch.no_grad():
        keys.mask_RL[0] = ~keys.mask_RL[0]
        keys.mask_RL[0, 0] = True
        other = bridge(bridge.image_state(tokens), index, keys, instruction, modes).prefix_RPW
    assert (other[0] - found[0]).abs().max() > 1e-3
    torch.testing.assert_close(other[1:], found[1:], atol=1e-6, rtol=1e-6)


def test_the_prefix_starts_with_the_distribution_of_the_llms_embeddings() -> None:
    torch.manual_seed(0)
    config = QFormerConfig(
        layers=1, width=32, heads=4, mlp_width=64, mask_queries=3, context_queries=5, direct_tokens=2, dropout=0.0
    )
    bridge = MaskQFormerBridge(config, MODES, token_width=24, llm_width=512, vocabulary=50).eval()
    words, mean = torch.nn.Embedding(1000, 512), torch.randn(512)
    with torch.no_grad():
        words.weight.normal_(std=0.3).add_(mean)
    bridge.match_embeddings(words)
    rows = 400
    pooled = torch.randn(rows, bridge.direct.linear.in_features)  # normalized, as in the forward pass
    outputs = {
        "queries": bridge.language_projection(torch.randn(rows, 32)),
        "direct": bridge.direct.linear(pooled).unflatten(1, (2, -1)).flatten(0, 1),
    }
    spread = float(words.weight.detach().std())
    for name, found in outputs.items():
        torch.testing.assert_close(found.detach().mean(0), mean, atol=0.4, rtol=0, msg=name)
        assert float((found.detach() - mean).std()) == pytest.approx(spread, rel=0.15), name
    for query in bridge.mode_query.values():
        torch.testing.assert_close(query.detach().flatten(), mean, atol=0.1, rtol=0)
    assert not torch.equal(*bridge.mode_query.values())


class ScaledEmbedding(torch.nn.Embedding):
    """An embedding that is scaled, as in Gemma 3."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 8 * super().forward(ids)


def test_the_prefix_starts_with_the_scale_of_scaled_embeddings() -> None:
    torch.manual_seed(0)
    config = QFormerConfig(layers=1, width=32, heads=4, mlp_width=64, mask_queries=3, context_queries=5)
    bridge = MaskQFormerBridge(config, MODES, token_width=24, llm_width=512, vocabulary=50)
    words = ScaledEmbedding(1000, 512)
    torch.nn.init.normal_(words.weight, std=0.1)
    bridge.match_embeddings(words)
    assert float(bridge.language_projection(torch.randn(400, 32)).detach().std()) == pytest.approx(0.8, rel=0.1)


@needs_frozen
@pytest.mark.parametrize("config", ["osm_small", "osm_small_one_query"])
def test_no_mode_of_a_new_model_causes_massive_activations(config: str) -> None:
    """With a standard deviation of 0.02, some hidden states of SmolLM2 become over a hundred times as large."""
    torch.manual_seed(0)
    model, processor = build(load_model_config(config))
    words = model.llm.get_input_embeddings().weight
    modes = torch.cat(list(model.bridge.mode_query.values()))  # (M, 1, W)
    prompt = words[processor.prompts([processor.naming_prompt()]).input_ids[0]]
    masks = torch.randn(3, words.shape[1]) * words.std()  # in the place of the embeddings of a mask
    before = torch.cat([prompt, masks]).expand(len(modes), -1, -1)
    with torch.no_grad():
        output = model.llm(inputs_embeds=torch.cat([before, modes], 1), output_hidden_states=True)
    size_LM = torch.stack([states[:, -1].norm(dim=-1) for states in output.hidden_states[1:-1]])
    assert len(modes) >= 10 and float((size_LM.amax(1) / size_LM.median(1).values).max()) < 5
