"""Computes PQ, mask or box AP, and mean IoU for mask proposals with predicted names in one pass over a dataset.

Shapes: H, W = height and width of an image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.predict.prediction_files import check_all_there, read_metas
from osm.evaluation.scoring.class_names import ClassNames, Match
from osm.evaluation.scoring.map_scores import MeanOverlap, Painter, PanopticQuality
from osm.evaluation.scoring.mask_precision import MaskPrecision, mean_precision
from osm.evaluation.scoring.named_proposals import KIND, Proposal, read_proposals
from osm.evaluation.scoring.truth import MIOU, PQ, Truth, TruthSplit, class_map, truth_split
from osm.forms import form_class
from osm.terminal import ProgressBar


@dataclass(frozen=True)
class ScoringOptions:
    """Options for painting proposals into a panoptic map and for computing AP.

    Attributes:
        overlap: minimum share (0 to 1) of a proposal's pixels that must be free for the proposal to be painted.
        min_score: proposals with a lower score are not painted. AP uses all proposals.
        with_ap: whether AP is computed.
    """

    overlap: float = 0.8
    min_score: float = 0.0
    with_ap: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise OsmError(f"--overlap {self.overlap}: expected a fraction (0 to 1) of a mask's pixels")
        if not math.isfinite(self.min_score):
            raise OsmError(f"--min_score {self.min_score}: expected a number, such as 0.3")


@dataclass
class Scores:
    """The scores of the proposals of one dataset.

    Attributes:
        row: the dataset.
        mode: the mode whose names are scored.
        split: the ground truth.
        quality, precision, overlap: PQ, AP and mean IoU; None if the score is not defined for the annotation format of
            the dataset or was not requested.
        counts: numbers of images and proposals by outcome.
        shared: names that belong to several classes of the dataset, with the ids of these classes.
        meta: content of the first meta file, or empty without meta files.
    """

    row: Dataset
    mode: str
    split: TruthSplit
    quality: PanopticQuality | None = None
    precision: MaskPrecision | None = None
    overlap: MeanOverlap | None = None
    counts: Counter[str] = field(default_factory=Counter)
    shared: Mapping[str, list[int]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all metrics (0 to 1). Class metrics are keyed by category id. A mean over zero classes is None."""
        things = self.split.things
        document: dict[str, Any] = {"title": self.row.title, "mode": self.mode}
        if self.quality is not None:
            groups = {
                "all": self.quality.mean(),
                "things": self.quality.mean(lambda i: i in things),
                "stuff": self.quality.mean(lambda i: i not in things),
            }
            counted = {str(i): c.as_json() for i, c in sorted(self.quality.classes.items())}
            document["panoptic"] = {**groups, "by_class": counted}
        if self.precision is not None:
            of_class = self.precision.by_class()
            protocol = "lvis" if self.precision.federated else "coco"
            figures = {str(i): ap for i, (ap, _, _) in of_class.items()}
            document[self.split.precision.replace(" ", "_").lower()] = {
                **mean_precision(of_class),
                "protocol": protocol,
                "by_class": figures,
            }
        if self.overlap is not None:
            figures = {str(i): iou for i, iou in self.overlap.by_class().items()}
            document["semantic"] = {**self.overlap.mean(), "by_class": figures}
        kept = ("checkpoint", "limit", "alter", "vocabulary")
        return {
            **document,
            "counts": dict(self.counts),
            "shared_names": len(self.shared),
            **{key: self.meta.get(key) for key in kept},
        }


def score_set(row: Dataset, paths: Sequence[Path], mode: str, names: ClassNames, options: ScoringOptions) -> Scores:
    """Score the named proposals of one dataset, which are stored in one file per part.

    All images of the dataset are scored, so every segment of an image without proposals counts as missed. If the
    proposals were named with `--limit`, only images with proposals are scored.

    Args:
        row: the dataset.
        paths: the files `<set>_proposals_<i>_of_<n>.json`, in ascending order of i from 0.
        mode: the mode whose names are scored.
        names: assigns predicted names to the classes of the dataset.
        options: options for the panoptic map and AP.

    Raises:
        OsmError: A part is missing, parts come from different runs, or an entry or the ground truth is invalid.
    """
    check_all_there(row.name, paths)
    metas = read_metas(row.name, paths, KIND)
    meta = next(iter(metas.values()), {})
    split = truth_split(row, form_class(row.form))
    if not options.with_ap and split.scores == (split.precision,):
        raise OsmError(
            f"--without_ap: dataset {row.name!r} would have no score, because only {split.precision} is defined for it "
            f"({split.why_not})"
        )
    proposals = read_proposals(row, form_class(row.form), paths, mode, metas)
    matches = names.match(p.name for of_image in proposals.values() for p in of_image if p.name is not None)
    scores = Scores(row, mode, split, shared=names.shared, meta=meta)
    scores.quality = PanopticQuality() if PQ in split.scores else None
    scores.precision = MaskPrecision(split.federated) if split.precision and options.with_ap else None
    asked = [i for i in sorted(row.label_set.classes) if i not in row.rules.ignored_ids]
    scores.overlap = MeanOverlap(asked) if MIOU in split.scores else None
    indices = _indices(split, proposals, meta, scores.counts)
    with ProgressBar(row.name, len(indices), "images") as progress:
        for index in indices:
            of_image = proposals.get(split.image_path(index), [])
            _Image(scores, split.truth(index), options).score(of_image, matches)
            progress.step()
    return scores


