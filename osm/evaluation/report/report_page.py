"""The report as one HTML page that needs no network and nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from osm.evaluation.metrics import majority_class
from osm.evaluation.metrics.scores import CLASS, PART, PARTS
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.predict.prediction_files import made_with
from osm.evaluation.report.report_curve import loss_curve
from osm.evaluation.report.report_html import (
    NOTHING,
    SCRIPT,
    STYLE,
    Markup,
    column,
    joined,
    number,
    percent,
    row_of,
    share,
    table,
    tag,
    text,
)
from osm.evaluation.report.report_metrics import calibration, further_metrics, sizes
from osm.evaluation.report.result_images import DrawnImage, Guess

if TYPE_CHECKING:
    from osm.evaluation.report.report import Report, SetReport

CONFUSIONS = 25
_MANY_CLASSES = 60  # from here on the table is folded
_MANY_MASKS = 15
_FEW = 5  # masks below which a class is not called one of the worst; and how many of those are


def page(report: Report) -> Iterator[str]:
    """The page in pieces."""
    title, main = next(iter(report.predictions.items()))
    sections = [
        ("scores", "Scores", _scores(report)),
        ("training", "Training", _training(report)),
        *_measured(report, title, main),
        ("classes", "Accuracy by class", _for_sets(title, main, _classes)),
        ("confusions", "Commonest confusions", _for_sets(title, main, _confusions)),
        ("pictures", "Pictures", _pictures(title, main)),
    ]
    links = joined(tag("a", heading, href=f"#{key}") for key, heading, _ in sections)
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', report.title)}\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{tag('h1', report.title)}\n{tag('nav', links, aria_label='Sections')}</header>\n<main>\n"
    )
    for key, heading, content in sections:
        yield tag("section", tag("h2", heading), "\n", content, id=key) + "\n"
    yield f"</main>\n{_footer(report)}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"


def _measured(report: Report, title: str, main: dict[str, SetReport]) -> Iterator[tuple[str, str, Markup]]:
    """The sections that need more than the published metrics."""
    if any(entry.measures for sets in report.predictions.values() for entry in sets.values()):
        yield "metrics", "Further metrics", further_metrics(report)
        yield "sizes", "Accuracy by mask size and class frequency", sizes(report)
        about = (
            f"Of the predictions \u201c{title}\u201d: on the dotted line, as many names of a probability are right "
            "as it says; below it they are too sure of themselves. Larger dots stand for more masks."
        )
        plots = [calibration(name, entry) for name, entry in main.items()]
        yield "calibration", "Calibration", joined([tag("p", about, class_="dim"), *plots])


def _scores(report: Report) -> Markup:
    pieces: list[Any] = [
        tag(
            "p",
            "Acc: the share of masks whose name is one of their class's names, or a plural or singular form of one. "
            "NIV (not in vocabulary): the share whose name is none of the set's names. Own mode asks for the set's "
            "vocabulary, any for none. Majority class: the Acc of always giving the commonest name. Small figures "
            "are counts; 95 % intervals show where the pointer rests, and are in results.json (over images, where it "
            "says so; else Wilson's, which takes masks for independent of each other).",
        ),
        _score_table(report),
        _parts_table(report),
    ]
    altered = {
        f"{title}: {note}"
        for title, sets in report.predictions.items()
        for entry in sets.values()
        for note in made_with(entry.result.meta)
    }
    pieces += [tag("p", line, class_="dim") for line in sorted(altered)]
    if report.notes:
        notes = tag("ul", *(tag("li", note) for note in report.notes))
        pieces.append(tag("details", tag("summary", "Sets left out"), notes))
    return joined(pieces)


def _score_table(report: Report) -> Markup:
    head = ["predictions", "masks", "own mode Acc", "any Acc", "any, any right name", "own mode NIV", "any NIV"]
    head += ["majority class", "masks without prediction"]
    names = dict.fromkeys([name for sets in report.predictions.values() for name in sets] + list(report.baselines))
    bodies = []
    for name in names:
        entries = {title: sets[name] for title, sets in report.predictions.items() if name in sets}
        heading = next((f"{entry.result.row.title} ({name})" for entry in entries.values()), name)
        rows = [tag("tr", tag("th", heading, scope="rowgroup", colspan=len(head)))]
        rows += [row_of(title, *_score_cells(entry)) for title, entry in entries.items()]
        for baseline, value in report.baselines.get(name, {}).items():
            cells = [tag("td", NOTHING, class_="n") for _ in head[3:]]
            figure = f"{value:.1f}\u00a0%" if isinstance(value, (int, float)) else value
            label = tag("th", f"{baseline} (baseline)", scope="row")
            rows.append(tag("tr", label, cells[0], number(figure), *cells[1:], class_="base"))
        bodies.append(tag("tbody", joined(rows)))
    return table("Scores by set and predictions", head, bodies)


def _rate(entry: SetReport, mode: str, key: str) -> Rate | None:
    measures = entry.measures.modes.get(mode) if entry.measures else None
    return measures.rates.get(key) if measures else None


def _score_cells(entry: SetReport) -> Iterator[Markup]:
    result, either = entry.result, entry.breakdown.either
    own, anyone = result.specific, result.agnostic
    majority = majority_class(result.categories)
    yield number(sum(result.categories.values()))
    yield share(own.correct, own.total, strong=True, rate=_rate(entry, "specific", "acc"))
    yield share(anyone.correct, anyone.total, strong=True, rate=_rate(entry, "agnostic", "acc"))
    yield share(either["correct"], either["total"], rate=_rate(entry, "agnostic", "either_vocabulary"))
    yield share(own.not_in_vocabulary, own.total, rate=_rate(entry, "specific", "niv"))
    yield share(anyone.not_in_vocabulary, anyone.total, rate=_rate(entry, "agnostic", "niv"))
    if majority is None:
        yield number(NOTHING)
    else:
        name = result.row.label_set[majority[0]].target
        yield tag("td", percent(majority[1]), " ", tag("small", name), class_="n")
    yield number(result.without_prediction)


def _parts_table(report: Report) -> Markup:
    bodies = []
    names = dict.fromkeys(name for sets in report.predictions.values() for name in sets)
    for name in names:
        rows = []
        for title, sets in report.predictions.items():
            if name in sets and (counts := sets[name].breakdown.parts)["total"]:
                entry = sets[name]
                rates = [_rate(entry, "specific", PART + key) for key in PARTS]
                figures = [
                    share(counts[key], counts["total"], rate=rate) for key, rate in zip(PARTS, rates, strict=True)
                ]
                rows.append(row_of(title, number(counts["total"]), *figures))
        if rows:
            heading = tag("tr", tag("th", name, scope="rowgroup", colspan=2 + len(PARTS)))
            bodies.append(tag("tbody", joined([heading, *rows])))
    if not bodies:
        return tag("p", "Parts of names: no mask of a class whose name has several words.", class_="dim")
    caption = "Parts of names: own mode, masks whose class has a name of several words"
    head = ["predictions", "masks", "whole name right", "last word right", "words before it right"]
    return table(caption, head, bodies)


def _training(report: Report) -> Markup:
    if report.records is None:
        return tag("p", "No training run was given.", class_="dim")
    if not report.records:
        return tag("p", "The run's log has no step yet.", class_="dim")
    last = report.records[-1]
    skipped = last.get("skipped_samples") or {}
    reasons = (
        ", ".join(f"{reason} {count}" for reason, count in skipped.items()) if isinstance(skipped, dict) else skipped
    )
    facts = {
        "steps": last["step"],
        "names trained on": last.get("names", NOTHING),
        "last loss": f"{last['loss']:.4g}",
        "skipped samples": reasons or "none",
        "skipped steps": last.get("skipped_steps", NOTHING),
    }
    curve = loss_curve(report.records) or tag("p", "No loss that a log axis can show.", class_="dim")
    rows = tag("tbody", joined(row_of(key, value) for key, value in facts.items()))
    figure = tag(
        "figure", Markup(curve), tag("figcaption", "Loss by step; the halves of each set are thin.", class_="dim")
    )
    return joined([table("Training run", ["", "at the last logged step"], [rows]), figure])


def _for_sets(title: str, sets: dict[str, SetReport], show: Any) -> Markup:
    """A part of the page for each set of the main predictions that has some in its own mode."""
    pieces: list[Any] = [tag("p", f"Of the predictions \u201c{title}\u201d, in each set's own mode.", class_="dim")]
    for name, entry in sets.items():
        if entry.breakdown.classes:
            pieces.append(show(name, entry))
        else:
            pieces.append(tag("p", f"{name}: no prediction in its own mode.", class_="dim"))
    return joined(pieces)


def _classes(name: str, entry: SetReport) -> Markup:
    labels = entry.result.row.label_set
    classes = entry.breakdown.classes.items()
    counted = [(labels[key].target, *counts, _rate(entry, "specific", f"{CLASS}{key}")) for key, counts in classes]
    counted.sort(key=lambda one: (-one[2], one[0]))
    head = [
        column(tag("button", "class", type="button")),
        column(tag("button", "masks", type="button"), aria_sort="descending"),
        column(tag("button", "Acc", type="button")),
        column("of all its masks"),
    ]
    rows = []
    for target, correct, total, rate in counted:
        bar = tag("span", tag("span", style=f"width:{100 * correct / total:.1f}%"), class_="bar", aria_hidden="true")
        cell = share(correct, total, rate=rate).replace("<td", f'<td data-v="{correct / total:.6f}"', 1)
        rows.append(row_of(target, number(total), Markup(cell), tag("td", bar)))
    made = table(f"{name}: {len(counted)} classes", head, [tag("tbody", joined(rows))], class_="sort")
    if len(counted) > _MANY_CLASSES:
        made = tag("details", tag("summary", f"{name}: all {len(counted)} classes"), made)
    return joined([made, _worst(name, counted)])


def _worst(name: str, counted: list[tuple[str, int, int, Rate | None]]) -> Markup:
    often = [one for one in counted if one[2] >= _FEW and one[1] < one[2]]
    worst = sorted(often, key=lambda one: (one[1] / one[2], -one[2], one[0]))[:_FEW]
    listed = ", ".join(f"{target} {correct}/{total}" for target, correct, total, _ in worst)
    return tag("p", f"{name}, lowest of the classes with {_FEW} masks or more: {listed or 'none has an error'}.")


def _confusions(name: str, entry: SetReport) -> Markup:
    pairs = entry.breakdown.commonest(CONFUSIONS)
    if not pairs:
        return tag("p", f"{name}: no wrong name.")
    rows = [row_of(given, predicted or "(nothing)", number(count)) for given, predicted, count in pairs]
    body = tag("tbody", joined(rows))
    wrong = entry.breakdown.confusions.total()
    caption = f"{name}: {len(pairs)} of {len(entry.breakdown.confusions)} confusions; {wrong} wrong masks in all"
    return table(caption, ["given", "predicted", "masks"], [body])


def _pictures(title: str, sets: dict[str, SetReport]) -> Markup:
    pieces: list[Any] = [
        tag(
            "p",
            f"Of the predictions \u201c{title}\u201d, images of each set: those that have the surest "
            "wrong and right names (the mean over an image's masks of the probability, negative where the name is "
            "wrong), and some by chance. \u2713: right, with a solid outline. "
            "\u2717: wrong, hatched and with a dashed outline. Number alone: no prediction. The picture's mark is that "
            "of the set's own mode, or of mode any where that is the only one. (\u2713): wrong in the set's "
            "vocabulary, but a right name in another one.",
            class_="dim",
        )
    ]
    for name, entry in sets.items():
        pieces.append(tag("h3", name))
        groups = {
            "Surest and wrong": entry.worst,
            "Surest and right": entry.best,
            "Chosen by chance": entry.pictures,
        }
        for heading, chosen in groups.items():
            if chosen:
                figures = tag("div", joined(_figure(name, one) for one in chosen), class_="pictures")
                pieces += [tag("h4", heading), figures]
        if entry.picture_notes:
            count, first = len(entry.picture_notes), entry.picture_notes[0]
            pieces.append(tag("p", f"Pictures that could not be drawn: {count}. {first}"))
        elif not any(groups.values()):
            pieces.append(tag("p", "No pictures asked for, or no mask with a prediction.", class_="dim"))
    return joined(pieces)


def _figure(name: str, picture: DrawnImage) -> Markup:
    marked = [own or anyone for _, own, anyone in picture.masks]
    right = sum(guess is not None and guess.right for guess in marked)
    alt = f"{picture.file_name}: {len(marked)} numbered masks, {right} named right; they are listed beside it"
    width, height = picture.size
    source = f"data:image/jpeg;base64,{picture.jpeg}"
    image = Markup(f'<img src="{source}" width="{width}" height="{height}" loading="lazy" alt="{text(alt)}">')
    rows = [
        row_of(place, given, _guess(own), _guess(anyone)) for place, (given, own, anyone) in enumerate(picture.masks, 1)
    ]
    head = ["no.", "given", "own mode", "any"]
    listed = table(f"{name}: {picture.file_name}", head, [tag("tbody", joined(rows))])
    if len(rows) > _MANY_MASKS:
        listed = tag("details", tag("summary", f"{len(rows)} masks, {right} right"), listed)
    return tag("figure", image, "\n", tag("figcaption", listed))


def _guess(guess: Guess | None) -> Markup:
    if guess is None:
        return tag("td", NOTHING)
    sign = "\u2713" if guess.right else "(\u2713)" if guess.right_elsewhere else "\u2717"
    spoken = "right" if guess.right else "right in another vocabulary" if guess.right_elsewhere else "wrong"
    mark = tag("span", sign, class_="no" if sign == "\u2717" else "ok", role="img", aria_label=spoken)
    prob = tag("small", NOTHING if guess.prob is None else percent(guess.prob))
    return tag("td", mark, " ", guess.name or "(nothing)", " ", prob)


def _footer(report: Report) -> Markup:
    checkpoints = [
        tag("li", f"{title}: ", tag("code", ", ".join(sorted(_fingerprints(sets))) or "not noted"))
        for title, sets in report.predictions.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return tag("footer", tag("h2", "Made with"), tag("p", versions), tag("p", "Checkpoints:"), tag("ul", *checkpoints))


def _fingerprints(sets: dict[str, SetReport]) -> set[str]:
    found = (entry.result.meta.get("checkpoint") for entry in sets.values())
    return {str(fingerprint) for fingerprint in found if fingerprint is not None}
