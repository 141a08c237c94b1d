"""The agreement of raters with each other, and of the metrics with the raters' majority.

All intervals are 95 % intervals of the bootstrap over images. Where a metric is compared with the raters, both figures
come from the same items and the same bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from judged_metrics import kendall_tau
from rater_files import GRADES, UNRATED, RatedSample
from rater_statistics import (
    Figure,
    ItemStatistic,
    equal_share,
    estimate,
    fleiss_kappa,
    krippendorff_alpha,
    pair_tables,
    table_kappa,
    weighted_auroc,
)

from osm.evaluation.metrics.statistics import Bootstrap

BOOTSTRAP = Bootstrap()
FLEISS, ALPHA = "Fleiss' kappa", "Krippendorff's alpha"
_SAME = "all of these verdicts are the same"
_CONSTANT = "all of these items are true by both sides, or all are wrong"
_ONE_KIND = "all of these items are true, or all are wrong"


@dataclass(frozen=True)
class PairAgreement:
    """The agreement of two raters on the items that both judged.

    Attributes:
        raters: their names.
        equal: the share of equal verdicts.
        kappa: Cohen's kappa.
        linear_kappa: Cohen's kappa with linear weights.
    """

    raters: tuple[str, str]
    equal: Figure
    kappa: Figure
    linear_kappa: Figure


@dataclass(frozen=True)
class Agreement:
    """The agreement of a metric, or of a rater, with the majority of raters.

    A metric is compared with the majority of all raters. A rater is compared with the majority of the others.

    Attributes:
        name: of the metric or of the rater.
        figures: `accuracy` and `kappa` of what is true or wrong; `auroc` of what is graded.
        missed: the number of true items that are called wrong; None for a graded metric.
        excess: the number of wrong items that are called true; None for a graded metric.
        tau: Kendall's tau-b of a graded metric and the majority's grades; None if undefined or not graded.
        beside: the first figure (accuracy or AUROC) of a metric against the majority of all raters but one, averaged
            over who is left out; None with one rater.
        behind: how much `beside` is below that of the raters who are left out; None with one rater.
    """

    name: str
    figures: Mapping[str, Figure]
    missed: int | None = None
    excess: int | None = None
    tau: float | None = None
    beside: Figure | None = None
    behind: Figure | None = None


@dataclass(frozen=True)
class AgreementReport:
    """All figures of a sample.

    Attributes:
        sample: the items with their verdicts.
        full: the items that all raters judged.
        ties: the number of items of `full` that half of the raters find true and the other half wrong.
        pairs: the agreement of each two raters.
        groups: `FLEISS` and `ALPHA` of all raters.
        flags: the metrics that say true or wrong.
        scores: the graded metrics.
        raters: each rater against the majority of the others.
    """

    sample: RatedSample
    full: RatedSample
    ties: int
    pairs: list[PairAgreement] = field(default_factory=list)
    groups: dict[str, Figure] = field(default_factory=dict)
    flags: list[Agreement] = field(default_factory=list)
    scores: list[Agreement] = field(default_factory=list)
    raters: list[Agreement] = field(default_factory=list)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield every figure with a text that says what it is."""
        for pair in self.pairs:
            for title in ("equal", "kappa", "linear_kappa"):
                yield f"{title} of {' and '.join(pair.raters)}", getattr(pair, title)
        yield from self.groups.items()
        for one in (*self.flags, *self.scores, *self.raters):
            for title, figure in one.figures.items():
                yield f"{title} of {one.name}", figure
            for title, compared in (("beside", one.beside), ("behind", one.behind)):
                if compared is not None:
                    yield f"{next(iter(one.figures))} of {one.name}, {title} a rater", compared


