"""Convert images, masks and texts to tensors for the model.

An image is resized, then padded at the bottom and right to form a square canvas. A prompt and its answer are converted
to token ids and labels. This module also defines the training prompts.

Shapes: N images, S input size, R rows, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osm.errors import OsmError, SampleError, shown
from osm.io.images import to_rgb
from osm.io.resizing import fitted_size, nearest_rows, taken

MAX_TEXT_TOKENS = 32
_TEXTS_KEPT = 10_000
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # whitespace and control characters
_MOST_PROMPT_TOKENS = 20  # of a model's own prompt, with BOS

# The published prompts. A model whose config sets `prompt` does not use them. For evaluation, the benchmark protocol
# prescribes TEST_PROMPT for masks, and the first of BOX_PROMPTS for boxes.
TEST_PROMPT = "What is in the segmentation mask? Assistant:"

MASK_PROMPTS = (
    TEST_PROMPT,
    "What does the segmentation mask show? Assistant:",
    "Name the object in the segmentation mask. Assistant:",
    "Which thing is covered by the mask? Assistant:",
    "What is the masked region? Assistant:",
    "Tell me what the mask covers. Assistant:",
    "What do you see inside the mask? Assistant:",
    "Give the name of the masked area. Assistant:",
    "What is segmented here? Assistant:",
    "Which category does the mask belong to? Assistant:",
    "Identify what lies in the mask. Assistant:",
    "What would you call the masked part? Assistant:",
    "The mask marks a region of the image. What is it? Assistant:",
    "What has been outlined by the segmentation mask? Assistant:",
    "Please name what the mask selects. Assistant:",
    "What kind of thing fills the mask? Assistant:",
    "Say what is under the mask. Assistant:",
    "Which word describes the segmented region? Assistant:",
    "What can be found in the highlighted mask? Assistant:",
)

BOX_PROMPTS = (
    "What is in the bounding box? Assistant:",
    "What does the bounding box show? Assistant:",
    "Name the object in the bounding box. Assistant:",
    "Which thing is enclosed by the box? Assistant:",
    "What is the boxed object? Assistant:",
    "Tell me what the box contains. Assistant:",
    "What do you see inside the box? Assistant:",
    "Give the name of the object in the box. Assistant:",
    "What has been boxed here? Assistant:",
    "Which category does the box belong to? Assistant:",
    "Identify the object in the bounding box. Assistant:",
    "What would you call the boxed object? Assistant:",
    "The box marks an object of the image. What is it? Assistant:",
    "What has been framed by the bounding box? Assistant:",
    "Please name what the box selects. Assistant:",
    "What kind of thing is in the box? Assistant:",
    "Say what is in the rectangle. Assistant:",
    "Which word describes the object in the box? Assistant:",
    "What can be found in the highlighted box? Assistant:",
)


@dataclass
class Text:
    """Tokenized prompts and answers: int64 tensors (R, T), padded on the right.

    Attributes:
        input_ids: token ids for the LLM.
        attention_mask: 1 for tokens, 0 for padding.
        labels: target token ids; -100 at positions that are not supervised.
        qformer_ids: token ids of the prompt without the answer, for the Q-Former. T may differ from that of
            `input_ids`.
        qformer_mask: attention mask of `qformer_ids`, 1 for tokens and 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    qformer_ids: Tensor
    qformer_mask: Tensor


