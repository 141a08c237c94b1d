"""Compares everything that the project does with a tiny LLM and a bridge with a slow and obvious reference.

The reference uses no cache, no padding and no `generate`. It computes each row alone, and all positions at every step.

Shapes: R rows, T positions, W width, V vocabulary.
"""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from families_llms import Family, tiny_llm_of
from tiny import randomise, tiny_model_section
from torch import Tensor

from osm.config import from_dict
from osm.errors import OsmError
from osm.models.bridges.bridge import Instruction
from osm.models.factory import build, load_folder
from osm.models.llm import stop_ids
from osm.models.llm_forward import LlmInputs, llm_support
from osm.models.masks import context_mask
from osm.models.model_config import ModelConfig
from osm.recognition.decode import Decoder
from osm.recognition.list_search import ListDecoder
from osm.recognition.vocabulary import Trie

COLUMNS = ("build", "embeddings", "training", "generate", "decoder", "save/load")
PROMPTS = ("What is this?", "What is in the image?", "What?")
NAMES = ("cat", "traffic light", "dog")
STEPS = 5


class Wrong(Exception):
    """A result differs from the reference. The message says how."""


def check_family(family: Family, variant: str, folder: Path) -> dict[str, str]:
    """Return the result of each of `COLUMNS`: `right`, `refused: <sentence>`, `wrong: <how>`, `error: <what>`, or `-`.

    The value of `slow` lists the fast methods that are not used with this LLM.
    """
    found = dict.fromkeys(COLUMNS, "-") | {"slow": ""}
    llm_folder = folder / "llm"
    if not (llm_folder / "config.json").is_file():
        tiny_llm_of(family, llm_folder)
    built: list[Any] = []

    def build_it() -> None:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built.extend(build(from_dict(ModelConfig, tiny_model_section(folder, variant=variant), "families")))

    found["build"] = _outcome(build_it)
    if found["build"] != "right":
        return found
    model, processor = built
    support = llm_support(model.llm)
    slow = {
        "no cache": not support.cache,
        "one token at a time": not support.chunks,
        "own greedy": not support.generate,
    }
    found["slow"] = ", ".join(name for name, is_so in slow.items() if is_so)
    checks = _Checks(model, processor, folder)
    for column in COLUMNS[1:]:
        found[column] = _outcome(getattr(checks, column.replace("/", "_")))
    return found


def _outcome(work: Callable[[], None]) -> str:
    try:
        work()
    except OsmError as error:
        return f"refused: {error}"
    except Wrong as error:
        return f"wrong: {error}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"error: {type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    return "right"


def _close(what: str, found: Any, expected: Any, tolerance: float = 2e-3) -> None:
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    off = (found - expected).abs().max().item() if found.shape == expected.shape else math.inf
    if not off <= tolerance * (1 + expected.abs().max().item()):
        raise Wrong(f"{what} is off by {off:.2g} (of {expected.abs().max().item():.2g})")


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found} for {expected}")


