"""One name from several views: equal to a single naming for one view, and to slow references for more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_namer import built, picture  # noqa: F401  (built is a fixture)

from osm.data.processor import TEST_PROMPT, Processor
from osm.errors import OsmError
from osm.models.llm_forward import LlmInputs, read_prefix, word_embeddings
from osm.models.osm import OmniScientModel
from osm.recognition import several_views
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer, _Job
from osm.recognition.regions import regions_of
from osm.recognition.vocabulary import Vocabulary

Built = tuple[OmniScientModel, Processor]
View = tuple[Image.Image, np.ndarray]
STEPS = 5


@pytest.fixture
def recognizer(built: Built) -> Recognizer:  # noqa: F811
    return Recognizer(*built, max_new_tokens=STEPS)


def views(count: int) -> list[View]:
    found = []
    for number in range(count):
        image = picture(number, 60 + 10 * number, 50)
        mask = np.zeros((50, 60 + 10 * number), bool)
        mask[5 : 30 + 3 * number, 8 : 30 + 5 * number] = True
        found.append((image, mask))
    return found


def inputs_of(recognizer: Recognizer, view: View, mode: str) -> LlmInputs:
    [image] = recognizer.encoder.encode([view[0]])
    [mask] = recognizer.mask_encoder.encode(regions_of(view[0].size, [view[1]]), image)
    return recognizer._inputs([image], [_Job(0, (0, 0), mask, mode)], TEST_PROMPT)


def has_gates(recognizer: Recognizer) -> bool:
    return inputs_of(recognizer, views(1)[0], "any").gated_kv is not None


def same(one: Recognition, other: Recognition) -> None:
    assert (one.mode, one.text, one.skipped) == (other.mode, other.text, other.skipped)
    assert one.token_probs == pytest.approx(other.token_probs, rel=1e-4)


@pytest.mark.parametrize("combine", ["tokens", "probs", ""])
def test_one_view_is_named_as_ever(recognizer: Recognizer, combine: str) -> None:
    if combine == "tokens" and has_gates(recognizer):
        pytest.skip("keys and values cannot be averaged")
    [view] = views(1)
    modes = ["any", "coco"]
    recognizer.set_image(view[0])
    for vocabulary in (None, ["cat", "traffic light", "dog"]):
        [expected] = recognizer.name([view[1]], modes=modes, vocabulary=vocabulary)
        found = recognizer.name_views([view], modes=modes, combine=combine, vocabulary=vocabulary)
        for one, other in zip(found, expected, strict=True):
            same(one, other)


@torch.inference_mode()
def test_probabilities_are_averaged_at_each_step(recognizer: Recognizer) -> None:
    several, llm = views(3), recognizer.model.llm
    [found] = recognizer.name_views(several, combine="probs")
    parts = [inputs_of(recognizer, view, "any") for view in several]
    ids: list[int] = []
    probs = []
    while len(probs) < STEPS:  # every view alone, from the beginning
        logs = []
        for part in parts:
            said = word_embeddings(llm)(torch.tensor([ids], dtype=torch.long))
            embeds = torch.cat([part.embeds_RTW, said], 1)
            whole = LlmInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.long), part.gated_kv)
            logs.append(read_prefix(llm, whole)[0][0].log_softmax(-1))
        best = torch.stack(logs).mean(0).softmax(-1).max(-1)
        probs.append(best.values.item())
        if int(best.indices) in recognizer.decoder.stops:
            break
        ids.append(int(best.indices))
    assert found.token_probs == pytest.approx(probs, rel=1e-3)
    assert found.text == recognizer.processor.name(tuple(ids))
    # Out of a list: the name whose log-probabilities, averaged over the views, are the largest.
    vocabulary = Vocabulary(["cat", "traffic light", "dog"], recognizer.processor, recognizer.processor.naming_prompt())
    scores_K = torch.stack([recognizer.list_decoder.score(part, vocabulary.candidates)[0] for part in parts]).mean(0)
    [listed] = recognizer.name_views(several, combine="probs", vocabulary=vocabulary.names)
    assert listed.text == vocabulary.names[int(scores_K.argmax())]
    assert math.prod(listed.token_probs) == pytest.approx(scores_K.max().exp().item(), rel=1e-2)


@torch.inference_mode()
def test_tokens_are_averaged_before_the_llm(recognizer: Recognizer) -> None:
    several = views(3)
    if has_gates(recognizer):
        with pytest.raises(OsmError, match="'tokens' requires a bridge that only passes a prefix .* combine='probs'"):
            recognizer.name_views(several, combine="tokens")
        return
    found = recognizer.name_views(several, modes=["any", "coco"])
    for mode, answer in zip(["any", "coco"], found, strict=True):
        parts = [inputs_of(recognizer, view, mode) for view in several]
        mean = LlmInputs(torch.stack([part.embeds_RTW for part in parts]).mean(0), parts[0].mask_RT)
        [expected] = recognizer.decoder.greedy(mean)
        assert answer.mode == mode and answer.token_probs == pytest.approx(expected.token_probs, rel=1e-4)
        assert answer.text == recognizer.processor.name(expected.ids)
    encoded = recognizer.encode_views(several)
    for one, other in zip(recognizer.name_views(encoded, modes=["any", "coco"]), found, strict=True):
        same(one, other)
    same(recognizer.name_views(encoded.first(1))[0], recognizer.name_views(several[:1])[0])
    assert [a.text for a in recognizer.name_views(several[::-1], modes=["any", "coco"])] == [a.text for a in found]


def test_views_of_one_image_encode_it_once(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = views(1)[0]
    image.save(tmp_path / "a.png")
    encoded = []
    encode = recognizer.encoder.encode
    monkeypatch.setattr(recognizer.encoder, "encode", lambda images: encoded.append(len(images)) or encode(images))
    opened: list[Any] = []
    whole = several_views.opened_image
    monkeypatch.setattr(several_views, "opened_image", lambda image: opened.append(image) or whole(image))
    recognizer.name_views([(tmp_path / "a.png", mask), (tmp_path / "a.png", ~mask), (str(tmp_path / "a.png"), mask)])
    assert encoded == [1] and opened == [tmp_path / "a.png"]
    recognizer.name_views([(image, mask), (image.copy(), mask)])
    assert encoded == [1, 1, 1]


def test_views_without_the_object_are_left_out(recognizer: Recognizer) -> None:
    first, second = views(2)
    empty = (second[0], np.zeros_like(second[1]))
    same(recognizer.name_views([first, empty])[0], recognizer.name_views([first])[0])
    with pytest.raises(OsmError, match="combine 'token' is not one of"):
        recognizer.name_views([empty], combine="token")
    assert recognizer.name_views([empty, empty], modes=["coco"]) == [Recognition("coco", skipped="the mask is empty")]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, r"views is \[\]: expected at least one \(image, mask\) pair"),
        ("a.jpg", {}, "views is 'a.jpg': expected at least one"),
        ([("a.jpg",)], {}, r"view 0 is not an \(image, mask\) pair"),
        (None, {"combine": "token"}, "combine 'token' is not one of tokens, probs; did you mean 'tokens'"),
        (None, {"modes": ["nothing"]}, "mode 'nothing' is not one of this model's"),
    ],
)
def test_mistakes_are_named(recognizer: Recognizer, given: Any, options: Any, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        recognizer.name_views(views(1) if given is None else given, **options)
