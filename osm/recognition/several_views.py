"""One name for an object that several views show: other images, such as the frames of a video, or other crops.

Shapes: V views, R rows of the LLM's input, T token positions, W LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osm.errors import OsmError, not_one_of, shown
from osm.models.llm_forward import LlmInputs
from osm.recognition.encode import EncodedImage, EncodedMask, ImageEncoder, MaskEncoder, opened_image
from osm.recognition.regions import regions_of

COMBINATIONS = ("tokens", "probs")


@dataclass(frozen=True)
class EncodedViews:
    """The encoded views whose masks can be named.

    Attributes:
        images: the image of each view. Views of the same image share one object.
        masks: the mask of each view.
        skipped: the reason why the first of the other views is left out, or an empty text if there are none.
    """

    images: list[EncodedImage]
    masks: list[EncodedMask]
    skipped: str

    def first(self, count: int) -> EncodedViews:
        """Return the first `count` views."""
        return EncodedViews(self.images[:count], self.masks[:count], self.skipped)


def encode_views(views: Sequence[tuple[Any, Any]], encoder: ImageEncoder, masks: MaskEncoder) -> EncodedViews:
    """Encode (image, mask) pairs. An image that occurs in several views is encoded once.

    Raises:
        OsmError: there are no views, a view is not a pair of an image and a single mask, or one of them is invalid.
    """
    if not isinstance(views, Sequence) or isinstance(views, str) or not views:
        raise OsmError(f"views is {shown(views)}: expected at least one (image, mask) pair")
    found: list[tuple[EncodedImage, EncodedMask]] = []
    known: dict[str | int, EncodedImage] = {}
    skipped = ""
    for number, view in enumerate(views):
        if not isinstance(view, (tuple, list)) or len(view) != 2:
            raise OsmError(f"view {number} is not an (image, mask) pair")
        image, mask = view
        key = str(image) if isinstance(image, (str, Path)) else id(image)
        photo = None if key in known else opened_image(image)
        [region] = regions_of(known[key].size if photo is None else photo.size, [mask])
        reason = masks.skip_reason(region)
        if reason:
            skipped = skipped or reason
            continue
        if photo is not None:
            known[key] = encoder.encode([photo])[0]
        [encoded] = masks.encode([region], known[key])
        found.append((known[key], encoded))
    return EncodedViews([image for image, _ in found], [mask for _, mask in found], skipped)


def check_combination(asked: str) -> None:
    """Raise OsmError if a combination is unknown. An empty text stands for the default."""
    if asked and asked not in COMBINATIONS:
        raise not_one_of("combine", asked, COMBINATIONS)


def combination(asked: str, inputs: LlmInputs) -> str:
    """Return how the views of an object are combined, for the LLM's input of a view.

    Raises:
        OsmError: the combination is `tokens`, but the LLM has gated layers, whose keys and values cannot be averaged.
    """
    if asked == "tokens" and inputs.gated_kv is not None:
        raise OsmError("combine 'tokens' requires a bridge that only passes a prefix to the LLM; use combine='probs'")
    return asked or ("tokens" if inputs.gated_kv is None else "probs")


def averaged(parts: Sequence[LlmInputs]) -> LlmInputs:
    """Average the embeddings and certainties of the views' rows. The embeddings of the text are the same in all views.

    Args:
        parts: the LLM's input of each view, with the same number of rows and positions and without padding.
    """
    total_RTW = parts[0].embeds_RTW.clone()
    for part in parts[1:]:
        total_RTW += part.embeds_RTW
    certainty_R = _mean([part.certainty_R for part in parts])
    overall_R = _mean([part.overall_R for part in parts])
    return LlmInputs(total_RTW / len(parts), parts[0].mask_RT, certainty_R=certainty_R, overall_R=overall_R)


def _mean(values: Sequence[Tensor | None]) -> Tensor | None:
    found = [each for each in values if each is not None]
    return torch.stack(found).mean(0) if found else None
