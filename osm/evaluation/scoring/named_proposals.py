"""Reads named proposals (mask proposals with predicted names) from files written by `generate_pred.py --masks FILE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.table import Dataset
from osm.errors import OsmError, shown
from osm.evaluation.predict.prediction_files import Content, UniqueImages, check_content
from osm.evaluation.predict.records import prediction_in
from osm.files import read_json
from osm.forms import Form
from osm.forms.base import Losses
from osm.forms.proposal_splits import ProposalSplit, by_image, mask_of
from osm.forms.split import FIELD, images_of
from osm.io.values import finite

KIND = ProposalSplit.kind


@dataclass(frozen=True)
class Proposal:
    """A proposed mask with its predicted name.

    Attributes:
        where: the file and the index of the proposal, for error messages.
        draw: returns the bool mask (H, W) for the given (height, width) of the image. The pixels are not checked before
            this call.
        name: the predicted name; None if the mask was not named because it has no pixel, including a mask that lost its
            last pixel by resizing.
        score: the `score` in the file (1 if there is none) times the probability of the name.
    """

    where: str
    draw: Callable[[tuple[int, int]], np.ndarray]
    name: str | None
    score: float


def read_proposals(
    row: Dataset,
    form: type[Form],
    paths: Sequence[Path],
    mode: str,
    metas: Mapping[Path, Mapping[str, Any]] | None = None,
) -> dict[Path, list[Proposal]]:
    """Read the proposals from the files of all parts of a dataset and return them grouped by image path.

    Args:
        row: the dataset.
        form: the annotation format of the dataset.
        paths: the files of all parts.
        mode: the mode whose names are read.
        metas: the content of the existing meta files, by the path of the proposal file.

    Raises:
        OsmError: An entry is invalid, an image is in two parts, no file has a proposal, a file does not match its meta
            file, or a proposal has no name in the given mode.
    """
    images, _ = images_of(row, form)
    found: dict[Path, list[Proposal]] = {}
    seen = UniqueImages(row.name)
    for path in paths:
        document, _ = read_json(path, "predictions")
        where = f"predictions {path}"
        losses = Losses()
        listed = by_image(row, form, images, document, where, losses)
        if losses.found:  # generate_pred.py skips unusable proposals, so the file was changed afterwards
            raise OsmError(losses.first)
        of_file = {image: numbered for image, (_, numbered) in listed.items()}
        entries = [entry for numbered in of_file.values() for _, entry in numbered]
        if path in (metas or {}):
            check_content(path, (metas or {})[path], _content(len(of_file), entries))
        for image, numbered in of_file.items():
            seen.add(str(image), path)
            found[image] = [_proposal(form, entry, mode, f"{where}: proposal {number}") for number, entry in numbered]
    if not found:
        raise OsmError(
            f"dataset {row.name!r}: the files contain no proposals: {', '.join(path.name for path in paths)} "
            f"(folder {paths[0].parent}); generate the proposals again"
        )
    return found


def _content(images: int, entries: Sequence[Mapping[str, Any]]) -> Content:
    """Count the images and proposals in one file. Proposals marked as `iscrowd` are counted like all others."""
    named = [entry[FIELD] for entry in entries if entry.get(FIELD)]
    return Content(
        images, len(entries), len(named), 0, [frozenset(modes) for modes in named if isinstance(modes, dict)]
    )


def _proposal(form: type[Form], entry: dict[str, Any], mode: str, where: str) -> Proposal:
    given = finite(entry.get("score"))
    score = 1.0 if given is None else given
    if score < 0:
        raise OsmError(
            f"{where}: score {shown(score)} is negative; it must be at least 0, because it is multiplied by the "
            "probability of the name"
        )
    names, draw = entry.get(FIELD), partial(_draw, entry, form.boxed, where)
    if names is None:
        return Proposal(where, draw, None, 0.0)
    if not isinstance(names, dict):
        raise OsmError(f"{where}: {FIELD} {shown(names)} is not {{mode: {{class, prob}}}}")
    if mode not in names:
        raise OsmError(f"{where}: no name in mode {mode!r}, only in {shown(list(names))} (select a mode with --mode)")
    said = prediction_in(names[mode], f"{where}: {FIELD} {mode!r}")
    if said.prob is None:
        raise OsmError(f"{where}: open_end_pred has no prob for mode {mode!r}, which is needed to compute the score")
    return Proposal(where, draw, said.name, float(score) * said.prob)


def _draw(entry: dict[str, Any], boxed: bool, where: str, size: tuple[int, int]) -> np.ndarray:
    return mask_of(entry, boxed, size, where)
