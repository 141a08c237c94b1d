"""Predicts names for all ground-truth masks of a val split, or for proposal masks, and writes prediction files."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from osm.datasets.labels import LabelClass
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, not_one_of, write_failed
from osm.evaluation.predict.alter import ALTERATIONS, blank, other_mask
from osm.evaluation.predict.prediction_files import meta_path, partial_path, prediction_path
from osm.files import PartialFile, read_json, write_atomically
from osm.forms import Split, form_class, split_of
from osm.forms.base import too_many_lost
from osm.forms.proposal_splits import ProposalSplit
from osm.forms.split import FIELD, MAX_BAD_ANNOTATIONS, Item, check_files, files_stay
from osm.storage.locations import is_remote
from osm.storage.output import check_output, locked, open_output, staging
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

OWN_MODE = "own"
# Maximum total number of mask pixels in memory (1 byte per pixel).
# A large LVIS image with 300 masks stays below the maximum number of mask pixels.
_MASK_PIXELS = 1 << 29
COUNTS = ("named", "crowd", "empty", "missing_in_mask", "unknown_in_mask", "unusable")
"""The names of the counters in a meta file.

named: annotations with a prediction. crowd: crowd annotations. empty: annotations without a pixel, including those that
lost their last pixel by resizing. missing_in_mask: annotations in the json that are not in the PNG. unknown_in_mask:
segments in the PNG that are not in the json, and ids in a label map that the labels do not define. unusable: invalid
annotations, which have no prediction.
"""


class NameLike(Protocol):
    """A predicted name and its probability (0 to 1). `top` is only read if `top_k` is above 1."""

    @property
    def text(self) -> str: ...
    @property
    def prob(self) -> float: ...
    @property
    def top(self) -> Sequence[Any]: ...


class NamerLike(Protocol):
    """The subset of the `osm.recognition.namer.Namer` interface that `generate_predictions` uses."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def modes(self) -> tuple[str, ...]: ...
    def name_images(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray],
        modes: Sequence[str],
        vocabulary: Sequence[str | LabelClass] | None = None,
        method: str = "constrained",
        boxed: bool = False,
        top_k: int = 1,
    ) -> Sequence[Sequence[Any]]: ...


@dataclass(frozen=True)
class _Run:
    """The settings of a prediction run, which are the same for all images.

    Attributes:
        split: the images and masks of the dataset.
        count: number of items to name, counted from the start of the split.
        modes: the modes to name the masks in.
        alter: one of `ALTERATIONS`.
        seed: random seed of `alter`.
        batch: number of images that are named together.
        restricted: arguments of `name_images` that restrict the names to a list, and the number of candidates.
        max_bad_annotations: maximum share of unusable annotations, 0 to 1.
    """

    split: Split
    count: int
    modes: tuple[str, ...]
    alter: str
    seed: int
    batch: int
    restricted: dict[str, Any]
    max_bad_annotations: float


