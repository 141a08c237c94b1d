"""Pre-training of osm-nano's frozen parts: what they are never shown, resuming, the command."""

from __future__ import annotations

import json
import multiprocessing.dummy
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS
from osm.errors import OsmError
from osm.models.llm import load_llm
from osm.models.model_config import ModelConfig, load_model_config
from osm.models.towers.timm_tower import timm_tower
from osm.models.weights import candidates, timm_state_dict
from osm.synthetic.pretraining import nano_llm, nano_tower
from osm.synthetic.pretraining.nano_llm import (
    Corpus,
    LlmTraining,
    context_vectors,
    make_tokenizer,
    other_nouns,
    pretrain_llm,
    scene_nouns,
    training_pair_documents,
)
from osm.synthetic.pretraining.nano_tower import SceneArrays, TowerTraining, _cover, batches, pretrain_tower
from osm.synthetic.pretraining.pretrain_cli import main, model_card
from osm.synthetic.scenes.scene_names import ATTRIBUTES, STUFF, THINGS, held_out_pairs

HELD_OUT = {(pair.attribute, pair.thing) for pair in held_out_pairs()}


class Killed(BaseException):
    """Stands for the end of the process."""


# -- the corpus --------------------------------------------------------------------------------------------------------


def test_the_corpus_has_every_word_of_the_scenes_and_no_held_out_pair() -> None:
    corpus, rng = Corpus(), np.random.default_rng(0)
    drawn = [corpus.draw(rng) for _ in range(20_000)]
    assert not {document.words for document in drawn} & HELD_OUT
    assert not {document.answer for document in drawn} & {" ".join(pair) for pair in HELD_OUT}
    assert all(document.answer == " ".join(document.words) for document in drawn)
    words = {word for document in drawn for word in document.words}
    assert words >= {*ATTRIBUTES, *THINGS, *THINGS.values(), *STUFF, *STUFF.values()}
    assert {document.prompt for document in drawn} == {*MASK_PROMPTS, *BOX_PROMPTS}
    # The other pairs of a held-out pair's words do occur, or nothing would say that the words go together at all.
    pairs = {document.words for document in drawn if len(document.words) == 2}
    assert len(pairs & {(attribute, thing) for attribute in ATTRIBUTES for thing in THINGS}) > 600


def test_other_words_are_not_those_of_the_scenes() -> None:
    others = set(other_nouns())
    assert len(others) > 50 and not others & {*scene_nouns(), *ATTRIBUTES}


def test_documents_to_measure_with() -> None:
    held_out = Corpus().held_out_documents()
    assert {document.words for document in held_out} == HELD_OUT and len(held_out) == len(HELD_OUT)
    seen = training_pair_documents(200, 0)
    assert len({document.words for document in seen}) == 200 and not {document.words for document in seen} & HELD_OUT
    assert {document.prompt for document in held_out + seen} == {MASK_PROMPTS[0]}


# -- the LLM -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(LlmTraining().vocabulary)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for word in (*ATTRIBUTES, *scene_nouns()):
        ids = ids_of(tokenizer, f" {word}")
        assert len(ids) == 1 and ids[0] > 2 and tokenizer.decode(ids) == f" {word}"


