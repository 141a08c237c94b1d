"""Where masks come from when nobody brings them: SAM, or what the tower itself sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError
from osm.recognition.segmenters.base import Segment, Segmenter, by_area

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

__all__ = ["NAMES", "Segment", "Segmenter", "by_area", "load_segmenter"]

NAMES = ("auto", "sam", "transformers", "embedded")


def load_segmenter(
    name: str = "auto",
    checkpoint: str | Path | None = None,
    recognizer: Recognizer | None = None,
    device: str = "auto",
    **options: Any,
) -> Segmenter:
    """A segmenter by its name.

    Args:
        name: `sam`, a checkpoint of segment-anything; `transformers`, a folder or hub id of SAM 2, SAM 3 or another
            mask generator of transformers; `embedded`, the recognizer's own tower, with no download; `auto`, one of
            the first two where there is a checkpoint (a `.pth` file: `sam`), else `embedded`.
        recognizer: whose tower `embedded` sees with.
        device: of the first two; `embedded` works where the recognizer does.
        options: of the segmenter (`sam_type` for SAM's files).

    Raises:
        OsmError: no such name, or something that it needs is missing or does not fit.
    """
    if name not in NAMES:
        raise OsmError(f"--segmenter {name!r} is not one of {', '.join(NAMES)}")
    if name == "auto":
        if checkpoint is None:
            name = "embedded"
        else:
            name = "sam" if Path(checkpoint).suffix in (".pth", ".pt") else "transformers"
    if name == "embedded":
        from osm.recognition.segmenters.embedded import EmbeddedSegmenter

        if checkpoint is not None:
            raise OsmError(f"--segmenter embedded takes no checkpoint, but {checkpoint} is given")
        if recognizer is None:
            raise OsmError("--segmenter embedded sees with a recognizer's tower: give one")
        return EmbeddedSegmenter(recognizer, **options)
    if checkpoint is None:
        raise OsmError(f"--segmenter {name} needs a checkpoint: --sam_checkpoint {_EXAMPLES[name]}")
    from osm.models.factory import pick_device

    if name == "sam":
        from osm.recognition.segmenters.sam import load_sam

        return load_sam(checkpoint, device=pick_device(device), **options)
    from osm.recognition.segmenters.mask_generation import load_mask_generator

    return load_mask_generator(checkpoint, device=pick_device(device), **options)


_EXAMPLES = {"sam": "sam_vit_h_4b8939.pth", "transformers": "facebook/sam2.1-hiera-large"}
