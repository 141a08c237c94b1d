"""A labeling run from its options: finds the images, names their masks in one or more processes, writes the labels."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.datasets.labels import LabelClass
from osm.errors import OsmError, RunStopped, not_one_of
from osm.labeling.corrections import Corrections
from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_journal import FOLDER, LabelJournal
from osm.labeling.label_output import SAME, LabelSummary, LabelTarget, write_labels
from osm.labeling.label_rules import OVERLAPS, UNSURE, KeepRules
from osm.labeling.label_tasks import LabelInput, LabelTask, find_tasks
from osm.labeling.video import extract_frames, is_video
from osm.quiet import quiet_command
from osm.startup import quick_loading
from osm.storage.locations import is_remote, public
from osm.terminal import message_logger

if TYPE_CHECKING:
    from osm.labeling.labeler import ImageLabeler

logger = message_logger(__name__)

AGAIN = "the same command continues with the images that are not labeled yet"


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
        writable = [name for name in FORMATS.names() if FORMATS.get(name).writes]
        if not self.to:
            raise OsmError(f"--to: expected one or more of {', '.join([*writable, SAME])}")
        chosen = [FORMATS.get(name) for name in self.to if name != SAME]
        for one in chosen:
            if not one.writes:
                raise OsmError(f"--to {one.name}: {one.title} has no field for a name; choose {', '.join(writable)}")
            if one.needs and find_spec(one.needs) is None:
                raise OsmError(f"--to {one.name} needs the package {one.needs}: pip install {one.needs}")
        return list(dict.fromkeys(chosen))

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


# The options that affect the predicted names. The same output folder cannot hold the names of different values.
_SETTINGS = ("images", "masks", "tracks", "image_dir", "form", "auto", "segmenter", "sam_checkpoint", "sam_type")
_MORE_SETTINGS = ("checkpoint", "mode", "way", "min_area", "max_new_tokens", "views", "combine")


def find_input(options: LabelOptions) -> LabelInput:
    """Find the images and the masks of a run. Frames of a video are extracted to the output folder."""
    options.check()
    if options.tracks:
        from osm.labeling.tracks import track_tasks

        found = track_tasks(options)
    else:
        images, out = options.images, options.out
        if is_video(images):
            images, out = str(extract_frames(Path(images), out / "frames")), out / FOLDER
        found = find_tasks(images, options.masks, options.image_dir, options.form or None, options.auto, out)
    if SAME in options.to and (found.reader is None or found.masks is None or not found.reader.fills):
        what = "segments of a segmenter" if found.reader is None else found.reader.title
        raise OsmError(f"--to {SAME}: names cannot be filled into {what}; choose {', '.join(_fillable())}")
    return found


def _fillable() -> list[str]:
    return [name for name in FORMATS.names() if FORMATS.get(name).writes]


def label_images(options: LabelOptions, found: LabelInput | None = None) -> tuple[LabelSummary, float]:
    """Name the masks of all images, and write the labels. Images that an earlier run has labeled are not named again.

    Args:
        options: what is labeled, and how.
        found: the result of `find_input`.

    Returns:
        what was written, and the number of images per second, or 0 if no image was left.

    Raises:
        OsmError: an option or a file is invalid, or the folder has labels that were made with other options.
        RunStopped: a process ended early.
    """
    found = found or find_input(options)
    journal = LabelJournal(options.out, _settings(options, found.tasks), options.overwrite)
    journal.repair()
    if options.corrections is not None:
        journal.correct(Corrections.read(options.corrections, "--corrections"))
    if found.left_out:
        logger.info(f"{found.left_out} images with masks are not in the list of images, and are left out")
    done = journal.places(failed=False)
    left = [task for task in found.tasks if task.number not in done]
    if done:
        logger.info(f"{len(done)} of {len(found.tasks)} images are labeled already")
    started = time.monotonic()
    if left and options.tracks:
        from osm.labeling.track_labeler import label_tracks

        label_tracks(options, found.tasks, left, journal)
    elif left:
        _label(options, left, found.reader, journal)
    seconds = time.monotonic() - started
    if options.tracks:
        from osm.labeling.track_labeler import write_tracks

        write_tracks(journal, options.out)
    filled = found if SAME in options.to else replace(found, reader=None)
    target = LabelTarget(
        options.targets(), filled.reader, filled.masks, options.checkpoint, options.ids(), options.strict
    )
    return write_labels(journal, options.rules, options.out, target), len(left) / seconds if left else 0.0


def _settings(options: LabelOptions, tasks: Sequence[LabelTask]) -> dict[str, Any]:
    names = {one.name for one in fields(options)}
    assert names.issuperset((*_SETTINGS, *_MORE_SETTINGS))
    chosen = {name: getattr(options, name) for name in (*_SETTINGS, *_MORE_SETTINGS)}
    chosen = {name: public(value) if isinstance(value, str) else value for name, value in chosen.items()}
    listed = [one if isinstance(one, str) else [one.id, *one.names] for one in options.vocabulary]
    found = [(task.file_name, task.source.masks if task.source is not None else 0) for task in tasks]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return {
        **chosen,
        "ranking": repr(sorted(options.ranking.items())),
        "config": repr([options.model_options.get(name) for name in ("config", "settings")]),
        "vocabulary": listed,
        "the list of images": f"{len(tasks)} images ({digest})",
    }


def _label(
    options: LabelOptions, tasks: list[LabelTask], reader: type[LabelFormat] | None, journal: LabelJournal
) -> None:
    """Label images in this process, or in several processes that each take every n-th image."""
    count = min(options.processes, len(tasks))
    if count == 1:
        load_labeler(options, reader).run(tasks, journal)
        return
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(options, tasks[k::count], reader, journal, k, count), daemon=True)
        for k in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers]
    if any(codes):
        raise RunStopped(f"--processes {count}: a process ended with exit code {next(c for c in codes if c)}; {AGAIN}")


@quiet_command
def _work(
    options: LabelOptions,
    tasks: list[LabelTask],
    reader: type[LabelFormat] | None,
    journal: LabelJournal,
    process: int,
    count: int,
) -> int:
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    if options.device == "auto" and torch.cuda.device_count() > 1:
        options = replace(options, device=f"cuda:{process % torch.cuda.device_count()}")
    load_labeler(options, reader).run(tasks, journal, process)
    return 0


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


def label(images: str | Path, out: str | Path, **options: Any) -> LabelSummary:
    """Name the masks of many images, and write the names in the formats of annotation tools, as `osm label` does.

    >>> osm.label("photos", "labels", masks="instances.json", to=("coco", "yolo"))

    Args:
        images: a folder, a URL of a folder, a text file that lists images, a pattern of WebDataset shards, a video, or
            the file with the masks.
        out: the folder of the labels. A run that was killed continues.
        options: the attributes of `osm.labeling.label_run.LabelOptions`, which are the flags of `osm label`.

    Raises:
        OsmError: an option or a file is invalid.
    """
    known = [one.name for one in fields(LabelOptions)]
    for name in options:
        if name not in known:
            raise not_one_of("option", name, known[2:])
    for name in ("to", "vocabulary"):
        if isinstance(options.get(name), str):
            options[name] = tuple(part.strip() for part in options[name].split(","))
        elif name in options:
            options[name] = tuple(options[name])
    for name in ("masks", "tracks", "image_dir"):
        if options.get(name) is not None:
            options[name] = os.fspath(options[name])
    if options.get("corrections") is not None:
        options["corrections"] = Path(options["corrections"])
    place = os.fspath(images)
    return label_images(LabelOptions(place if is_remote(place) else str(Path(place)), Path(out), **options))[0]