def report_of(
    sample: RatedSample, flags: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]
) -> AgreementReport:
    """Compute all figures.

    Args:
        sample: the items with their verdicts.
        flags: the metrics that are true or false, bool (items,) by name.
        scores: the graded metrics, float (items,) by name; NaN for items without a score.
    """
    kept = sample.complete
    full = sample.only(kept)
    shares = (full.grades > 0).mean(1)
    report = AgreementReport(sample, full, int((shares == 0.5).sum()))
    if len(sample.raters) > 1:
        report.pairs.extend(pair_agreement(sample, *pair) for pair in combinations(range(len(sample.raters)), 2))
        report.groups.update(group_agreement(sample))
        report.raters.extend(rater_agreement(full, rater) for rater in range(len(full.raters)))
    report.flags.extend(flag_agreement(full, name, flag[kept]) for name, flag in flags.items())
    report.scores.extend(score_agreement(full, name, score[kept]) for name, score in scores.items())
    return report


def pair_agreement(sample: RatedSample, first: int, second: int) -> PairAgreement:
    """Compare two raters, given by their places, on the items that both judged."""
    both = (sample.grades[:, [first, second]] != UNRATED).all(1)
    one, other, images = sample.grades[both, first], sample.grades[both, second], sample.images[both]

    def figure(of_tables: Callable[[np.ndarray], np.ndarray]) -> Figure:
        return estimate(
            lambda weights: of_tables(pair_tables(one, other, len(GRADES), weights)), images, _SAME, BOOTSTRAP
        )

    names = (sample.raters[first], sample.raters[second])
    linear = figure(lambda tables: table_kappa(tables, linear=True))
    return PairAgreement(names, figure(equal_share), figure(table_kappa), linear)


def group_agreement(sample: RatedSample) -> dict[str, Figure]:
    """Return Fleiss' kappa of the items that all raters judged, and Krippendorff's alpha of all that two judged."""
    counts = (sample.grades[:, :, None] == np.arange(len(GRADES))).sum(1)
    whole, some = sample.complete, counts.sum(1) > 1
    return {
        FLEISS: estimate(fleiss_kappa(counts[whole]), sample.images[whole], _SAME, BOOTSTRAP),
        ALPHA: estimate(krippendorff_alpha(counts[some]), sample.images[some], _SAME, BOOTSTRAP),
    }


def rater_agreement(full: RatedSample, rater: int) -> Agreement:
    """Compare a rater, given by the place, with the majority of the others."""
    grades, true = full.grades[:, rater], full.majority(rater) > 0
    auroc = estimate(weighted_auroc(grades, true), full.images, _ONE_KIND, BOOTSTRAP)
    return Agreement(
        full.raters[rater],
        {**_binary_figures(grades > 0, true, full.images), "auroc": auroc},
        int((true & ~(grades > 0)).sum()),
        int((~true & (grades > 0)).sum()),
    )


def flag_agreement(full: RatedSample, name: str, flag: np.ndarray) -> Agreement:
    """Compare a metric that says true or wrong, bool (items,), with the majority of the raters."""
    true = full.majority() > 0
    compared = _compared(full, lambda true: _share(flag, true), lambda grades, true: _share(grades > 0, true), _SAME)
    return Agreement(
        name,
        _binary_figures(flag, true, full.images),
        int((true & ~flag).sum()),
        int((~true & flag).sum()),
        None,
        *compared,
    )


def score_agreement(full: RatedSample, name: str, scores: np.ndarray) -> Agreement:
    """Compare a graded metric, float (items,), with the majority of the raters. Items without a score are left out."""
    known = ~np.isnan(scores)
    full, scores = full.only(known), scores[known]
    grades = full.majority()
    figure = estimate(weighted_auroc(scores, grades > 0), full.images, _ONE_KIND, BOOTSTRAP)
    compared = _compared(full, lambda true: weighted_auroc(scores, true), weighted_auroc, _ONE_KIND)
    tau = kendall_tau(scores, grades.astype(float))
    return Agreement(name, {"auroc": figure}, None, None, None if np.isnan(tau) else tau, *compared)


