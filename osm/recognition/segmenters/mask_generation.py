"""A segmenter that uses SAM 2, SAM 3 or a similar mask generator, which transformers loads from a folder or the hub.

Shapes: (H, W) are the height and width of the image passed to `set_image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from osm.errors import OsmError
from osm.io.images import to_rgb
from osm.models.factory import pick_device
from osm.models.weights import Found, from_pretrained_options, model_options
from osm.quiet import quiet_libraries
from osm.recognition.segmenters.base import (
    ScoredMask,
    Segmenter,
    Size,
    by_area,
    check_set,
    checked_box,
    checked_points,
)

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

# The processors of these model types share a format for points and boxes, and return masks at the original image size.
FAMILIES = ("sam2", "sam2_video", "sam3_tracker", "sam3_video", "edgetam")
# The published demo's thresholds are meant for the original SAM, so the transformers defaults are used here.
EVERYTHING = {"points_per_crop": 32, "pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "points_per_batch": 64}


class MaskGenerationSegmenter(Segmenter):
    """Generates masks with a SAM 2 or SAM 3 model from transformers.

    Args:
        model: a model loaded with AutoModelForMaskGeneration.
        processor: the model's processor, loaded with AutoProcessor.
        options: options of transformers' `mask-generation` pipeline, which override `EVERYTHING`.
    """

    name = "transformers"
    checkpoint_example = "facebook/sam2.1-hiera-large"

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        from transformers import pipeline

        self.model, self.processor = model.eval(), processor
        self._pipeline = pipeline(
            "mask-generation", model=model, image_processor=processor.image_processor, device=model.device
        )
        self._options = {**EVERYTHING, **options}
        self._size: Size | None = None
        self._image: Image.Image | None = None
        self._embedding: Any = None

    @classmethod
    def load(
        cls, checkpoint: str | Path | None, recognizer: Recognizer | None, device: str, **options: Any
    ) -> MaskGenerationSegmenter:
        """Load the checkpoint; see `load_mask_generator`."""
        return load_mask_generator(str(checkpoint), device=pick_device(device), **options)

    def set_image(self, image: Image.Image) -> None:
        """Set the RGB image to segment. The image is encoded lazily, when the first point or box is given."""
        self._image, self._embedding, self._size = to_rgb(image), None, image.size

    def everything(self) -> list[ScoredMask]:
        """Return the pipeline's masks in descending order of area. A mask's score is its predicted IoU."""
        check_set(self._size)
        assert self._image is not None
        found = self._pipeline(self._image, **self._options)
        pairs = zip(found["masks"], found["scores"], strict=True)
        segments = [ScoredMask.predicted(mask, score) for mask, score in pairs]
        return by_area([segment for segment in segments if segment.mask.any()])

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        """Return the mask for point prompts. A single point is ambiguous, so the best of several masks is returned."""
        places, marks = checked_points(check_set(self._size), points, inside)
        prompt = {"input_points": [[[list(place) for place in places]]], "input_labels": [[[int(m) for m in marks]]]}
        return self._predict(len(places) == 1, prompt)

    def in_box(self, box: Sequence[float]) -> ScoredMask:
        """Return the mask for a box prompt (x, y, width, height) in pixels."""
        corners = checked_box(check_set(self._size), box)
        return self._predict(False, {"input_boxes": [[[float(corner) for corner in corners]]]})

    @torch.inference_mode()
    def _predict(self, several: bool, prompt: dict[str, Any]) -> ScoredMask:
        inputs = self.processor(images=self._image, return_tensors="pt", **prompt).to(self.model.device)
        sizes, pixels = inputs.pop("original_sizes"), inputs.pop("pixel_values")
        if self._embedding is None:
            self._embedding = self.model.get_image_embeddings(pixels)
        output = self.model(**inputs, image_embeddings=self._embedding, multimask_output=several)
        masks = self.processor.post_process_masks(output.pred_masks.cpu(), sizes.cpu())[0][0]
        scores = output.iou_scores[0, 0]
        best = int(scores.argmax())
        return ScoredMask.predicted(masks[best], scores[best])


def load_mask_generator(
    checkpoint: str | Path, device: str | torch.device = "cpu", **options: Any
) -> MaskGenerationSegmenter:
    """Load a mask generator from a folder or by its hub id.

    Raises:
        OsmError: The checkpoint cannot be loaded, or its model type is not one of `FAMILIES`.
    """
    from transformers import AutoConfig, AutoModelForMaskGeneration, AutoProcessor

    found = Found("folder" if Path(checkpoint).is_dir() else "hub", str(checkpoint))
    loading = from_pretrained_options(found)
    try:
        kind = AutoConfig.from_pretrained(checkpoint, **loading).model_type
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OsmError(f"--sam_checkpoint {checkpoint} is not a .pth file, folder or hub id ({reason})") from None
    if kind not in FAMILIES:
        raise OsmError(
            f"--sam_checkpoint {checkpoint} has model type {kind}; expected one of {', '.join(FAMILIES)}, "
            "or a SAM .pth file"
        )
    try:
        with quiet_libraries():
            model = AutoModelForMaskGeneration.from_pretrained(checkpoint, **model_options(found))
            processor = AutoProcessor.from_pretrained(checkpoint, **loading)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OsmError(f"--sam_checkpoint {checkpoint} cannot be loaded by transformers ({reason})") from None
    return MaskGenerationSegmenter(model.to(device), processor, **options)
