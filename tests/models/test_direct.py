"""The direct path of the bridges: its pooled tokens, models with a direct path, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from osm.config import as_dict, from_dict
from osm.errors import OsmError
from osm.models.bridges.direct import DirectPath
from osm.models.bridges.gated import FlamingoConfig
from osm.models.bridges.maskqformer import QFormerConfig
from osm.models.bridges.pooling import SINGLES, pool, pool_regions, region_features
from osm.models.factory import build, load_folder
from osm.models.masks import context_mask
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel
from osm.recognition.recognizer import Recognizer

SIZE, PATCH, WIDTH = 56, 14, 5
DIRECT = {"direct_tokens": 3, "direct_width": 16}


def some_masks() -> Tensor:
    """A disk, one pixel, a thin line, and the whole image."""
    masks = torch.zeros(4, 1, SIZE, SIZE, dtype=torch.bool)
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    masks[0, 0] = (ys - 20) ** 2 + (xs - 33) ** 2 < 170
    masks[1, 0, 41, 17] = True
    masks[2, 0, 3:50, 29] = True
    masks[3] = True
    return masks


@pytest.mark.parametrize("prefix", [0, 2])
def test_the_pooled_regions_are_the_first_tokens_of_the_full_pooling(prefix: int) -> None:
    torch.manual_seed(0)
    masks = some_masks()
    features = region_features(masks, context_mask(masks, 0.5), PATCH)
    tokens, image_index = torch.randn(2, prefix + (SIZE // PATCH) ** 2, WIDTH), torch.tensor([1, 0, 1, 1])
    expected = pool(tokens, tokens.mean(1), image_index, features, 2).tokens_RTC[:, :SINGLES]
    torch.testing.assert_close(
        pool_regions(tokens, tokens.mean(1), image_index, features), expected, atol=1e-6, rtol=1e-6
    )


def test_the_path_starts_as_a_linear_map_of_the_given_spread() -> None:
    torch.manual_seed(0)
    masks = some_masks()
    features = region_features(masks, context_mask(masks, 0.5), PATCH)
    path = DirectPath(QFormerConfig(**DIRECT), 400, 64, dropout=0.1).eval()
    path.reset(0.05)
    tokens = torch.randn(1, (SIZE // PATCH) ** 2, 400)
    found, logits = path(tokens, tokens.mean(1), torch.zeros(4, dtype=torch.long), features)
    assert logits is None
    assert found.shape == (4, 3, 64) and float(found.detach().std()) == pytest.approx(0.05, rel=0.2)
    pooled = torch.nn.functional.layer_norm(
        pool_regions(tokens, tokens.mean(1), torch.zeros(4, dtype=torch.long), features), (400,)
    )
    torch.testing.assert_close(found.flatten(1), pooled.flatten(1) @ path.linear.weight.T, atol=1e-5, rtol=1e-4)


@pytest.fixture(params=["maskqformer", "flamingo", "pooled"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> OmniScientModel:
    torch.manual_seed(0)
    model, _ = build(tiny_config(tmp_path, kind, **DIRECT))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def named(model: OmniScientModel, boxes: list[list[float]], together: bool) -> list[tuple[str, float]]:
    recognizer = Recognizer(model, build(model.config)[1])
    recognizer.set_image(np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8))
    calls = [boxes] if together else [[box] for box in boxes]
    return [(answer[0].text, answer[0].prob) for call in calls for answer in recognizer.name(boxes=call)]


def test_masks_that_share_an_image_are_named_as_one_by_one(model: OmniScientModel) -> None:
    boxes = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0], [5.0, 5.0, 1.0, 1.0]]
    together, alone = named(model, boxes, True), named(model, boxes, False)
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert [prob for _, prob in together] == pytest.approx([prob for _, prob in alone], rel=1e-3, abs=0)
    with torch.no_grad():
        model.bridge.direct.linear.weight.mul_(-3)  # type: ignore[union-attr, operator]
    assert named(model, boxes, True) != together


def test_the_files_of_a_model_with_a_direct_path(model: OmniScientModel, kind: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = load_folder(tmp_path / "saved")[0]
    assert again.config == model.config and again.bridge.prefix_length == model.bridge.prefix_length
    for name, value in model.trainable_state_dict().items():
        assert torch.equal(again.trainable_state_dict()[name], value), name
    assert sum(name.startswith("direct.") for name in model.trainable_state_dict()) == 8
    plain, _ = build(tiny_config(tmp_path, "flamingo" if kind == "flamingo" else "maskqformer"))
    torch.save({"model_state_dict": plain.trainable_state_dict()}, tmp_path / "plain.pt")
    with pytest.raises(OsmError, match="does not fit this model"):
        model.load_checkpoint(tmp_path / "plain.pt")


def test_a_config_without_a_direct_path_is_stored_as_before(kind: str, tmp_path: Path) -> None:
    if kind != "pooled":
        assert '"direct_' not in json.dumps(as_dict(tiny_config(tmp_path, kind)))
    config = tiny_config(tmp_path, kind, **DIRECT)
    assert from_dict(ModelConfig, json.loads(json.dumps(as_dict(config))), "again") == config


@pytest.mark.parametrize("config", [QFormerConfig, FlamingoConfig])
@pytest.mark.parametrize(("field", "value"), [("direct_tokens", -1), ("direct_tokens", 257), ("direct_width", 0)])
def test_settings_out_of_range(config: Any, field: str, value: int) -> None:
    with pytest.raises(OsmError, match=f"{field} {value} is not"):
        config(**{field: value})
