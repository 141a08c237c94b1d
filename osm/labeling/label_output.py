"""Writes the named masks of a labeling run in the formats of annotation tools, and counts what is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import read_text, write_atomically
from osm.labeling.corrections import Corrections
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelFormat
from osm.labeling.label_journal import LabelJournal, failed_image, image_of, image_record, unread_reasons
from osm.labeling.label_rules import KeepRules

SAME = "same"
"""`--to same` writes copies of the files that the masks were read from, with names."""
_LOST = {
    "holes": "masks with holes, which are filled",
    "parts": "masks of several parts, which become several objects",
    "overlaps": "masks that overlap others, which lose the common pixels to the more probable name",
    "scores": "probabilities",
    "ids": "ids of the source",
    "parents": "objects that are parts of others",
    "masks": "masks, of which only the shares of the image are written",
}


@dataclass
class LabelSummary:
    """What a labeling run did.

    Attributes:
        images: number of images with labels.
        masks: number of named objects that were written.
        left_out: number of objects without a name, or that were left out, by reason.
        failed: the reason for each image that could not be labeled.
        losses: for each format, what it could not hold, by reason.
        corrected: number of objects that a person has confirmed, renamed or removed.
        stale: number of corrections without an object that has the predicted name. They have no effect.
        stale_example: the image and the position of the first of them.
        unsure: number of the written names that are probably wrong.
        older: files of an earlier run in formats that this run does not write.
        more_failed: number of images that could not be labeled, and are not in `failed`.
        kept_in_same: number of objects that `same` keeps as they were, although they are left out.
    """

    images: int = 0
    masks: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Counter[str]] = field(default_factory=dict)
    corrected: int = 0
    stale: int = 0
    stale_example: str = ""
    unsure: int = 0
    older: list[str] = field(default_factory=list)
    kept_in_same: int = 0
    more_failed: int = 0


@dataclass(frozen=True)
class LabelTarget:
    """What is written.

    Attributes:
        formats: the formats of the labels.
        reader: the format of the masks, if the names are filled into the files that were read.
        source: these files.
        model: the name of the checkpoint.
        vocabulary: the ids of the names, if the names are limited to a list with ids.
        strict: raise OsmError instead of losing something that a format cannot hold.
    """

    formats: Sequence[type[LabelFormat]]
    reader: type[LabelFormat] | None = None
    source: Path | None = None
    model: str = ""
    vocabulary: Mapping[str, int] | None = None
    strict: bool = False


class _KeptImages:
    """The images of a file of records. They can be iterated several times; one image is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[LabeledImage]:
        with self.path.open("rb") as file:
            for line in file:
                yield image_of(parse_json(line, nesting=None))


def write_labels(journal: LabelJournal, rules: KeepRules, out: Path, target: LabelTarget) -> LabelSummary:
    """Write the labels of a journal in each format, and return what was written.

    Raises:
        OsmError: with `strict`, a format cannot hold something. Nothing is written then.
    """
    summary, names = LabelSummary(), dict[str, None]()
    corrections = journal.corrections()
    kept = journal.folder / "kept.jsonl"
    write_atomically(kept, _kept_lines(journal, rules, corrections, summary, names))
    summary.corrected = len(corrections.applied_to)
    stale = [key for key in corrections.entries if key not in corrections.applied_to]
    summary.stale = len(stale)
    summary.stale_example = f"{stale[0][0]}, shape {stale[0][1]}" if stale else ""
    summary.older = _older_outputs(out, target)
    images = _KeptImages(kept)
    lacking = {held for one in target.formats for held in _LOST if not getattr(one.holds, held)}
    facts = _facts(images, lacking)
    for one in target.formats:
        losses = _losses(one, facts)
        if target.strict and losses:
            told = "; ".join(f"{count} {reason}" for reason, count in losses.items())
            raise OsmError(f"--to {one.name}: {one.title} cannot hold {told}. Choose another format, or no --strict")
        summary.losses[one.name] = losses
    ids = grown_names(out / "names.txt", names) if target.vocabulary is None else _with_others(target.vocabulary, names)
    labels = LabeledImages(images, ids, target.model)
    for one in target.formats:
        one.write(labels, out)
    if target.reader is not None and target.source is not None:
        (out / SAME).mkdir(exist_ok=True)
        target.reader.fill(target.source, labels, out / SAME)
        summary.kept_in_same = sum(summary.left_out.values())
    if rules.unsure == "review":
        write_atomically(out / "review.jsonl", _review_lines(journal, rules, corrections))
    return summary


