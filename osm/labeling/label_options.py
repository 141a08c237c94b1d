"""The options of a labeling run, which are the flags of `osm label`, and the model that they select."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.datasets.labels import LabelClass
from osm.errors import OsmError, not_one_of
from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_output import SAME, LabelTarget
from osm.labeling.label_rules import OVERLAPS, UNSURE, KeepRules
from osm.labeling.video import is_video
from osm.startup import quick_loading
from osm.storage.locations import check_writable, is_remote, public

if TYPE_CHECKING:
    from osm.labeling.labeler import ImageLabeler


PARTS = "parts"
"""`--to parts` writes Parquet files part by part, which any number of machines can do."""
ENGINES = ("local", "ray")
# The options that affect the predicted names. The same output folder cannot hold the names of different values.
_SETTINGS = (
    *("images", "masks", "tracks", "image_dir", "form", "auto", "segmenter", "sam_checkpoint", "sam_type"),
    *("checkpoint", "mode", "way", "min_area", "max_new_tokens", "views", "combine"),
)


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
        to: the formats of the labels. `same` fills the names into the files of the masks, and `parts` writes Parquet
            files part by part. None: `formats` says what is written.
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
        engine: `local` labels in processes of this machine, `ray` on a Ray cluster.
        ray_address: the address of the Ray cluster; None = RAY_ADDRESS, or a cluster of this machine.
        cpus_per_process: the number of threads of each process; None = an equal share of the CPU cores, or 1 with Ray.
        gpus_per_process: with Ray, the share of a GPU that each process has; None = an equal share of the GPUs.
        part_images: the number of images in a part.
        share: `K/N`: the run labels only every N-th partition, from the K-th, counted from 0; None = all.
    """

    images: str
    out: Path
    masks: str | None = None
    tracks: str | None = None
    image_dir: str | None = None
    form: str = ""
    to: tuple[str, ...] | None = None
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
    engine: str = "local"
    ray_address: str | None = None
    cpus_per_process: int | None = None
    gpus_per_process: float | None = None
    part_images: int = 500
    share: str | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of the labels: `to`, or by default `coco`, or `parts` where only parts can be written."""
        if self.to is not None:
            return self.to
        return (PARTS,) if self.engine != "local" or self.share or is_remote(self.out) else ("coco",)

    @property
    def in_parts(self) -> bool:
        """Whether the run writes parts, from which the other formats are made."""
        return PARTS in self.formats or self.engine != "local"

    @property
    def destination(self) -> str:
        """The path or URL of the output folder."""
        return check_writable(self.out, "out")

    def check(self) -> None:
        """Raise OsmError if options are invalid or do not fit together."""
        self._check_parts()
        for name, allowed in (("unsure", UNSURE), ("overlaps", OVERLAPS), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise not_one_of(f"--{name}", getattr(self, name), allowed)
        if not 0 <= self.min_prob <= 1:
            raise OsmError(f"--min_prob {self.min_prob} must be from 0 to 1")
        for name in ("min_area", "processes", "max_new_tokens", "views", "cpus_per_process", "part_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OsmError(f"--{name} {getattr(self, name)} must be 1 or more")
        if self.auto and (self.masks or self.form or self.tracks):
            raise OsmError("--auto finds masks, so it cannot be combined with --masks, --tracks or --from")
        if self.tracks and (self.masks or self.form):
            raise OsmError("--tracks cannot be combined with --masks or --from")
        if self.tracks and (self.way != "constrained" or self.ranking.get("none_below")):
            raise OsmError("--tracks names objects with --way constrained and without --none_below only")
        if not self.auto and (self.sam_checkpoint or self.sam_type or self.segmenter != "auto"):
            raise OsmError("--segmenter, --sam_checkpoint and --sam_type have no effect without --auto; add --auto")
        if not is_remote(self.out) and self.out.exists() and not self.out.is_dir():
            raise OsmError(f"out {self.out} is not a folder")
        self.targets()

    def _check_parts(self) -> None:
        """Raise OsmError if options of runs that write parts are invalid or have no effect."""
        others = [name for name in self.formats if name != PARTS]
        if is_remote(self.destination) and others:
            raise OsmError(f"--to {others[0]}: only --to {PARTS} can be written to {public(self.destination)}")
        if self.share is not None:
            self.shares()
            if others or self.engine != "local" or self.overwrite:
                which = (
                    f"--to {others[0]}" if others else "--overwrite" if self.overwrite else f"--engine {self.engine}"
                )
                raise OsmError(f"{which} cannot be combined with --share; run the command once more without --share")
        if self.in_parts:
            for package in ("pyarrow", "ray") if self.engine == "ray" else ("pyarrow",):
                if find_spec(package) is None:
                    raise OsmError(f"--to {PARTS} and --engine ray need the package {package}: pip install {package}")
            if self.tracks or is_video(self.images):
                raise OsmError(f"--to {PARTS} and --engine ray label images; extract the frames of a video first")
            if not others:
                self._check_rules()
                if self.corrections:
                    another = f"add another format, such as --to {PARTS},coco"
                    raise OsmError(f"--corrections has no effect on --to {PARTS}; {another}")
        if not self.in_parts and self.part_images != LabelOptions.part_images:
            raise OsmError(f"--part_images has no effect without --to {PARTS}")
        for name in ("ray_address", "gpus_per_process"):
            if getattr(self, name) is not None and self.engine != "ray":
                raise OsmError(f"--{name} has no effect without --engine ray")
        share = self.gpus_per_process
        if share is not None and (share < 0 or share > 8 or (share > 1 and share != int(share))):
            raise OsmError(f"--gpus_per_process {share} must be from 0 to 1, or a whole number up to 8")

    def _check_rules(self) -> None:
        """Raise OsmError for a rule that says which names are written, because parts have all of them."""
        default = KeepRules()
        for name in ("min_prob", "unsure", "overlaps"):
            if getattr(self, name) != getattr(default, name):
                raise OsmError(
                    f"--{name} {getattr(self, name)} has no effect on --to {PARTS}, which has all names; select "
                    "rows by its columns, or add another format"
                )

    def shares(self) -> tuple[int, int]:
        """Return the share of the partitions that this run labels, and the number of shares: `K/N`, K from 0."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.share or "0/1")
        if found is None or int(found[1]) >= int(found[2]):
            raise OsmError(f"--share {self.share}: expected K/N with K from 0 to N - 1, such as 0/16")
        return int(found[1]), int(found[2])

    def settings(self, identity: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """Return everything that affects the names, as JSON values.

        Args:
            identity: the names of the images and the numbers of their masks, as far as they are known.
        """
        names = {one.name for one in fields(self)}
        assert names.issuperset(_SETTINGS)
        chosen = {name: getattr(self, name) for name in _SETTINGS}
        chosen = {name: public(value) if isinstance(value, str) else value for name, value in chosen.items()}
        listed = [one if isinstance(one, str) else [one.id, *one.names] for one in self.vocabulary]
        digest = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()[:16]
        return {
            **chosen,
            "ranking": repr(sorted(self.ranking.items())),
            "config": repr([self.model_options.get(name) for name in ("config", "settings")]),
            "vocabulary": listed,
            "the list of images": f"{len(identity)} images ({digest})",
        }

    def targets(self) -> list[type[LabelFormat]]:
        """Return the formats named by `to`, without `same`."""
        if not self.formats:
            raise OsmError(f"--to: expected one or more of {', '.join([*writable_formats(), SAME, PARTS])}")
        return chosen_formats(name for name in self.formats if name not in (SAME, PARTS))

    def check_same(self, reader: type[LabelFormat] | None, masks: Path | None) -> None:
        """Raise OsmError if `same` is one of the formats, but names cannot be filled into the files of the masks."""
        if SAME in self.formats and (reader is None or masks is None or not reader.fills):
            what = "segments of a segmenter" if reader is None else reader.title
            raise OsmError(f"--to {SAME}: names cannot be filled into {what}; choose {', '.join(writable_formats())}")

    def target(self, reader: type[LabelFormat] | None, masks: Path | None) -> LabelTarget:
        """Return what is written.

        Args:
            reader: the format of the masks.
            masks: the file or folder with the masks.
        """
        filled = (reader, masks) if SAME in self.formats else (None, None)
        return LabelTarget(self.targets(), *filled, self.checkpoint, self.ids(), self.strict)

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