class Processor:
    """The image and text transforms of a model.

    Args:
        tokenizer: tokenizer of the LLM.
        qformer_tokenizer: tokenizer of the Q-Former's instruction; None means the LLM's tokenizer.
        input_size: side S of the canvas in pixels.
        mean, std: per-channel mean and standard deviation for normalizing the tower's RGB input, whose values are in
            0..1.
        has_prefix: whether the LLM's input has a prefix (such as vision tokens) before the answer. With a prefix, the
            first text token can be supervised too.
        prompt: the only prompt of the model (`ModelConfig.prompt`); empty = the published prompts.
        prompt_first: whether the prompt comes before the prefix (`ModelConfig.prompt_first`).

    Raises:
        OsmError: the LLM's tokenizer has no end-of-sequence token, or the prompt has too many tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        qformer_tokenizer: Any | None,
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        has_prefix: bool = True,
        prompt: str = "",
        prompt_first: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise OsmError("the LLM's tokenizer has no end-of-sequence token, so text generation would never stop")
        self.tokenizer, self.qformer_tokenizer = tokenizer, qformer_tokenizer
        self.input_size, self.mean, self.std = input_size, tuple(mean), tuple(std)
        self.has_prefix, self.prompt, self.prompt_first = has_prefix, prompt, prompt_first
        self._rows: dict[tuple[str, str], tuple[list[int], int]] = {}  # cache of the recently tokenized texts
        if prompt and (length := len(self._bos() + self._ids(prompt))) > _MOST_PROMPT_TOKENS:
            raise OsmError(
                f"model.prompt {shown(prompt)} has {length} tokens; expected at most {_MOST_PROMPT_TOKENS}, because "
                f"the prompt and the name have to fit into {MAX_TEXT_TOKENS}"
            )

    # -- images ------------------------------------------------------------------------------------------------------

    def canvas(self, image: Image.Image) -> Tensor:
        """Resize and pad an image to a square canvas for inference. Return a uint8 tensor (3, S, S).

        The image is resized with bicubic interpolation so that its longest side is S pixels, then padded with zeros at
        the bottom and right.
        """
        size = fitted_size(image.width, image.height, self.input_size)
        return self.padded(np.asarray(to_rgb(image).resize(size, Image.Resampling.BICUBIC)))

    def padded(self, pixels: np.ndarray) -> Tensor:
        """Pad an image (h, w, 3) with zeros at the bottom and right, and return a uint8 tensor (3, S, S)."""
        return self.padded_batch([pixels])[0]

    def padded_batch(self, images: Sequence[np.ndarray]) -> Tensor:
        """Pad images (h, w, 3) with zeros at the bottom and right, and stack them into a uint8 tensor (N, 3, S, S).

        The result is in channels-last memory format (N, S, S, 3). `pixel_values` later makes the images contiguous on
        the model's device.
        """
        canvas = np.empty((len(images), self.input_size, self.input_size, 3), np.uint8)
        for padded, pixels in zip(canvas, images, strict=True):
            height, width = pixels.shape[:2]
            padded[:height, :width] = pixels
            padded[:height, width:] = 0
            padded[height:] = 0
        return torch.from_numpy(canvas).permute(0, 3, 1, 2)

    def canvas_masks(self, masks: np.ndarray) -> Tensor:
        """Resize and pad masks (K, H, W) for inference in the same way as their image. Return bool (K, 1, S, S).

        Masks are resized with nearest-neighbor sampling and padded with zeros.
        """
        _, height, width = masks.shape
        new_width, new_height = fitted_size(width, height, self.input_size)
        rows, columns = nearest_rows(height, new_height), nearest_rows(width, new_width)
        canvas = np.zeros((len(masks), 1, self.input_size, self.input_size), bool)
        canvas[:, 0, :new_height, :new_width] = taken(masks, rows, columns)
        return torch.from_numpy(canvas)

    def pixel_values(self, canvas: Tensor) -> Tensor:
        """Scale padded uint8 images (N, 3, S, S) to the range 0..1 and normalize them with the tower's mean and std.

        The result is a float32 tensor on the same device as the images.
        """
        mean, std = (torch.tensor(v, device=canvas.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (canvas.contiguous().float() / 255 - mean) / std

    # -- texts -------------------------------------------------------------------------------------------------------

    def training_prompts(self, boxed: bool) -> Sequence[str]:
        """Return the prompts for masks, or for boxes if `boxed`. Training draws one of them for each region."""
        return (self.prompt,) if self.prompt else BOX_PROMPTS if boxed else MASK_PROMPTS

    def naming_prompt(self, boxed: bool = False) -> str:
        """Return the prompt for naming a mask, or a box if `boxed`."""
        return self.training_prompts(boxed)[0]

    @property
    def prompt_tokens(self) -> int | None:
        """The number of tokens before the prefix in training texts if `prompt_first` is true, else None."""
        return len(self._bos() + self._ids(self.prompt)) if self.prompt_first else None

    def prompts(self, prompts: Sequence[str]) -> Text:
        """Tokenize prompts without answers, for generation. All labels are -100."""
        rows = [self._bos() + self._ids(prompt) for prompt in prompts]
        return self._text(rows, [[-100] * len(row) for row in rows], prompts)

    def check_supervise(self, supervise: str) -> None:
        """Raise OsmError if `supervise` is `all`, but the prompt comes before the prefix."""
        if self.prompt_first and supervise == "all":
            raise OsmError(
                "training.sample.supervise 'all' cannot be combined with model.prompt_first, because the prompt comes "
                "before the mask's embeddings; set it to 'answer'"
            )

    def training_text(self, prompts: Sequence[str], targets: Sequence[str], supervise: str = "all") -> Text:
        """Tokenize prompts with their answers.

        A training text consists of the BOS token, the prompt, the answer and the end token. A text longer than 32
        tokens is truncated on the left, so that the entire answer is kept.

        Args:
            supervise: `all` supervises the prompt and the answer but not BOS, as published; `answer` only supervises
                the answer and its end token.

        Raises:
            OsmError: `supervise` is `all`, but the prompt comes before the prefix.
            SampleError: the reason is `answer_too_long`: an answer does not fit even without its prompt.
        """
        self.check_supervise(supervise)
        encoded = [self.training_row(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        skip = max(len(self._bos()), int(not self.has_prefix))
        rows, labels = [], []
        for row, start in encoded:
            first = skip if supervise == "all" else start
            rows.append(row)
            labels.append([-100] * first + row[first:])
        return self._text(rows, labels, prompts)

    def training_row(self, prompt: str, target: str) -> tuple[list[int], int]:
        """Return the token ids of one training text and the index at which its answer starts.

        Raises:
            SampleError: the reason is `answer_too_long`: the answer does not fit even without its prompt. With
                `prompt_first`, the prompt is never truncated, so that both have to fit.
        """
        # The tokens are cached, because each text is needed twice: to validate the sample and to collate the batch.
        found = self._rows.get((prompt, target))
        if found is None:
            if len(self._rows) >= _TEXTS_KEPT:
                self._rows.clear()
            found = self._rows[prompt, target] = self._training_row(prompt, target)
        return found

    def answer_ids(self, target: str) -> list[int]:
        """Return the token ids of an answer to the naming prompt, without the end token.

        Raises:
            SampleError: the answer is too long; see `training_row`.
        """
        row, start = self.training_row(self.naming_prompt(), target)
        return row[start:-1]

    def _training_row(self, prompt: str, target: str) -> tuple[list[int], int]:
        text = f"{prompt} {target}"
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = encoded["input_ids"]
            answer_start = next(i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt))
        else:
            ids, answer_start = self._ids(text), len(self._ids(prompt))
        bos = self._bos()
        if self.prompt_first:  # the tokens of the prompt are those of naming
            asked = self._ids(prompt)
            ids, answer_start = asked + ids[answer_start:], len(asked)
        cut = max(0, len(bos) + len(ids) + 1 - MAX_TEXT_TOKENS)
        kept = answer_start if self.prompt_first else 0  # the tokens of the prompt that are never truncated
        if cut > answer_start - kept:
            hint = "; use a shorter model.prompt" if kept else ""
            raise SampleError(
                "answer_too_long",
                f"the answer {target!r} takes over {MAX_TEXT_TOKENS - len(bos) - 1 - kept} tokens{hint}",
            )
        return [*bos, *ids[cut:], self.tokenizer.eos_token_id], len(bos) + answer_start - cut

    def name(self, ids: Sequence[int]) -> str:
        """Decode generated token ids to a predicted name, which is a single line without special tokens.

        A model that is unsure may generate line breaks or control characters. They become spaces, because names are
        written to files with one name per line, to XML and to terminals.
        """
        return _BREAKS.sub(" ", self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _bos(self) -> list[int]:
        return [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]

    def _text(self, rows: list[list[int]], labels: list[list[int]], prompts: Sequence[str]) -> Text:
        if self.qformer_tokenizer is None:
            instructions = [self._ids(prompt)[:MAX_TEXT_TOKENS] for prompt in prompts]
        else:
            encoded = self.qformer_tokenizer(list(prompts), truncation=True, max_length=MAX_TEXT_TOKENS)
            instructions = encoded["input_ids"]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        qformer_pad = pad if self.qformer_tokenizer is None else self.qformer_tokenizer.pad_token_id
        return Text(
            _pad(rows, pad),
            _pad([[1] * len(row) for row in rows], 0),
            _pad(labels, -100),
            _pad(instructions, qformer_pad),
            _pad([[1] * len(row) for row in instructions], 0),
        )


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.long).reshape(-1, length)