def resolve_modes(row: Dataset, modes: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Return the vocabulary modes in which masks are named. The mode `own` is replaced by the name of the dataset.

    Raises:
        OsmError: No mode is given, or the checkpoint does not have one of the modes.
    """
    resolved = tuple(dict.fromkeys(row.name if mode == OWN_MODE else mode for mode in modes))
    if not resolved:
        raise OsmError(f"modes: no mode was given; expected '{OWN_MODE}', '{ANY_MODE}' or a mode of the checkpoint")
    for mode in resolved:
        if mode not in available:
            raise OsmError(
                f"modes: dataset {row.name!r} needs mode {mode!r}, but the checkpoint has only "
                f"{', '.join(available)}; for open-vocabulary names only, use --modes {ANY_MODE}"
            )
    return resolved


def part_range(count: int, part: int, parts: int) -> range:
    """Split `count` images into equal parts, with the remainder in the last part, and return one part's image indices.

    The published evaluation script divides a dataset into the same parts.
    """
    each = count // parts
    return range(part * each, count if part == parts - 1 else (part + 1) * each)


def check_part(part: int, parts: int) -> None:
    """Raise OsmError unless 0 <= part < parts."""
    if not 0 <= part < parts:
        raise OsmError(f"part {part} of {parts}: parts are counted from 0, so expected 0 <= part < parts")


def generate_predictions(
    namer: NamerLike,
    row: Dataset,
    part: int,
    parts: int,
    out_dir: str | Path,
    *,
    modes: Sequence[str] = (OWN_MODE, ANY_MODE),
    limit: int | None = None,
    alter: str = "none",
    seed: int = 0,
    proposals: str | Path | None = None,
    vocabulary: Sequence[str | LabelClass] | None = None,
    method: str = "constrained",
    top_k: int = 1,
    batch: int = 1,
    max_bad_annotations: float = MAX_BAD_ANNOTATIONS,
) -> Path | str:
    """Name the masks in one part of a dataset, and write `<set>_pred_<part>_of_<parts>.json` and its meta file.

    If `proposals` is the path of a file of masks, those masks are named instead of the ground-truth masks, and the
    output file is `<set>_proposals_<part>_of_<parts>.json`.

    A killed run keeps the results of its finished images, and the next run with the same arguments resumes after the
    last finished image. The prediction file of a resumed run is byte-identical to that of an uninterrupted run (on a
    GPU, only if the namer's `max_batch_tokens` is set). A finished part is not changed.

    Args:
        namer: the model that names masks (see `osm.recognition.namer`).
        row: the dataset with its paths.
        part: index of the part, from 0.
        parts: number of parts.
        out_dir: folder of the prediction files, created if it does not exist, or a URL on `s3://` or `gs://`. With a
            URL, finished images are kept on this machine, and the files are uploaded once they are complete.
        modes: `own` (the mode of the dataset), `any`, or different modes of the checkpoint.
        limit: maximum number of images, counted from the start of the dataset. None means no limit.
        alter: one of `ALTERATIONS`.
        seed: random seed of `alter`.
        proposals: file of masks that are named instead of the ground truth.
        vocabulary: the names or classes to choose from. None allows any name.
        method: how a name is chosen from the vocabulary (see `osm.recognition.recognizer`).
        top_k: number of candidates per mask. If it is above 1, each prediction also has them as `top`, a list of
            [class id or name, probability], most likely first.
        batch: number of images that are named together.
        max_bad_annotations: maximum share of unusable annotations, 0 to 1. If the share is above 0, one unusable
            annotation is always allowed.

    Returns:
        The path of the prediction file, or its URL.

    Raises:
        OsmError: Arguments or data are invalid, or the file exists and was made with different arguments.
        RunStopped: The disk is full, or the server of a remote folder does not respond.
    """
    check_part(part, parts)
    run = _start(namer, row, modes, limit, alter, seed, proposals, batch, max_bad_annotations)
    if vocabulary is not None:
        run = replace(run, restricted={"vocabulary": list(vocabulary), "method": method})
    if top_k > 1:
        run = replace(run, restricted={**run.restricted, "top_k": top_k})
    header = {
        "checkpoint": namer.fingerprint,
        "set": row.name,
        "part": part,
        "parts": parts,
        "modes": list(run.modes),
        "annotations": run.split.source_hash,
        "limit": limit,
        "alter": alter,
        "seed": seed,
        "vocabulary": None if vocabulary is None else [method, _names_in(vocabulary), _digest(vocabulary)],
        **({"top_k": top_k} if top_k > 1 else {}),
    }
    name = prediction_path(Path(), row.name, part, parts, run.split.kind).name
    meta_name = meta_path(Path(name), run.split.kind).name
    if is_remote(out_dir):
        return _upload_part(namer, run, part_range(run.count, part, parts), out_dir, name, meta_name, header)
    path = Path(check_output(out_dir, "out_dir")) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(error, f"out_dir {out_dir}", "a folder that can be written") from None
    if path.exists():
        _check_finished(path, path.with_name(meta_name), header, str(path))
    else:
        _name_part(namer, run, part_range(run.count, part, parts), path, header, str(path))
    return path


def _upload_part(
    namer: NamerLike,
    run: _Run,
    indices: range,
    out_dir: str | Path,
    name: str,
    meta_name: str,
    header: dict[str, Any],
) -> str:
    """Write one part's files to the local staging folder and upload them, unless they have already been uploaded."""
    output = open_output(out_dir, "out_dir")
    path, meta_file, where = output.path / name, output.path / meta_name, output.location(name)
    with locked(output, f"{name}.lock"), staging(output.path):
        if name in output.sizes():
            meta = output.read(meta_name, "meta file")
            meta_file.unlink(missing_ok=True)
            if meta is not None:
                meta_file.write_bytes(meta)
            _check_finished(path, meta_file, header, where)
            for file in (path, meta_file):
                file.unlink(missing_ok=True)
            return where
        # Complete files left over from a failed upload are uploaded now if they were made with the same arguments.
        if path.exists() and (not meta_file.exists() or _changed(meta_file, header)):
            path.unlink()
        if not path.exists():
            _name_part(namer, run, indices, path, header, where)
        output.put(meta_name, name)
    return where


def _start(
    namer: NamerLike,
    row: Dataset,
    modes: Sequence[str],
    limit: int | None,
    alter: str,
    seed: int,
    proposals: str | Path | None,
    batch: int,
    max_bad_annotations: float,
) -> _Run:
    if batch < 1:
        raise OsmError(f"batch {batch}: expected 1 image or more")
    if limit is not None and limit < 1:
        raise OsmError(f"limit {limit}: expected 1 image or more")
    if alter not in ALTERATIONS:
        raise not_one_of("alter", alter, ALTERATIONS)
    resolved = resolve_modes(row, modes, namer.modes)
    if not 0 <= max_bad_annotations <= 1:
        raise OsmError(f"max_bad_annotations {max_bad_annotations}: expected a fraction from 0 to 1")
    split = (
        split_of(row, max_bad_annotations)
        if proposals is None
        else ProposalSplit(row, form_class(row.form), proposals, max_bad_annotations)
    )
    count = min(len(split), limit or len(split))
    return _Run(split, count, resolved, alter, seed, batch, {}, max_bad_annotations)


def _names_in(vocabulary: Sequence[str | LabelClass]) -> int:
    return sum(1 if isinstance(one, str) else len(one.names) for one in vocabulary)


def _digest(vocabulary: Sequence[str | LabelClass]) -> str:
    names = [one if isinstance(one, str) else json.dumps([one.id, *one.names]) for one in vocabulary]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _name_part(namer: NamerLike, run: _Run, indices: range, path: Path, header: dict[str, Any], where: str) -> None:
    """Name the masks of a part's remaining images and write the prediction file. Log messages start with `where`."""
    # Batches are counted from the start of the part, so that a resumed run forms the same batches as the killed run.
    # The last digit of a probability can depend on which images are in the same batch.
    with closing(PartialFile(partial_path(path), {**header, "batch": run.batch})) as partial:
        if partial.done:
            logger.info(f"{where}: resuming after {partial.done} of {len(indices)} images")
        check_files(run.split, indices[partial.done :])
        with ProgressBar(path.stem, len(indices), "images", partial.done) as progress:
            masks = 0
            for first in range(partial.done // run.batch * run.batch, len(indices), run.batch):
                started = time.monotonic()
                with files_stay(run.split, indices[first : first + run.batch]):
                    numbered = [(index, run.split.load(index)) for index in indices[first : first + run.batch]]
                    counts = _name_items(namer, run, numbered)
                seconds = round((time.monotonic() - started) / len(numbered), 3)
                for (_, item), count in list(zip(numbered, counts, strict=True))[max(0, partial.done - first) :]:
                    partial.append({"counts": count, "seconds": seconds, "entry": item.entry})
                    masks += count["named"]
                    progress.step(masks=masks)
        _finish(path, partial, run, header, indices, where)
    partial_path(path).unlink()


@dataclass
class _MaskChunk:
    """A group of masks from one image, small enough to fit in memory.

    Attributes:
        place: index of the image in the batch.
        positions: indices of the masks among the annotations of the image.
        masks: bool (K, H, W).
        boxed: True if all masks of the group are boxes, False if no mask of the group is a box.
    """

    place: int
    positions: list[int]
    masks: np.ndarray
    boxed: bool


def _name_items(namer: NamerLike, run: _Run, numbered: Sequence[tuple[int, Item]]) -> list[dict[str, int]]:
    """Name the masks of several images and store the names in the annotations. Return the counters of each image."""
    named, top_k = [0] * len(numbered), run.restricted.get("top_k", 1)
    decoded = cache(lambda place: _image(run, numbered[place][1]))
    for _, item in numbered:
        for annotation in item.annotations:
            annotation.pop(FIELD, None)  # the annotations may themselves come from a prediction file
    every = (
        chunk
        for boxed in (False, True)
        for place, (index, item) in enumerate(numbered)
        for chunk in _mask_chunks(run, place, index, item, boxed)
    )
    for chunks in _packed(every):
        images = [decoded(chunk.place) for chunk in chunks]
        further = {**run.restricted, **({"boxed": True} if chunks[0].boxed else {})}
        found = namer.name_images(images, [chunk.masks for chunk in chunks], run.modes, **further)
        for chunk, of_image in zip(chunks, found, strict=True):
            for k, names in zip(chunk.positions, of_image, strict=True):
                if names is not None:
                    annotation = numbered[chunk.place][1].annotations[k]
                    annotation[FIELD] = {mode: _prediction(names[mode], top_k) for mode in run.modes}
                    named[chunk.place] += 1
    return [
        {
            **dict.fromkeys(COUNTS, 0),
            **item.counts,
            "named": count,
            "empty": len(item.annotations) - count - item.counts["missing_in_mask"],
        }
        for (_, item), count in zip(numbered, named, strict=True)
    ]


def _image(run: _Run, item: Item) -> Image.Image:
    image = item.image()
    return blank(image) if run.alter == "blank_image" else image


def _mask_chunks(run: _Run, place: int, index: int, item: Item, boxed: bool) -> Iterator[_MaskChunk]:
    """Yield the non-empty masks of an image in chunks that fit in memory.

    If `boxed` is true, only masks that were created from boxes are yielded. If `boxed` is false, only masks that were
    not created from boxes are yielded.
    """
    at_once = max(1, _MASK_PIXELS // (item.size[0] * item.size[1]))
    of_kind = [k for k, is_box in enumerate(item.boxed) if is_box is boxed]
    for first in range(0, len(of_kind), at_once):
        positions, masks = [], []
        for k in of_kind[first : first + at_once]:
            mask = item.mask(k)
            if not mask.any():
                continue
            if run.alter == "shuffle_masks":
                mask = other_mask(run.split, run.count, index, k, item.size, run.seed)
            positions.append(k)
            masks.append(mask)
        if positions:
            yield _MaskChunk(place, positions, np.stack(masks), boxed)


def _packed(chunks: Iterable[_MaskChunk]) -> Iterator[list[_MaskChunk]]:
    """Group chunks of masks into batches that fit in memory, with separate batches for masks created from boxes."""
    pack: list[_MaskChunk] = []
    for chunk in chunks:
        full = sum(other.masks.size for other in pack) + chunk.masks.size > _MASK_PIXELS
        if pack and (full or pack[0].boxed is not chunk.boxed):
            yield pack
            pack = []
        pack.append(chunk)
    if pack:
        yield pack


def _prediction(name: NameLike, top_k: int) -> dict[str, Any]:
    prediction = {"class": name.text.strip(), "prob": float(name.prob)}
    if top_k == 1:
        return prediction
    top = [[one.text if one.class_id is None else one.class_id, one.prob] for one in name.top]
    return {**prediction, "top": top}


def _check_finished(path: Path, meta_file: Path, header: dict[str, Any], where: str) -> None:
    """Log that the prediction file exists. Raise OsmError if an existing file was made with different arguments."""
    if not meta_file.exists():
        logger.info(f"{where}: finished already, skipped (it has no meta file, so its arguments are unknown)")
        return
    if changed := _changed(meta_file, header):
        raise OsmError(
            f"{where} exists, but was made with a different value of {', '.join(changed)}; choose another out_dir, or "
            "remove the file"
        )
    logger.info(f"{where}: finished already, skipped")
    partial_path(path).unlink(missing_ok=True)  # the file remains if the run was killed just before it was removed


def _changed(meta_file: Path, header: dict[str, Any]) -> list[str]:
    """Return the names of the arguments whose values in the meta file differ from those of this run."""
    meta, _ = read_json(meta_file, "meta file")
    return [key for key in header if not isinstance(meta, dict) or meta.get(key) != header[key]]


def _finish(path: Path, partial: PartialFile, run: _Run, header: dict[str, Any], indices: range, where: str) -> None:
    """Write the meta file first and then the prediction file, so that a prediction file always has a meta file."""
    counts = Counter(dict.fromkeys(COUNTS, 0))
    seconds = 0.0
    for record in partial.records():
        counts.update(record["counts"])
        seconds += record["seconds"]
    kept = sum(counts[key] for key in ("named", "empty", "missing_in_mask"))
    lost = counts["unusable"]
    if run.split.kind == Split.kind and run.split.form.unknown_is_lost:
        lost += counts["unknown_in_mask"]
    failed = too_many_lost(lost, kept, run.max_bad_annotations, run.split.first_fault)
    if failed:  # the finished images are kept, so the same command with a larger allowed share finishes immediately
        raise OsmError(f"set {run.split.row.name!r}: {failed}")
    meta = {
        **header,
        "items": [indices.start, indices.stop],
        "images": run.count,
        "batch": run.batch,
        "counts": dict(counts),
        "seconds": round(seconds, 3),
        # The report finds the dataset's images through the paths in the meta file.
        # The header contains no dataset paths, because a dataset may be moved before a prediction run is resumed.
        "files": run.split.source_files,
    }
    try:
        write_atomically(meta_path(path, run.split.kind), [json.dumps(meta, indent=1) + "\n"])
        write_atomically(path, _document(partial, run.split))
    except OSError as error:
        raise write_failed(error, str(path), "a file that can be written") from None
    left_out = ", ".join(f"{key} {value}" for key, value in counts.items() if key != "named")
    logger.info(f"{where}: {counts['named']} masks of {len(indices)} images named ({left_out})")


def _document(partial: PartialFile, split: Split) -> Iterator[str]:
    # Entries are written one at a time, because LVIS's prediction file is too large to hold in memory twice.
    yield split.prefix
    for number, record in enumerate(partial.records()):
        yield (", " if number else "") + split.text(record["entry"])
    yield split.suffix
