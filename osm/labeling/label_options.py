"""The options of a labeling run, which are the flags of `osm label`, and the model that they select."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.datasets.labels import LabelClass
from osm.errors import OsmError, not_one_of
from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_output import SAME
from osm.labeling.label_rules import OVERLAPS, UNSURE, KeepRules
from osm.startup import quick_loading

if TYPE_CHECKING:
    from osm.labeling.labeler import ImageLabeler


@dataclass(frozen=True)
class LabelOptions:
    """The options of a labeling run. The flags of `osm label` have the same names.

    Attributes:
        images: a folder, a URL of a folder, a text file that lists images, a pattern of WebDataset shards, a video, or
            the file with the masks.
        out: the folder of the labels.
        masks: the file or folder with the masks; None if `images` contains them.
        tracks: the masks of tracked objects in the frames of a video; see `osm.labeling.tracks`.
        image_dir: the folder of the images, if it is not beside the file with the masks.
        form: the format of the masks; empty = recognized by its content.
        to: the formats of the labels. `same` fills the names into the files of the masks.
        strict: refuse a format that cannot hold all masks, scores and ids.
        auto: name all segments that a segmenter finds.
        segmenter, sam_checkpoint, sam_type: see `osm.recognition.segmenters.load_segmenter`.
        checkpoint: the model.
        model_options: further arguments of `load_recognizer`, such as `config` and `settings`.
        device: the device of the model.
        mode: the mode in which the model answers.
        vocabulary: the allowed names or classes; empty = any name.
        way: how the vocabulary is applied.
        ranking: the arguments of `Recognizer.name` that say how names are compared.
        min_area, min_prob, unsure, overlaps: see `KeepRules`.
        max_new_tokens: the maximum number of tokens of a name.
        views: the number of frames from which an object of a video gets its name.
        combine: how these frames are combined; see `Recognizer.name_views`.
        corrections: a file of corrections from the review page.
        processes: the number of processes that label, each with its own model.
        overwrite: label everything again.
    """

    images: str
    out: Path
    masks: str | None = None
    tracks: str | None = None
    image_dir: str | None = None
    form: str = ""
    to: tuple[str, ...] = ("coco",)
    strict: bool = False
    auto: bool = False
    segmenter: str = "auto"
    sam_checkpoint: str | None = None
    sam_type: str | None = None
    checkpoint: str = "osm_small"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    mode: str = "any"
    vocabulary: tuple[str | LabelClass, ...] = ()
    way: str = "constrained"
    ranking: Mapping[str, Any] = field(default_factory=dict)
    min_area: int = 1
    min_prob: float = 0.0
    unsure: str = "keep"
    overlaps: str = "keep"
    max_new_tokens: int = 16
    views: int = 4
    combine: str = ""
    corrections: Path | None = None
    processes: int = 1
    overwrite: bool = False

    def check(self) -> None:
        """Raise OsmError if options are invalid or do not fit together."""
        for name, allowed in (("unsure", UNSURE), ("overlaps", OVERLAPS)):
            if getattr(self, name) not in allowed:
                raise not_one_of(f"--{name}", getattr(self, name), allowed)
        if not 0 <= self.min_prob <= 1:
            raise OsmError(f"--min_prob {self.min_prob} must be from 0 to 1")
        for name in ("min_area", "processes", "max_new_tokens", "views"):
            if getattr(self, name) < 1:
                raise OsmError(f"--{name} {getattr(self, name)} must be 1 or more")
        if self.auto and (self.masks or self.form or self.tracks):
            raise OsmError("--auto finds masks, so it cannot be combined with --masks, --tracks or --from")
        if self.tracks and (self.masks or self.form):
            raise OsmError("--tracks cannot be combined with --masks or --from")
        if self.tracks and (self.way != "constrained" or self.ranking.get("none_below")):
            raise OsmError("--tracks names objects with --way constrained and without --none_below only")
        if not self.auto and (self.sam_checkpoint or self.sam_type or self.segmenter != "auto"):
            raise OsmError("--segmenter, --sam_checkpoint and --sam_type have no effect without --auto; add --auto")
        if self.out.exists() and not self.out.is_dir():
            raise OsmError(f"out {self.out} is not a folder")
        self.targets()

    def targets(self) -> list[type[LabelFormat]]:
        """Return the formats named by `to`, without `same`."""
        if not self.to:
            raise OsmError(f"--to: expected one or more of {', '.join([*writable_formats(), SAME])}")
        return chosen_formats(name for name in self.to if name != SAME)

    @property
    def rules(self) -> KeepRules:
        """Which names are written."""
        return KeepRules(self.min_area, self.min_prob, self.unsure, self.overlaps)

    def ids(self) -> dict[str, int] | None:
        """Return the ids of the vocabulary's names: its own, or the positions from 1. None without a vocabulary."""
        if not self.vocabulary:
            return None
        from osm.recognition.vocabulary import NONE_OF_THESE

        entries = {one.target if isinstance(one, LabelClass) else one: one for one in self.vocabulary}
        ids = {name: one.id if isinstance(one, LabelClass) else k for k, (name, one) in enumerate(entries.items(), 1)}
        if self.ranking.get("none_below"):
            ids[NONE_OF_THESE] = max(ids.values(), default=0) + 1
        return ids


def writable_formats() -> list[str]:
    """Return the names of the formats that can be written."""
    return [name for name in FORMATS.names() if FORMATS.get(name).writes]


def chosen_formats(names: Iterable[str]) -> list[type[LabelFormat]]:
    """Return the formats with some names, each once.

    Raises:
        OsmError: a format is unknown or cannot be written, or the package that it needs is not installed.
    """
    chosen = [FORMATS.get(name) for name in names]
    for one in chosen:
        if not one.writes:
            known = ", ".join(writable_formats())
            raise OsmError(f"--to {one.name}: the format ({one.title}) has no field for a name; choose {known}")
        if one.needs and find_spec(one.needs) is None:
            raise OsmError(f"--to {one.name} needs the package {one.needs}: pip install {one.needs}")
    return list(dict.fromkeys(chosen))


@quick_loading()
def load_labeler(options: LabelOptions, reader: type[LabelFormat] | None) -> ImageLabeler:
    """Load the model, and the segmenter if the run needs one."""
    from osm.labeling.labeler import ImageLabeler
    from osm.labeling.naming import NamingRequest
    from osm.recognition.recognizer import load_recognizer
    from osm.recognition.segmenters import load_segmenter

    more = {"max_new_tokens": options.max_new_tokens, **options.model_options}
    recognizer = load_recognizer(options.checkpoint, device=options.device, **more)
    request = NamingRequest(options.mode, options.vocabulary, options.way, top_k=1, **options.ranking)
    segmenter = None
    if options.auto:
        kind = {"sam_type": options.sam_type} if options.sam_type else {}
        segmenter = load_segmenter(options.segmenter, options.sam_checkpoint, recognizer, options.device, **kind)
    return ImageLabeler(recognizer, request, options.rules, reader, segmenter)
