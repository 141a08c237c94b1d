"""Prints the agreement of a sample's raters and of the metrics (`scripts/judged.py agreement`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from judged_metrics import kendall_tau, metrics
from rater_agreement import AgreementReport, as_json, rater_counts, report_of
from rater_files import GRADES, RatedSample, read_sample
from rater_statistics import Figure, equal_share, pair_tables, table_kappa

from osm.evaluation.metrics.statistics import auroc
from osm.files import write_output
from osm.terminal import echo

_NO_VALUE = "-"


def agreement(path: Path, rater_paths: Sequence[Path] = (), json_path: Path | None = None) -> None:
    """Print how well the raters agree with each other, and how well the metrics agree with the raters.

    Args:
        path: the key of a sample, or the list of one person.
        rater_paths: the raters' files, for a key.
        json_path: the JSON file to write all figures to.

    Raises:
        OsmError: a file is invalid, or the JSON file cannot be written.
    """
    sample = read_sample(path, rater_paths)
    flags, scores = metrics(sample.items)
    report = report_of(sample, flags, scores)
    if rater_paths:
        print_raters(report)
    else:
        print_one_person(sample, flags, scores)
    print_metrics(report)
    if rater_paths:
        print_differences(report.full, flags["Acc"][sample.complete])
    print_notes(report)
    if json_path is not None:
        write_output(json_path, "--json", [json.dumps(as_json(report), indent=1) + "\n"])


def print_one_person(sample: RatedSample, flags: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> None:
    """Print the figures of a list of one person without intervals, and where Acc and the person differ."""
    grades = sample.grades[:, 0]
    true, one = grades > 0, np.ones((1, len(grades)))
    counts = ", ".join(f"{(grades == GRADES.index(verdict)).sum()} {verdict}" for verdict in GRADES[::-1])
    echo(f"{len(grades)} predictions: {counts}", "")
    echo("| says right or wrong | agrees | true, called wrong | wrong, called right | kappa |", "|---|---|---|---|---|")
    for name, flag in flags.items():
        tables = pair_tables(flag, true, 2, one)
        agrees, kappa = equal_share(tables)[0], table_kappa(tables)[0]
        echo(f"| {name} | {100 * agrees:.0f} % | {(true & ~flag).sum()} | {(flag & ~true).sum()} | {kappa:.2f} |")
    echo("", "| graded | true above wrong (AUROC) | rank correlation (Kendall's tau-b) |", "|---|---|---|")
    for name, values in scores.items():
        tau = kendall_tau(values, grades.astype(float))
        echo(f"| {name} | {auroc(values[true], values[~true]):.2f} | {tau:.2f} |")
    print_differences(sample, flags["Acc"], "Of the metric Acc and the verdict they differ in:")


def print_raters(report: AgreementReport) -> None:
    """Print how many items each rater judged, and how well the raters agree with each other."""
    sample, full = report.sample, report.full
    echo(f"{len(sample.items)} items in {len(set(sample.images.tolist()))} images", "")
    echo("| rater | judged | not judged | right | acceptable | wrong |", "|---|---|---|---|---|---|")
    for place, name in enumerate(sample.raters):
        counts = rater_counts(sample, place)
        echo(f"| {name} | {' | '.join(str(counts[one]) for one in ('rated', 'unrated', *GRADES[::-1]))} |")
    if report.pairs:
        echo("", "| raters | items | equal verdicts | Cohen's kappa | linearly weighted |", "|---|---|---|---|---|")
    for pair in report.pairs:
        figures = f"{percent(pair.equal)} | {decimal(pair.kappa)} | {decimal(pair.linear_kappa)}"
        echo(f"| {' and '.join(pair.raters)} | {pair.equal.items} | {figures} |")
    if report.groups:
        echo("", "| all raters | items | value |", "|---|---|---|")
    for name, figure in report.groups.items():
        echo(f"| {name} | {figure.items} | {decimal(figure)} |")
    majority = full.majority()
    counts_text = ", ".join(f"{(majority == GRADES.index(verdict)).sum()} {verdict}" for verdict in GRADES[::-1])
    echo(
        "",
        f"{len(full.items)} items are judged by all raters, and {len(sample.items) - len(full.items)} are left out of "
        f"what follows. By the majority: {counts_text}. Ties between true and wrong, which count as wrong: "
        f"{report.ties}.",
    )


def print_metrics(report: AgreementReport) -> None:
    """Print how well the metrics agree with the majority, with intervals, and beside the raters."""
    several = bool(report.raters)
    with_whom, lines = (" with the majority", "---|---|") if several else ("", "")
    more = [f" beside a rater | behind a rater{unit} |" if several else "" for unit in (", points", "")]
    echo("", f"| with 95 % intervals over images | agrees{with_whom} | kappa |{more[0]}", f"|---|---|---|{lines}")
    for one in report.flags:
        cells = f"{percent(one.figures['accuracy'])} | {decimal(one.figures['kappa'])}"
        beside = f" {percent(one.beside)} | {points(one.behind)} |" if one.beside and one.behind else ""
        echo(f"| {one.name} | {cells} |{beside}")
    echo("", f"| graded, with 95 % intervals over images | AUROC |{more[1]}", f"|---|---|{lines}")
    for one in report.scores:
        beside = f" {decimal(one.beside)} | {decimal(one.behind)} |" if one.beside and one.behind else ""
        echo(f"| {one.name} | {decimal(one.figures['auroc'])} |{beside}")
    if several:
        echo("", "| rater | agrees with the majority of the others | kappa | AUROC |", "|---|---|---|---|")
    for one in report.raters:
        figures = one.figures
        cells = f"{percent(figures['accuracy'])} | {decimal(figures['kappa'])} | {decimal(figures['auroc'])}"
        echo(f"| {one.name} | {cells} |")


def print_differences(
    full: RatedSample, flag: np.ndarray, title: str = "Of the metric Acc and the majority they differ in:"
) -> None:
    """Print the items for which Acc, bool (items,), and the majority of the raters differ."""
    echo("", title)
    for item, grade, said in zip(full.items, full.majority(), flag, strict=True):
        if (grade > 0) != said:
            echo(f"- {item.item} ({item.dataset}): {item.prediction!r} for {item.names[0]!r}: {GRADES[grade]}")


def print_notes(report: AgreementReport) -> None:
    """Print which figures are undefined, and which of them are undefined in some bootstrap samples."""
    notes = [f"- {title}: undefined: {one.undefined}" for title, one in report.figures() if one.value is None]
    notes += [
        f"- {title}: undefined in {one.undefined_samples} of the bootstrap samples, which are left out"
        for title, one in report.figures()
        if one.undefined_samples
    ]
    if notes:
        echo("", *notes)


def points(figure: Figure) -> str:
    """Format a difference of shares and its interval in percentage points."""
    return percent(figure).replace(" %", "")


def percent(figure: Figure) -> str:
    """Format a figure and its interval in percent."""
    if figure.value is None:
        return _NO_VALUE
    low_high = figure.interval and f" ({100 * figure.interval[0]:.0f} to {100 * figure.interval[1]:.0f})"
    return f"{100 * figure.value:.0f} %{low_high or ''}"


def decimal(figure: Figure) -> str:
    """Format a figure and its interval with two decimals."""
    if figure.value is None:
        return _NO_VALUE
    low_high = figure.interval and f" ({figure.interval[0]:.2f} to {figure.interval[1]:.2f})"
    return f"{figure.value:.2f}{low_high or ''}"
