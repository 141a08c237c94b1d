"""A segmenter that runs the original Segment Anything Model (SAM) from the segment-anything package.

The published checkpoints have file names such as sam_vit_h_4b8939.pth.
Install the required packages with `pip install segment-anything opencv-python-headless`.

Shapes: (H, W) are the height and width of the image passed to `set_image`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from osm.errors import OsmError, not_one_of
from osm.io.images import to_rgb
from osm.models.factory import pick_device
from osm.models.weights import load_torch
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

TYPES = ("vit_h", "vit_l", "vit_b")
# The options of the published demo.
EVERYTHING = {
    "points_per_side": 32,
    "pred_iou_thresh": 0.95,
    "stability_score_thresh": 0.95,
    "min_mask_region_area": 800,
}


class SamSegmenter(Segmenter):
    """Generates masks with a Segment Anything model.

    Args:
        sam: a `segment_anything` Sam model in eval mode, on the device where it will run.
        options: options of SamAutomaticMaskGenerator, which override the published demo's options (`EVERYTHING`).

    Raises:
        OsmError: A package is not installed, or SamAutomaticMaskGenerator rejects an option.
    """

    name = "sam"
    checkpoint_example = "sam_vit_h_4b8939.pth"

    def __init__(self, sam: Any, **options: Any) -> None:
        package = _package()
        if importlib.util.find_spec("cv2") is None:  # SamAutomaticMaskGenerator needs OpenCV to remove small regions
            raise OsmError("SAM needs OpenCV to remove small regions from masks: pip install opencv-python-headless")
        try:
            self._generator = package.SamAutomaticMaskGenerator(sam, **{**EVERYTHING, **options})
        except (TypeError, AssertionError) as error:
            raise OsmError(f"SAM's options {options}: {error}") from None
        self._predictor = package.SamPredictor(sam)
        self._size: Size | None = None
        self._pixels = np.zeros((0, 0, 3), np.uint8)
        self._embedded = False

    @classmethod
    def load(
        cls, checkpoint: str | Path | None, recognizer: Recognizer | None, device: str, **options: Any
    ) -> SamSegmenter:
        """Load the checkpoint; see `load_sam`."""
        return load_sam(str(checkpoint), device=pick_device(device), **options)

    def set_image(self, image: Image.Image) -> None:
        """Set the RGB image to segment.

        The image embedding is computed lazily, when the first point or box is given. The method `everything` computes
        its own embeddings.
        """
        self._pixels = np.array(to_rgb(image))
        self._size, self._embedded = image.size, False

    def everything(self) -> list[ScoredMask]:
        """Return high-confidence masks for a grid of points, scored by predicted IoU, in descending order of area."""
        check_set(self._size)
        found = self._generator.generate(self._pixels)
        return by_area([ScoredMask.predicted(mask["segmentation"], mask["predicted_iou"]) for mask in found])

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        """Return the mask for point prompts. A single point is ambiguous, so the best of three masks is returned."""
        places, marks = checked_points(check_set(self._size), points, inside)
        return self._predict(len(places) == 1, point_coords=np.array(places), point_labels=np.array(marks, np.int64))

    def in_box(self, box: Sequence[float]) -> ScoredMask:
        """Return the mask for a box prompt (x, y, width, height) in pixels."""
        corners = checked_box(check_set(self._size), box)
        return self._predict(False, box=np.array(corners, np.float64))

    def _predict(self, several: bool, **prompt: np.ndarray) -> ScoredMask:
        if not self._embedded:
            with torch.no_grad():
                self._predictor.set_image(self._pixels)
            self._embedded = True
        masks, scores, _ = self._predictor.predict(multimask_output=several, **prompt)
        best = int(scores.argmax())
        return ScoredMask.predicted(masks[best], scores[best])


def load_sam(
    checkpoint: str | Path, sam_type: str | None = None, device: str | torch.device = "cpu", **options: Any
) -> SamSegmenter:
    """Load a published SAM checkpoint (`.pth`).

    Args:
        checkpoint: the path of the checkpoint file.
        sam_type: vit_h, vit_l or vit_b. None: the type is read from the file name.
        device: the device on which the model runs.
        options: options of `SamSegmenter`.

    Raises:
        OsmError: The file does not exist, the type is unknown, the weights do not fit the type, or a package is not
            installed.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise OsmError(f"--sam_checkpoint {path}: no such file")
    kind = sam_type or type_of(path)
    if kind not in TYPES:
        raise not_one_of("--sam_type", kind, TYPES)
    registry = _package().sam_model_registry
    try:
        weights = load_torch(path)
    except ValueError as error:
        raise OsmError(f"--sam_checkpoint {path}: {error}") from None
    sam = registry[kind]()
    try:
        sam.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise OsmError(f"--sam_checkpoint {path} does not match --sam_type {kind} ({reason})") from None
    return SamSegmenter(sam.to(device).eval(), **options)


def type_of(path: Path) -> str:
    """Return the SAM type (vit_h, vit_l or vit_b) contained in the name of a checkpoint file.

    Raises:
        OsmError: The file name does not contain a type.
    """
    found = re.search(r"vit_[hlb](?![a-z0-9])", path.name.lower())
    if found is None:
        raise OsmError(
            f"--sam_checkpoint {path.name}: the file name does not contain the SAM type; "
            f"give --sam_type {'|'.join(TYPES)}"
        )
    return found[0]


def _package() -> Any:
    try:
        import segment_anything
    except ImportError:
        raise OsmError(
            "SAM checkpoints need the package segment-anything: pip install segment-anything opencv-python-headless"
        ) from None
    return segment_anything