def _indices(
    split: TruthSplit, proposals: Mapping[Path, list[Proposal]], meta: Mapping[str, Any], counts: Counter[str]
) -> list[int]:
    """Return the indices of the images to score, and count the images that are not scored."""
    index_of: dict[Path, int] = {}
    for index in range(len(split)):
        path = split.image_path(index)
        if path in index_of:
            raise OsmError(
                f"{split.source}: the entries {index_of[path]} and {index} both belong to the image {path}; "
                "expected one entry per image"
            )
        index_of[path] = index
    if not index_of:
        raise OsmError(f"{split.source}: contains no image")
    for path in proposals.keys() - index_of.keys():
        counts["images_without_truth"] += 1
        counts["of_images_without_truth"] += len(proposals[path])
    with_proposals = [index for path, index in index_of.items() if path in proposals]
    if meta.get("limit") is not None:
        counts["images_beyond_limit"] = len(index_of) - len(with_proposals)
        return with_proposals
    counts["images_without_proposals"] = len(index_of) - len(with_proposals)
    return list(index_of.values())


class _Image:
    """Scores the proposals of one image and adds the results to the scores of the dataset."""

    def __init__(self, scores: Scores, truth: Truth, options: ScoringOptions) -> None:
        self._scores, self._truth, self._options = scores, truth, options
        things, classes = scores.split.things, scores.row.label_set.classes
        self._painter = Painter(truth.size, classes.keys() - things, options.overlap)

    def score(self, proposals: Sequence[Proposal], matches: Mapping[str, Match]) -> None:
        scores, truth = self._scores, self._truth
        scores.counts["images"] += 1
        scores.counts.update({f"truth_{key}": count for key, count in truth.counts.items() if count})
        if scores.precision is not None:
            scores.precision.add_image(truth.size, truth.federated)
            for instance in truth.instances:
                scores.precision.add_truth(instance.mask(), instance.category_id, instance.crowd)
        # The sort is stable, so proposals with equal scores stay in file order.
        for proposal in sorted(proposals, key=lambda proposal: -proposal.score):
            self._add(proposal, matches)
        if truth.segments_HW is not None:
            scores.counts["hidden"] += self._painter.hidden
            self._count(truth.segments_HW)

    def _add(self, proposal: Proposal, matches: Mapping[str, Match]) -> None:
        """Find the class of a proposal, add its mask to the AP computation and paint it into the panoptic map."""
        scores = self._scores
        scores.counts["proposals"] += 1
        if proposal.name is None:
            scores.counts["unnamed"] += 1
            return
        match = matches[proposal.name]
        scores.counts[match.how] += 1
        if match.category_id is None:
            return
        if match.category_id in scores.row.rules.ignored_ids:
            scores.counts["of_ignored_class"] += 1
            return
        mask_HW = proposal.draw(self._truth.size)
        if not mask_HW.any():
            scores.counts["empty"] += 1
            return
        if scores.precision is not None and match.category_id in scores.split.things:
            scores.precision.add_found(mask_HW, match.category_id, proposal.score)
        if self._truth.segments_HW is None:
            return
        if proposal.score < self._options.min_score:
            scores.counts["below_min_score"] += 1
        else:
            self._painter.add(mask_HW, match.category_id)

    def _count(self, segments_HW: np.ndarray) -> None:
        quality, overlap = self._scores.quality, self._scores.overlap
        painter, segments = self._painter, self._truth.segments
        if quality is not None:
            quality.add(segments_HW, segments, painter.segments_HW, painter.categories)
        if overlap is not None:
            place = {i: k for k, i in enumerate(overlap.categories)}
            true_HW = class_map(segments_HW, [segment.category_id for segment in segments], place)
            overlap.add(true_HW, class_map(painter.segments_HW, painter.categories, place))
