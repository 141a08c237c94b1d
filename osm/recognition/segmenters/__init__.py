"""Segmenters generate the masks to name, using SAM, another mask generator, or the recognizer's own tower.

To add a segmenter, subclass `Segmenter` and list the class in the entry-point group `osm.segmenters` (see
examples/segmenter), or call `register_segmenter`. `--segmenter` also accepts a class as `module:Class`.
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
        name: `sam` (a segment-anything checkpoint), `transformers` (the folder or hub id of SAM 2, SAM 3 or another
            mask generator in transformers), `embedded` (the recognizer's tower, without a checkpoint), the name of a
            segmenter in `SEGMENTERS`, or `module:Class`. `auto` means `sam` for a `.pth` or `.pt` checkpoint,
            `transformers` for any other checkpoint, and `embedded` without a checkpoint.
        checkpoint: the weights, if the segmenter uses a checkpoint.
        recognizer: the model that will name the masks. `embedded` uses the recognizer's vision tower.
        device: the device on which `sam` and `transformers` run. `embedded` runs on the recognizer's device.
        options: options of the segmenter (such as `sam_type` for SAM's `.pth` files).

    Raises:
        OsmError: There is no segmenter with this name, a package or checkpoint that the segmenter needs is missing, or
            the checkpoint does not fit.
        TypeError: The segmenter does not accept one of the options.
    """
    if name == AUTO:
        if checkpoint is None:
            name = "embedded"
        else:
            name = "sam" if Path(checkpoint).suffix in (".pth", ".pt") else "transformers"
    if name not in SEGMENTERS and ":" not in name:
        known = ", ".join([AUTO, *SEGMENTERS.names()])
        raise OsmError(f"--segmenter {name!r} is neither one of {known} nor of the form module:Class")
    found = SEGMENTERS.get(name)
    if checkpoint is None and found.checkpoint_example:
        raise OsmError(f"--segmenter {name} needs a checkpoint, such as --sam_checkpoint {found.checkpoint_example}")
    if checkpoint is not None and not found.checkpoint_example:
        raise OsmError(f"--segmenter {name} does not take a checkpoint, but {checkpoint} was given")
    loaded: Segmenter = found.load(checkpoint, recognizer, device, **options)
    return loaded
