"""Segmenters make the masks that the model names: SAM, other mask generators, or segments of the model's own tower.

A package adds a segmenter by deriving from `Segmenter` and naming its class in the entry-point group `osm.segmenters`
(see examples/segmenter), or by `register_segmenter`. `--segmenter` also takes a class as `module:Class`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError
from osm.recognition.segmenters.base import ScoredMask, Segmenter, by_area
from osm.registry import Registry

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

__all__ = ["AUTO", "SEGMENTERS", "ScoredMask", "Segmenter", "by_area", "load_segmenter", "register_segmenter"]

SEGMENTERS: Registry[type[Segmenter]] = Registry(
    "segmenter",
    "osm.segmenters",
    {
        "sam": "osm.recognition.segmenters.sam:SamSegmenter",
        "transformers": "osm.recognition.segmenters.mask_generation:MaskGenerationSegmenter",
        "embedded": "osm.recognition.segmenters.embedded:EmbeddedSegmenter",
    },
    "osm.recognition.segmenters.base:Segmenter",
)
register_segmenter = SEGMENTERS.register
AUTO = "auto"


def load_segmenter(
    name: str = AUTO,
    checkpoint: str | Path | None = None,
    recognizer: Recognizer | None = None,
    device: str = "auto",
    **options: Any,
) -> Segmenter:
    """Load a segmenter.

    Args:
        name: `sam` (a checkpoint of segment-anything), `transformers` (a folder or hub id of SAM 2, SAM 3 or another
            mask generator of transformers), `embedded` (the tower of the recognizer; needs no checkpoint), the name of
            a segmenter in `SEGMENTERS`, or `module:Class`. `auto` means `sam` for a `.pth` or `.pt` checkpoint,
            `transformers` for another checkpoint, and `embedded` without a checkpoint.
        checkpoint: the weights, for a segmenter that takes a checkpoint.
        recognizer: the model that will name the masks. `embedded` uses its vision tower.
        device: where `sam` and `transformers` run. `embedded` runs on the recognizer's device.
        options: options of the segmenter (`sam_type` for SAM's files).

    Raises:
        OsmError: There is no such segmenter, or something that it needs is missing or does not fit.
        TypeError: The segmenter does not take one of the options.
    """
    if name == AUTO:
        if checkpoint is None:
            name = "embedded"
        else:
            name = "sam" if Path(checkpoint).suffix in (".pth", ".pt") else "transformers"
    if name not in SEGMENTERS and ":" not in name:
        known = ", ".join([AUTO, *SEGMENTERS.names()])
        raise OsmError(f"--segmenter {name!r} is not one of {known}, or module:Class")
    found = SEGMENTERS.get(name)
    if checkpoint is None and found.checkpoint_example:
        raise OsmError(f"--segmenter {name} needs a checkpoint: --sam_checkpoint {found.checkpoint_example}")
    if checkpoint is not None and not found.checkpoint_example:
        raise OsmError(f"--segmenter {name} takes no checkpoint, but {checkpoint} is given")
    loaded: Segmenter = found.load(checkpoint, recognizer, device, **options)
    return loaded