@pytest.mark.parametrize("text", [" zigzag toadstool", *MASK_PROMPTS[:2], *BOX_PROMPTS[:1], "Ünïcode, 3 x 5?"])
def test_texts_come_back(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_word_is_in_some_slot(slots: int) -> None:
    """Without blur and with orthogonal embeddings, the weights of each word can be read off."""
    embeddings, words = torch.eye(12), [[3], [4, 7], [5, 6, 11]]
    counts = set()
    for seed in range(20):
        context = context_vectors(words, embeddings, slots, 0.0, np.random.default_rng(seed))
        assert context.shape == (3, slots + 1, 12)
        for row, tokens in enumerate(words):
            found = context[row].amax(0)
            assert set(torch.nonzero(found).flatten().tolist()) == set(tokens)  # no other word
            assert all(0.4 <= float(found[token]) <= 1.3 for token in tokens)
            counts.update((context[row, :, token] > 0).sum().item() for token in tokens)
        assert not context[:, -1].any()
    assert counts == set(range(1, slots + 1))  # one slot or several


def test_blur_is_as_strong_as_it_says() -> None:
    embeddings = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 3
    rows = [[7]] * 40
    sharp, blurred = (context_vectors(rows, embeddings, 3, blur, np.random.default_rng(1)) for blur in (0.0, 0.5))
    assert float((blurred - sharp)[:, -1].std()) == pytest.approx(0.5 * float(embeddings.std()), rel=0.05)
    assert float((blurred - sharp)[:, 0].std()) == pytest.approx(0.5 * float(embeddings.std()), rel=0.05)


TINY = LlmTraining(
    vocabulary=300, width=16, layers=1, heads=2, mlp_width=16, steps=104, batch_size=2, threads=torch.get_num_threads()
)


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on a handful, as what is measured is no matter here."""
    monkeypatch.setattr(nano_llm, "training_pair_documents", lambda count, seed: training_pair_documents(3, seed))
    held_out = Corpus().held_out_documents()[:3]
    monkeypatch.setattr(Corpus, "held_out_documents", lambda self: held_out)


def weights_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_an_interrupted_llm_goes_on_to_the_same_weights(few_documents: None, tmp_path: Path, monkeypatch: Any) -> None:
    steps = []
    loss: Callable[..., Tensor] = nano_llm._loss

    def counted(*arguments: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 103:  # what a kill would leave here
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        return loss(*arguments)

    monkeypatch.setattr(nano_llm, "_loss", counted)
    whole = pretrain_llm(TINY, tmp_path / "whole")
    assert set(whole["accuracy"]) == {"seen pairs", "held-out pairs"}
    resumed = pretrain_llm(TINY, tmp_path / "cut")
    assert len(steps) == 104 + 4  # from step 100 on
    assert weights_equal(resumed["llm"].state_dict(), whole["llm"].state_dict())
    # Once more: nothing is left to do.
    assert weights_equal(pretrain_llm(TINY, tmp_path / "cut")["llm"].state_dict(), whole["llm"].state_dict())
    assert len(steps) == 104 + 4


def test_other_settings_of_the_llm_are_refused(few_documents: None, tmp_path: Path) -> None:
    short = replace(TINY, steps=2)
    pretrain_llm(short, tmp_path)
    with pytest.raises(OsmError, match=r"llm.pt was made with different settings; choose a different --work folder"):
        pretrain_llm(replace(short, seed=1), tmp_path)


# -- the tower ---------------------------------------------------------------------------------------------------------

SMALL = TowerTraining(scenes=8, epochs=2, batch_size=4, threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return load_model_config("osm_nano", input_size=64, sliding_window_size=32, sliding_window_stride=32)


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes are drawn in threads, and few of them to measure with: quicker than new processes."""
    threads = Namespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(nano_tower, "multiprocessing", threads)
    monkeypatch.setattr(nano_tower, "TEST_SCENES", 20)


def test_an_interrupted_tower_goes_on_to_the_same_weights(
    in_one_process: None, model: ModelConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = pretrain_tower(model, SMALL, tmp_path / "whole")
    assert set(whole["accuracy"]) == {"kind", "attribute"}
    epochs = []

    def cut(drawn: SceneArrays, config: TowerTraining, epoch: int, tower: Any) -> Iterator[Any]:
        epochs.append(epoch)
        yield from islice(batches(drawn, config, epoch, tower), 1 if len(epochs) == 2 else None)
        if len(epochs) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(nano_tower, "batches", cut)
        with pytest.raises(Killed):
            pretrain_tower(model, SMALL, tmp_path / "cut")
        patch.setattr(nano_tower, "_draw", lambda job: pytest.fail("drawn again") if job[1] == SMALL.seed else job)
        patch.setattr(nano_tower, "evaluate", lambda *_: {})
        resumed = pretrain_tower(model, SMALL, tmp_path / "cut")
    assert epochs == [0, 1, 1]
    assert weights_equal(resumed["state_dict"], whole["state_dict"])
    start = timm_tower(model.tower.name, model.tower.strides, 32, None, model.tower.options).model.state_dict()
    assert start.keys() == whole["state_dict"].keys()
    with pytest.raises(OsmError, match=r"tower.pt was made with different settings; choose a different --work folder"):
        pretrain_tower(model, replace(SMALL, learning_rate=1.0), tmp_path / "cut")


def test_the_seed_decides_the_tower(in_one_process: None, model: ModelConfig, tmp_path: Path) -> None:
    once = replace(SMALL, epochs=1)
    first, same = (pretrain_tower(model, once, tmp_path / name)["state_dict"] for name in ("first", "same"))
    assert weights_equal(first, same)
    other = pretrain_tower(model, replace(once, seed=2), tmp_path / "other")["state_dict"]
    assert not weights_equal(first, other)


def test_too_few_scenes_for_a_batch(in_one_process: None, model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="--scenes 3: one batch needs 4"):
        pretrain_tower(model, replace(SMALL, scenes=3), tmp_path)


def test_cover_counts_pixels() -> None:
    ids = torch.randint(0, 13, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    found = _cover(ids, 8)
    assert found.shape == (2, 12, 9)
    for image in range(2):
        for number in range(1, 13):
            for place in range(9):
                row, column = divmod(place, 3)
                cell = ids[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert found[image, number - 1, place] == (cell == number).sum()


# -- the card, the command ---------------------------------------------------------------------------------------------


def card_facts() -> dict[str, Any]:
    pairs = sorted(map(str, held_out_pairs()))
    return {
        "machine": "a machine",
        "versions": {"torch": "1", "timm": "2", "transformers": "3", "pillow": "4"},
        "scenes": {"things": 49, "attributes": 16, "stuff": 8, "held_out_pairs": pairs},
        "tower": {
            "parameters": 1_234_567,
            "training": {"scenes": 4321, "epochs": 5},
            "accuracy": {"kind": 0.5, "attribute": 0.625},
            "seconds": 60,
        },
        "llm": {
            "parameters": 765_432,
            "training": {"steps": 77, "batch_size": 8},
            "accuracy": {"seen pairs": 0.875, "held-out pairs": 0.25},
            "seconds": 120,
        },
    }


def test_the_card_says_what_the_tower_was_told() -> None:
    card = model_card(card_facts())
    flat = " ".join(card.split())
    assert "**Supervised**, on 4,321 drawn scenes" in flat and "1,234,567 parameters" in flat and "3 minutes" in flat
    assert "50.0% (thing or stuff) and 62.5% (attribute)" in flat
    assert "87.5% of 200 trained pairs and 25.0%" in flat
    assert all(str(pair) in flat for pair in held_out_pairs())
    assert f"{len(held_out_pairs())} held-out attribute-thing pairs" in flat


@pytest.mark.parametrize(("part", "named"), [("tower", "the tower"), ("llm", "the LLM")])
def test_the_card_of_one_part_says_so(part: str, named: str) -> None:
    facts = {key: value for key, value in card_facts().items() if key != part}
    assert f"{named} is not pre-trained yet" in model_card(facts)


@pytest.mark.parametrize("flag", ["--scenes", "--epochs", "--llm_steps", "--threads"])
def test_wrong_flags_are_named(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), flag, "0"]) == 2
    assert capsys.readouterr().err == f"error: {flag} 0 must be 1 or more\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_parts_that_load(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "weights" / "osm_nano")]
    output = tmp_path / "weights" / "osm_nano"
    sizes = ["--scenes", "32", "--epochs", "1", "--llm_steps", "1", "--threads", "1"]
    monkeypatch.setattr(nano_tower, "TEST_SCENES", 20)
    monkeypatch.setattr(nano_llm, "TEST_PAIRS", 10)
    assert main([*folders, *sizes, "--part", "llm"]) == 0
    assert "unfinished" in (output / "MODEL_CARD.md").read_text()
    assert main([*folders, *sizes, "--part", "tower"]) == 0
    assert capsys.readouterr().out == f"{output}\n{output}\n"
    card = (output / "MODEL_CARD.md").read_text()
    assert "Supervised" in card and all(str(pair) in " ".join(card.split()) for pair in held_out_pairs())

    config = load_model_config("osm_nano")
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path / "weights"))
    found = next(candidates(config.tower.weights))
    assert (found.source, found.location) == ("folder", str(output / "tower"))
    state = timm_state_dict(config.tower.name, found)
    timm_tower(config.tower.name, config.tower.strides, 128, state, config.tower.options)
    loaded = load_llm(config.llm)
    assert loaded[2].source == "folder"
    facts = json.loads((output / "pretraining.json").read_text())
    assert facts["tower"]["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert facts["llm"]["training"]["steps"] == 1 and facts["tower"]["training"]["scenes"] == 32
    # The same command is done with what is done; other settings need another folder.
    shutil.rmtree(output / "llm")
    assert main([*folders, *sizes]) == 0
    assert (output / "llm" / "model.safetensors").is_file()
    assert main([*folders, *sizes[:-4], "--llm_steps", "2", "--threads", "1"]) == 2
    assert "llm.pt was made with different settings" in capsys.readouterr().err