def _kept_lines(
    journal: LabelJournal,
    rules: KeepRules,
    corrections: Corrections,
    summary: LabelSummary,
    names: dict[str, None],
) -> Iterator[str]:
    """Yield the record of each image with the objects that are written. Fill the summary, and collect the names."""
    for record in journal.records():
        if record["failed"]:
            summary.failed[failed_image(record)] = record["failed"]
            continue
        image, lost = rules.kept(image_of(record), corrections)
        summary.images += 1
        summary.masks += len(image.shapes)
        summary.unsure += sum(shape.unsure for shape in image.shapes)
        summary.left_out.update(unread_reasons(record))
        summary.left_out.update(lost)
        names.update(dict.fromkeys(shape.name for shape in image.shapes))
        yield json.dumps(image_record(image), separators=(",", ":")) + "\n"


def _older_outputs(out: Path, target: LabelTarget) -> list[str]:
    """Return the outputs in the folder that this run does not write, so that they keep the names of an earlier run."""
    from osm.labeling.formats import FORMATS

    written = {one.output for one in target.formats} | ({SAME} if target.reader is not None else set())
    known = [one.output for name in FORMATS.names() if (one := FORMATS.get(name)).writes]
    return [name for name in dict.fromkeys([*known, SAME]) if name and name not in written and (out / name).exists()]


def _losses(one: type[LabelFormat], facts: Mapping[str, int]) -> Counter[str]:
    """Return what a format cannot hold, by reason."""
    wanted = _LOST if one.holds.masks else {"masks": _LOST["masks"]}
    return Counter({why: facts[held] for held, why in wanted.items() if not getattr(one.holds, held) and facts[held]})


def _facts(images: Iterable[LabeledImage], wanted: set[str]) -> Counter[str]:
    """Count what a format may not be able to hold, for some attributes of `Holds`."""
    from osm.labeling.outlines import outlines

    found: Counter[str] = Counter()
    for image in images if wanted else ():
        covered = np.zeros(image.size[::-1], bool)
        for shape in image.shapes:
            if wanted & {"overlaps", "holes", "parts"}:
                mask = shape.mask
                found["overlaps"] += bool((mask & covered).any())
                covered |= mask
            if wanted & {"holes", "parts"}:
                lines = outlines(mask)
                holes = sum(line.hole for line in lines)
                found["holes"] += holes > 0
                found["parts"] += len(lines) - holes > 1
            found["masks"] += 1
            found["scores"] += 1
            found["ids"] += shape.id is not None
            found["parents"] += shape.parent is not None
    return found


def grown_names(file: Path, names: Iterable[str]) -> dict[str, int]:
    """Append new names to a file with one name per line, and return the id of every name.

    The id of a name is the number of its line, starting at 1.

    Names that are in the file keep their ids, even if they are no longer used. Line breaks in a name are written as
    spaces.
    """
    lines = {name: name if name.splitlines() == [name] else " ".join(name.split()) for name in names}
    before = read_text(file, "names").splitlines() if file.is_file() else []
    listed = list(dict.fromkeys([*before, *lines.values()]))
    if listed != before:
        write_atomically(file, [f"{name}\n" for name in listed])
    ids = {name: number for number, name in enumerate(listed, 1)}
    return ids | {name: ids[line] for name, line in lines.items()}


def _with_others(vocabulary: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the ids of a vocabulary, and new ids for the names that a person has typed."""
    found = dict(vocabulary)
    for name in names:
        found.setdefault(name, max(found.values(), default=0) + 1)
    return found


def _review_lines(journal: LabelJournal, rules: KeepRules, corrections: Corrections) -> Iterator[str]:
    for record in journal.records():
        shapes = corrections.applied(image_of(record))
        for number, (row, shape) in enumerate(zip(record["shapes"], shapes, strict=True)):
            if rules.left_out(shape) == "unsure":
                place = {"file_name": record["file_name"], "size": record["size"], "shape": number}
                yield json.dumps({**place, **row}) + "\n"
