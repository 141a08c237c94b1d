"""How wide the intervals of a study with more items or raters will be (`scripts/judged.py plan`).

Studies are simulated from a pilot, and their intervals are computed like those of a real study. A simulated item has
the verdict and the metric's opinion of a pilot's item, and whole images are drawn, so that the items of a simulated
study share images as those of the pilot do. A simulated rater gives the item's verdict with probability q, and
otherwise a random verdict with the shares of the pilot. Two such raters have a Cohen's kappa of q squared: they agree
if both give the item's verdict, and by chance otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rater_agreement import FLEISS, flag_agreement, group_agreement
from rater_files import GRADES, RatedSample, read_sample
from rater_statistics import Figure

from osm.errors import OsmError
from osm.evaluation.metrics import is_correct
from osm.terminal import echo

_MOST = 100_000  # items; a study with more would take hours to simulate


def plan(
    path: Path,
    rater_paths: Sequence[Path],
    items: Sequence[int],
    raters: Sequence[int],
    kappa: float,
    studies: int = 20,
    seed: int = 0,
) -> None:
    """Print half the width of the intervals for Acc, averaged over simulated studies.

    Args:
        path: the list of one person, or the key of a pilot study.
        rater_paths: the raters' files, for a key.
        items: numbers of items.
        raters: numbers of raters.
        kappa: the expected Cohen's kappa of two raters.
        studies: the number of studies to simulate for each row of the table.
        seed: of the simulation.

    Raises:
        OsmError: a value is out of range, or a file is invalid.
    """
    for flag, values, most in (("--items", items, _MOST), ("--raters", raters, 100), ("--studies", [studies], 10_000)):
        if not values or not all(1 <= value <= most for value in values):
            raise OsmError(f"{flag} {','.join(map(str, values)) or repr('')}: expected numbers from 1 to {most}")
    if not 0 <= kappa <= 1:
        raise OsmError(f"--kappa {kappa} must be from 0 to 1")
    pilot = read_sample(path, rater_paths)
    pilot = pilot.only(pilot.complete)
    if not pilot.items:
        raise OsmError(f"{path}: no item is judged by all raters; a plan needs some")
    echo(
        "| items | raters | Acc agrees with the majority, points | its kappa | behind a rater, points "
        "| Fleiss' kappa |",
        "|---|---|---|---|---|---|",
    )
    for count in items:
        for of_study in raters:
            widths = simulated_widths(pilot, count, of_study, kappa, studies, seed)
            cells = (_points(widths[0]), _decimals(widths[1]), _points(widths[2]), _decimals(widths[3]))
            echo(f"| {count} | {of_study} | {' | '.join(cells)} |")


def simulated_widths(
    pilot: RatedSample, items: int, raters: int, kappa: float, studies: int, seed: int
) -> tuple[float, float, float, float]:
    """Return the mean of half the interval's width of four figures, NaN where no study has an interval.

    Returns:
        Of Acc: the share of items for which it agrees with the majority, its kappa, and how much it is behind a rater.
        Of the raters: Fleiss' kappa.
    """
    rows = []
    for study in range(studies):
        rng = np.random.default_rng([seed, items, raters, study])
        sample, flag = simulated_study(pilot, items, raters, kappa, rng)
        acc = flag_agreement(sample, "Acc", flag)
        fleiss = group_agreement(sample)[FLEISS] if raters > 1 else None
        rows.append([_half(one) for one in (acc.figures["accuracy"], acc.figures["kappa"], acc.behind, fleiss)])
    widths = np.array(rows)
    known = ~np.isnan(widths)
    sums = np.where(known, widths, 0).sum(0)
    first, second, third, fourth = np.where(known.any(0), sums / np.maximum(known.sum(0), 1), math.nan).tolist()
    return first, second, third, fourth


def simulated_study(
    pilot: RatedSample, items: int, raters: int, kappa: float, rng: np.random.Generator
) -> tuple[RatedSample, np.ndarray]:
    """Return a simulated study, and what Acc says of its items, bool (items,)."""
    verdicts = pilot.majority()
    shares = np.bincount(verdicts, minlength=len(GRADES)) / len(verdicts)
    of_image = [np.flatnonzero(pilot.images == image) for image in np.unique(pilot.images)]
    drawn: list[int] = []
    images: list[int] = []
    while len(drawn) < items:
        chosen = of_image[rng.integers(len(of_image))]
        images += [images[-1] + 1 if images else 0] * len(chosen)
        drawn += chosen.tolist()
    drawn, images = drawn[:items], images[:items]
    gives = rng.random((items, raters)) < math.sqrt(kappa)
    grades = np.where(gives, verdicts[drawn][:, None], rng.choice(len(GRADES), size=(items, raters), p=shares))
    sources = [pilot.items[place] for place in drawn]
    flag = np.array([is_correct(source.prediction, source.names) for source in sources])
    found = tuple(
        type(source)(str(k), "simulated", image, source.names, source.prediction, {})
        for k, (source, image) in enumerate(zip(sources, images, strict=True))
    )
    return RatedSample(found, tuple(map(str, range(raters))), grades), flag


def _half(figure: Figure | None) -> float:
    return math.nan if figure is None or figure.interval is None else (figure.interval[1] - figure.interval[0]) / 2


def _points(width: float) -> str:
    return "-" if math.isnan(width) else f"± {100 * width:.1f}"


def _decimals(width: float) -> str:
    return "-" if math.isnan(width) else f"± {width:.2f}"
