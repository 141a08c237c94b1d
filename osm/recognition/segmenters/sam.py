"""Segment Anything's checkpoints (sam_vit_h_4b8939.pth and its smaller ones), by the package segment-anything.

    pip install segment-anything opencv-python-headless

Shapes: H, W of the image that is set.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from osm.errors import OsmError
from osm.io.images import to_rgb
from osm.models.weights import load_torch
from osm.recognition.segmenters.base import Segment, by_area
from osm.recognition.segmenters.checks import Size, check_set, checked_box, checked_points

TYPES = ("vit_h", "vit_l", "vit_b")
# Of the published demo.
EVERYTHING = {
    "points_per_side": 32,
    "pred_iou_thresh": 0.95,
    "stability_score_thresh": 0.95,
    "min_mask_region_area": 800,
}


class SamSegmenter:
    """Masks of a Segment Anything model.

    Args:
        sam: a `segment_anything` Sam in eval mode, on the device it is to work on.
        options: of SamAutomaticMaskGenerator, over the published demo's (`EVERYTHING`).

    Raises:
        OsmError: a package is missing, or the generator does not take an option.
    """

    name = "sam"

    def __init__(self, sam: Any, **options: Any) -> None:
        package = _package()
        if importlib.util.find_spec("cv2") is None:  # the generator's clean-up of small regions needs it
            raise OsmError("SAM's masks are cleaned with OpenCV: pip install opencv-python-headless")
        try:
            self._generator = package.SamAutomaticMaskGenerator(sam, **{**EVERYTHING, **options})
        except (TypeError, AssertionError) as error:
            raise OsmError(f"SAM's options {options}: {error}") from None
        self._predictor = package.SamPredictor(sam)
        self._size: Size | None = None
        self._pixels = np.zeros((0, 0, 3), np.uint8)
        self._embedded = False

    def set_image(self, image: Image.Image) -> None:
        """Takes an RGB image. It is embedded when a point or box asks for it: `everything` embeds it by itself."""
        self._pixels = np.array(to_rgb(image))
        self._size, self._embedded = image.size, False

    def everything(self) -> list[Segment]:
        """All masks of a grid of points that SAM is sure of, the largest first; score: the IoU it foretells."""
        check_set(self._size)
        found = self._generator.generate(self._pixels)
        return by_area([Segment(mask["segmentation"], _score(mask["predicted_iou"])) for mask in found])

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> Segment:
        """One point alone is ambiguous: then the best of SAM's three answers."""
        places, marks = checked_points(check_set(self._size), points, inside)
        return self._predict(len(places) == 1, point_coords=np.array(places), point_labels=np.array(marks, np.int64))

    def in_box(self, box: Sequence[float]) -> Segment:
        corners = checked_box(check_set(self._size), box)
        return self._predict(False, box=np.array(corners, np.float64))

    def _predict(self, several: bool, **prompt: np.ndarray) -> Segment:
        if not self._embedded:
            with torch.no_grad():
                self._predictor.set_image(self._pixels)
            self._embedded = True
        masks, scores, _ = self._predictor.predict(multimask_output=several, **prompt)
        best = int(scores.argmax())
        return Segment(masks[best].astype(bool), _score(scores[best]))


def load_sam(
    checkpoint: str | Path, sam_type: str | None = None, device: str | torch.device = "cpu", **options: Any
) -> SamSegmenter:
    """Loads a published `.pth`.

    Args:
        sam_type: vit_h, vit_l or vit_b; None = as the file name says.
        options: of `SamSegmenter`.

    Raises:
        OsmError: no such file or type, weights that do not fit, or a package is missing.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise OsmError(f"--sam_checkpoint {path}: no such file")
    kind = sam_type or type_of(path)
    if kind not in TYPES:
        raise OsmError(f"--sam_type {kind!r} is not one of {', '.join(TYPES)}")
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
        raise OsmError(f"--sam_checkpoint {path} does not fit a SAM of --sam_type {kind} ({reason})") from None
    return SamSegmenter(sam.to(device).eval(), **options)


def type_of(path: Path) -> str:
    """The type that a checkpoint's file name tells. Raises OsmError where it tells none."""
    found = re.search(r"vit_[hlb](?![a-z0-9])", path.name.lower())
    if found is None:
        raise OsmError(f"--sam_checkpoint {path.name} does not tell its type; give --sam_type {'|'.join(TYPES)}")
    return found[0]


def _package() -> Any:
    try:
        import segment_anything
    except ImportError:
        raise OsmError(
            "SAM's checkpoints need a package: pip install segment-anything opencv-python-headless"
        ) from None
    return segment_anything


def _score(value: Any) -> float:
    return float(np.clip(float(value), 0.0, 1.0))