class _Checks:
    """The checks of one model, one method for each column."""

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self.model, self.processor, self.folder = model.eval(), processor, folder
        self.llm, self.words = model.llm, model.llm.get_input_embeddings()
        randomise(model.bridge, seed=1)
        with torch.no_grad():
            for name, parameter in model.bridge.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.5)
        size = model.config.input_size
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(2, 3, size, size, generator=generator)
        self.masks = torch.zeros(3, 1, size, size)
        for row in range(3):
            self.masks[row, 0, 5 + row : 30, 9 * row : 9 * row + 13] = 1
        self.image, self.modes = torch.tensor([1, 0, 1]), ["coco", "any", "coco"]

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _arguments(self, text: Any) -> dict[str, Any]:
        return {
            "pixel_values": self.pixels,
            "qformer_input_ids": text.qformer_ids,
            "qformer_attention_mask": text.qformer_mask,
            "input_ids": text.input_ids,
            "attention_mask": text.attention_mask,
            "segmentation_mask": self.masks,
            "input_context_mask": context_mask(self.masks, 0.5),
            "dataset_type": self.modes,
            "image_index": self.image,
        }

    def _given(self, text: Any) -> LlmInputs:
        model, arguments = self.model, self._arguments(text)
        masks = (arguments["segmentation_mask"], arguments["input_context_mask"])
        features = model.mask_features(*masks, self.pixels, self.image)
        state = model.bridge.image_state(model.encode_image(self.pixels))
        instruction = Instruction(text.qformer_ids, text.qformer_mask)
        condition = model.bridge(state, self.image, features, instruction, self.modes)
        return model.llm_inputs(condition, text.input_ids, text.attention_mask)

    def _alone(self, inputs: LlmInputs, row: int) -> LlmInputs:
        """Return one row without its padding."""
        one, seen = inputs.select(torch.tensor([row])), inputs.mask_RT[row].bool()
        return LlmInputs(one.embeds_RTW[:, seen], one.mask_RT[:, seen], one.gated_kv)

    # -- the reference -------------------------------------------------------------------------------------------------

    def _logits(self, one: LlmInputs, ids: tuple[int, ...] = ()) -> Tensor:
        """Return the logits (T + len(ids), V) of one row."""
        embeds = one.embeds_RTW
        if ids:
            embeds = torch.cat([embeds, self.words(torch.tensor([ids])).to(embeds)], 1)
        with one.conditioned():
            return self.llm(inputs_embeds=embeds.clone(), use_cache=False).logits[0].float()

    def _next(self, one: LlmInputs, ids: tuple[int, ...]) -> Tensor:
        return self._logits(one, ids)[-1].softmax(-1)

    def _steps(self, one: LlmInputs, ids: tuple[int, ...]) -> Tensor:
        """Return the probabilities (len(ids) + 1, V) of the first token, and of the token after each id."""
        return self._logits(one, ids)[-len(ids) - 1 :].softmax(-1)

    def _likelihood(self, one: LlmInputs, ids: tuple[int, ...]) -> float:
        logits = self._logits(one, ids)[-len(ids) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(ids)[:, None]).sum())

    def _greedy(self, one: LlmInputs, steps: int, stops: set[int]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        probs: list[float] = []
        for _ in range(steps):
            chances = self._next(one, tuple(ids))
            ids.append(int(chances.argmax()))
            probs.append(float(chances.max()))
            if ids[-1] in stops:
                break
        return ids, probs

    # -- the columns ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embeddings(self) -> None:
        """Logits from embeddings equal those from ids, and do not depend on later tokens."""
        ids = self.processor.prompts(PROMPTS[:1]).input_ids
        by_ids = self.llm(input_ids=ids, use_cache=False).logits
        _close("logits", self.llm(inputs_embeds=self.words(ids), use_cache=False).logits, by_ids)
        _close("logits before a token", self.llm(input_ids=ids[:, :-1], use_cache=False).logits, by_ids[:, :-1])

    def training(self) -> None:
        """The loss of a padded batch equals that of its rows alone, and its gradient matches finite differences."""
        text = self.processor.training_text(PROMPTS, NAMES)
        arguments = {**self._arguments(text), "labels": text.labels}
        loss = self.model(**arguments)
        total, count = 0.0, 0
        with torch.no_grad():
            given = self._given(text)
            prefix = given.mask_RT.shape[1] - text.labels.shape[1]
            for row in range(len(NAMES)):
                seen = text.attention_mask[row].bool()
                labels = torch.cat([text.labels.new_full((prefix,), -100), text.labels[row, seen]])
                logits = self._logits(self._alone(given, row))
                total += float(F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
                count += int((labels[1:] != -100).sum())
        _close("the loss", loss.detach(), total / count)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        reached = {id(p) for p, g in zip(trained, gradients, strict=True) if g is not None and g.any()}
        for number, layer in enumerate(self.model.bridge.layers()):
            if not any(id(p) in reached for p in layer.parameters()):
                raise Wrong(f"no gradient reaches layer {number} of the bridge")
        self._slope(arguments, trained, gradients)

    @torch.no_grad()
    def _slope(self, arguments: dict[str, Any], trained: list[Tensor], gradients: tuple[Tensor | None, ...]) -> None:
        pairs = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
        expected = float(sum(g.double().square().sum() for _, g in pairs)) ** 0.5
        before, slopes = [p.clone() for p, _ in pairs], []
        for step in (1e-2, 1e-3, 1e-4):
            losses = []
            for sign in (1, -1):
                for (parameter, gradient), value in zip(pairs, before, strict=True):
                    parameter.copy_(value + sign * step / expected * gradient)
                losses.append(float(self.model(**arguments)))
            slopes.append((losses[0] - losses[1]) / (2 * step))
        for (parameter, _), value in zip(pairs, before, strict=True):
            parameter.copy_(value)
        if all(abs(slope - expected) > 0.1 * expected for slope in slopes):
            raise Wrong(f"the gradient is {expected:.3g}, the loss changes by {', '.join(f'{s:.3g}' for s in slopes)}")

    @torch.no_grad()
    def generate(self) -> None:
        """Padded rows give the same tokens as single rows, and each token is the argmax of its step."""
        text = self.processor.prompts(PROMPTS)
        arguments, given = self._arguments(text), self._given(text)
        stops = set(stop_ids(self.llm))
        together = self.model.generate(**arguments, max_new_tokens=STEPS)
        for row in range(len(PROMPTS)):
            expected = self._greedy(self._alone(given, row), STEPS, stops)[0]
            _same(f"row {row} together", together[row, : len(expected)].tolist(), expected)
            seen = text.attention_mask[row].bool()
            one = {
                **{key: value[row : row + 1] for key, value in arguments.items() if key != "pixel_values"},
                "pixel_values": self.pixels[self.image[row]][None],
                "image_index": torch.tensor([0]),
                "input_ids": text.input_ids[row : row + 1, seen],
                "attention_mask": text.attention_mask[row : row + 1, seen],
            }
            alone = self.model.generate(**one, max_new_tokens=STEPS)
            _same(f"row {row} alone", alone[0, : len(expected)].tolist(), expected)

    @torch.no_grad()
    def decoder(self) -> None:
        """Check greedy search with rows that end at different steps, beam search, and a list's search and scores."""
        inputs = self._given(self.processor.prompts([PROMPTS[0]] * 3))
        ones = [self._alone(inputs, row) for row in range(3)]
        free = [self._greedy(one, STEPS, set())[0] for one in ones]
        stops = {free[0][1], free[1][3]}
        decoder = Decoder(self.llm, sorted(stops), STEPS)
        for row, name in enumerate(decoder.greedy(inputs)):
            ids, probs = self._greedy(ones[row], STEPS, stops)
            _same(f"greedy, row {row}", list(name.ids), ids[:-1] if name.ended else ids)
            _close(f"greedy probabilities, row {row}", name.token_probs, probs)
        for row, names in enumerate(decoder.best(inputs, 3)):
            for name in names:
                self._search(f"beam, row {row}", ones[row], name, stops)
        end = min(stops)
        a, b, c, d, e, f, g = [token for token in range(20, 40) if token not in stops][:7]
        listed = [(a, b, end), (a, c, end), (a, end), (d, end), (e, f, g, end)]
        scores = ListDecoder(self.llm).score(inputs, listed)
        searched = ListDecoder(self.llm).likeliest(inputs, Trie(listed), len(listed))
        for row, one in enumerate(ones):
            likelihoods = [self._likelihood(one, ids) for ids in listed]
            _close(f"scores, row {row}", scores[row], likelihoods)
            ordered = sorted(zip(likelihoods, listed, strict=True), reverse=True)
            names = searched[row].names
            _same(f"list, row {row}", [(*name.ids, end) for name in names], [ids for _, ids in ordered])
            _close(f"list, row {row}", [name.log_likelihood for name in names], [value for value, _ in ordered])

    def _search(self, what: str, one: LlmInputs, name: Any, stops: set[int]) -> None:
        steps = self._steps(one, name.ids)
        probs = [float(steps[place, token]) for place, token in enumerate(name.ids)]
        if name.ended:
            probs.append(max(float(steps[-1, stop]) for stop in stops))
        _close(what, name.token_probs, probs)

    @torch.no_grad()
    def save_load(self) -> None:
        """A saved model gives bitwise equal logits after loading."""
        path = self.folder / f"saved_{self.model.config.bridge.kind}"
        self.model.save_pretrained(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again, processor = load_folder(path)
        assert processor is not None
        text = processor.prompts(PROMPTS[:1] * 3)
        expected = self._logits(self._alone(self._given(text), 0))
        other = _Checks.__new__(_Checks)
        other.__dict__.update(self.__dict__)
        other.model, other.llm, other.words = again, again.llm, again.llm.get_input_embeddings()
        if not torch.equal(other._logits(other._alone(other._given(text), 0)), expected):
            raise Wrong("the loaded model's logits differ")