def _binary_figures(flag: np.ndarray, true: np.ndarray, images: np.ndarray) -> dict[str, Figure]:
    def kappa(weights: np.ndarray) -> np.ndarray:
        return table_kappa(pair_tables(true, flag, 2, weights))

    return {
        "accuracy": estimate(_share(flag, true), images, _SAME, BOOTSTRAP),
        "kappa": estimate(kappa, images, _CONSTANT, BOOTSTRAP),
    }


def _share(flag: np.ndarray, true: np.ndarray) -> ItemStatistic:
    return lambda weights: equal_share(pair_tables(true, flag, 2, weights))


def _compared(
    full: RatedSample,
    of_metric: Callable[[np.ndarray], ItemStatistic],
    of_rater: Callable[[np.ndarray, np.ndarray], ItemStatistic],
    reason: str,
) -> tuple[Figure | None, Figure | None]:
    """Compare a metric and a left-out rater with the same majorities of the other raters.

    Args:
        full: the items with all verdicts.
        of_metric: makes the metric's statistic from what is true, bool (items,).
        of_rater: makes the statistic of a rater's grades, int (items,), from what is true.
        reason: why a figure may be undefined.

    Returns:
        The metric's mean statistic, and how much it is below the raters' one. None with one rater.
    """
    if len(full.raters) < 2:
        return None, None
    truths = [full.majority(rater) > 0 for rater in range(len(full.raters))]
    metric = [of_metric(true) for true in truths]
    raters = [of_rater(full.grades[:, rater], true) for rater, true in enumerate(truths)]

    def mean(weights: np.ndarray, statistics: list[ItemStatistic]) -> np.ndarray:
        return np.mean([one(weights) for one in statistics], axis=0)

    beside = estimate(lambda weights: mean(weights, metric), full.images, reason, BOOTSTRAP)
    behind = estimate(lambda weights: mean(weights, raters) - mean(weights, metric), full.images, reason, BOOTSTRAP)
    return beside, behind


def as_json(report: AgreementReport) -> dict[str, Any]:
    """Return all figures as JSON-compatible values."""
    sample, full = report.sample, report.full
    majority = full.majority()
    return {
        "items": len(sample.items),
        "images": len(set(sample.images.tolist())),
        "raters": {name: rater_counts(sample, place) for place, name in enumerate(sample.raters)},
        "rated_by_all": len(full.items),
        "ties": report.ties,
        "majority": {GRADES[grade]: int((majority == grade).sum()) for grade in range(len(GRADES))},
        "bootstrap": dict(vars(BOOTSTRAP)),
        "pairs": [
            {
                "raters": list(pair.raters),
                "equal": pair.equal.as_json(),
                "kappa": pair.kappa.as_json(),
                "linear_kappa": pair.linear_kappa.as_json(),
            }
            for pair in report.pairs
        ],
        "all_raters": {name: figure.as_json() for name, figure in report.groups.items()},
        "true_or_wrong": [_agreement_json(one) for one in report.flags],
        "graded": [_agreement_json(one) for one in report.scores],
        "each_rater_against_the_others": [_agreement_json(one) for one in report.raters],
    }


def rater_counts(sample: RatedSample, place: int) -> dict[str, int]:
    """Return how many items a rater judged and did not judge, and how many got each verdict."""
    grades = sample.grades[:, place]
    counts = {name: int((grades == grade).sum()) for grade, name in enumerate(GRADES)}
    return {"rated": int((grades != UNRATED).sum()), "unrated": int((grades == UNRATED).sum()), **counts}


def _agreement_json(one: Agreement) -> dict[str, Any]:
    figures = {name: figure.as_json() for name, figure in one.figures.items()}
    compared = {"beside": one.beside, "behind": one.behind}
    return {
        "name": one.name,
        **figures,
        "missed": one.missed,
        "excess": one.excess,
        "tau_b": one.tau,
        **{name: figure and figure.as_json() for name, figure in compared.items()},
    }
