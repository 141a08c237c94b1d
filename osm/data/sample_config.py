"""Settings for making training samples. This module does not import torch, so that `osm train --help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from osm.config import choice
from osm.errors import OsmError


@dataclass(frozen=True)
class SampleConfig:
    """Settings for making and augmenting training samples. S is the model's input size in pixels.

    Attributes:
        random_scale_min, random_scale_max: bounds of the uniformly drawn scale u. The longest side of the image is
            resized to u * S.
        resize: `published` resizes only images whose shortest side is smaller than S; `always` resizes every image.
        mask2box_prob: probability that the mask of a thing is replaced by its filled bounding box and gets a prompt
            that asks about a box.
        part_in_use_whole_prob: probability that a whole object is named instead of a part. It applies to part datasets
            that also have maps of whole objects.
        part_in_prepend_object_class_prob: probability that the name of a part is preceded by the class of its object
            ("impala head"). It applies to part datasets that also have maps of whole objects.
        synonym_prob: probability that the target answer is a synonym of the class, instead of its first name, if the
            class has synonyms.
        masks_per_image: maximum number of masks per view.
        supervise: `all` supervises prompt and answer; `answer` supervises the answer only.

    Raises:
        OsmError: a value is out of range. The message names the flag.
    """

    random_scale_min: float = 0.5
    random_scale_max: float = 1.5
    resize: str = choice("published", ("published", "always"))
    mask2box_prob: float = 0.0
    part_in_use_whole_prob: float = 0.2
    part_in_prepend_object_class_prob: float = 0.8
    synonym_prob: float = 0.0
    masks_per_image: int = 1
    supervise: str = choice("all", ("all", "answer"))

    def __post_init__(self) -> None:
        if not 0 < self.random_scale_min <= self.random_scale_max:
            raise OsmError(
                f"--random_scale_min {self.random_scale_min} and --random_scale_max {self.random_scale_max}: "
                "expected 0 < min <= max"
            )
        if self.resize not in ("published", "always"):
            raise OsmError(f"--resize {self.resize!r} must be published or always")
        shares = "mask2box_prob part_in_use_whole_prob part_in_prepend_object_class_prob synonym_prob"
        for flag in shares.split():
            if not 0 <= getattr(self, flag) <= 1:
                raise OsmError(f"--{flag} {getattr(self, flag)} is not between 0 and 1")
        if self.masks_per_image < 1:
            raise OsmError(f"--masks_per_image {self.masks_per_image} must be 1 or more")
        if self.supervise not in ("all", "answer"):
            raise OsmError(f"--supervise {self.supervise!r} must be all or answer")
