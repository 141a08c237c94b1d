"""Agreement of the metrics with the verdicts of a person on sampled predictions (`scripts/judged.py`)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from osm.datasets.table import ANY_MODE, DatasetTable
from osm.errors import OsmError, shown, write_failed
from osm.evaluation.metrics import is_correct, normalize
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.semantic import best_semantic_iou, semantic_similarities
from osm.evaluation.metrics.statistics import auroc
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.predict.generate import OWN_MODE
from osm.evaluation.predict.records import SetRecords, prediction_in, read_set
from osm.evaluation.report.result_images import masks_by_image
from osm.files import read_json, write_output
from osm.forms import Split, split_of
from osm.recognition.similarity import SentenceEncoder
from osm.terminal import echo

VERDICTS = ("right", "acceptable", "wrong")
SIDE, COLUMNS, ROWS = 300, 5, 2


def sample(
    folder: Path,
    parts: int,
    out_list: Path,
    sheets: Path,
    table: DatasetTable,
    sets: Sequence[str],
    mode: str = ANY_MODE,
    each: int = 10,
    seed: int = 0,
) -> None:
    """Sample predictions. Write them as a list with empty verdicts, and as sheets of images.

    Args:
        folder: of the prediction files.
        parts: number of parts of the predictions.
        out_list: the json list to write.
        sheets: folder of the sheets.
        table: the datasets.
        sets: names of the datasets to sample from.
        mode: of the predictions.
        each: number of right predictions, and of wrong ones, to sample from each dataset, if it has as many.
        seed: of the sampling.

    Raises:
        OsmError: the list exists, a dataset is unknown, or the predictions are invalid.
    """
    for flag, count in (("parts", parts), ("--each", each)):
        if count < 1:
            raise OsmError(f"{flag} {count}: expected 1 or more")
    if out_list.exists():
        raise OsmError(f"{out_list} exists, and its verdicts would be lost; remove it, or give another name")
    drawn: list[tuple[dict[str, Any], Image.Image]] = []
    for name in sets:
        if name not in table:
            raise OsmError(f"--sets: unknown set {name!r}; the sets are {', '.join(table)}")
        row = table[name]
        split, records = split_of(row), read_set(row, folder, parts)
        if records.meta.get("annotations", split.source_hash) != split.source_hash:
            raise OsmError(f"{split.source} has changed since the predictions were made; its masks may be others")
        known = candidates(records, row.name if mode == OWN_MODE else mode)
        rng = random.Random(f"{seed} {name}")
        for right in (True, False):
            some = [entry for entry in known if is_correct(entry["prediction"], entry["names"]) == right]
            for entry in rng.sample(some, min(each, len(some))):
                drawn.append((entry, draw_mask(split, entry)))
    if not drawn:
        raise OsmError(
            f"{folder}: no prediction in mode {mode!r} of {', '.join(sets) or 'no set'} (see --mode, --sets)"
        )
    random.Random(seed).shuffle(drawn)  # otherwise the order reveals which names are right
    for number, (entry, _) in enumerate(drawn, 1):
        entry["number"] = number
    try:
        sheets.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(drawn), COLUMNS * ROWS):
            draw_sheet(drawn[start : start + COLUMNS * ROWS]).save(sheets / f"{start // (COLUMNS * ROWS) + 1:02}.png")
    except OSError as error:
        raise write_failed(error, f"sheets {sheets}", "a folder that can be written") from None
    write_output(out_list, "out_list", [json.dumps([{**entry, "verdict": ""} for entry, _ in drawn], indent=1) + "\n"])


def candidates(records: SetRecords, mode: str) -> list[dict[str, Any]]:
    """Return every prediction of a dataset in one mode."""
    found, row = [], records.row
    for index, (image, masks) in enumerate(zip(records.images, masks_by_image(records), strict=True)):
        for place, mask in enumerate(masks):
            if mask.counted and mode in mask.predictions:
                names, predicted = list(row.label_set[mask.category_id].names), mask.predictions[mode]
                where = {"set": row.name, "image": image.key, "segment": mask.id, "at": [index, place]}
                found.append({**where, "names": names, "prediction": predicted.name, "prob": predicted.prob})
    return found


def draw_mask(split: Split, entry: dict[str, Any]) -> Image.Image:
    """Crop the image around the mask and draw the outline of the mask. The result has SIDE x SIDE pixels."""
    index, place = entry.pop("at")
    item = split.load(index) if index < len(split) else None
    k = item.places.index(place) if item and place in item.places else None
    if (
        item is None
        or k is None
        or item.annotations[k].get(split.id_key) != entry["segment"]
        or not (mask := item.mask(k)).any()
    ):
        raise OsmError(
            f"{split.source}: has no mask {shown(entry['segment'])} in image {shown(entry['image'])}; the predictions "
            "are for other masks"
        )
    image = item.image()
    ys, xs = mask.nonzero()
    half = 0.75 * max(np.ptp(ys), np.ptp(xs)) + 20
    middle = (int(xs.min() + xs.max()) / 2, int(ys.min() + ys.max()) / 2)
    left, top = int(middle[0] - half), int(middle[1] - half)
    box = (left, top, left + int(2 * half), top + int(2 * half))
    crop = np.asarray(image.crop(box).resize((SIDE, SIDE))).copy()
    inside = np.asarray(Image.fromarray(mask).crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    border = np.zeros_like(inside)
    for axis in (0, 1):
        for step in (1, -1, 2, -2):
            border |= inside != np.roll(inside, step, axis)
    crop[~inside & ~border] = crop[~inside & ~border] // 2 + 60
    crop[border] = (255, 0, 255)
    return Image.fromarray(crop)


def draw_sheet(pairs: list[tuple[dict[str, Any], Image.Image]]) -> Image.Image:
    """Arrange images in a grid, each with its number and the predicted name."""
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), ROWS * (SIDE + 40)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for place, (entry, picture) in enumerate(pairs):
        left, top = place % COLUMNS * (SIDE + 8), place // COLUMNS * (SIDE + 40)
        page.paste(picture, (left, top + 34))
        draw.text((left + 4, top + 4), f"{entry['number']}: {entry['prediction'] or '(nothing)'}", "black", font)
    return page


def agreement(path: Path) -> None:
    """Print how well each metric agrees with the verdicts of a list."""
    entries = read_verdicts(path)
    verdicts = [entry["verdict"] for entry in entries]
    echo(f"{len(entries)} predictions: " + ", ".join(f"{verdicts.count(one)} {one}" for one in VERDICTS))
    true = np.array([verdict != "wrong" for verdict in verdicts])
    grades = np.array([VERDICTS[::-1].index(verdict) for verdict in verdicts], float)
    flags, scores = metrics(entries)
    echo(
        "",
        "| says right or wrong | agrees | true, called wrong | wrong, called right | kappa |",
        "|---|---|---|---|---|",
    )
    for name, flag in flags.items():
        agrees, kappa = (flag == true).mean(), cohens_kappa(flag, true)
        echo(f"| {name} | {100 * agrees:.0f} % | {(true & ~flag).sum()} | {(flag & ~true).sum()} | {kappa:.2f} |")
    echo("", "| graded | true above wrong (AUROC) | rank correlation (Kendall's tau-b) |", "|---|---|---|")
    for name, values in scores.items():
        echo(f"| {name} | {auroc(values[true], values[~true]):.2f} | {kendall_tau(values, grades):.2f} |")
    echo("", "Of the metric Acc and the verdict they differ in:")
    for entry, is_true, flag in zip(entries, true, flags["Acc"], strict=True):
        if is_true != flag:
            echo(
                f"- {entry['number']} ({entry['set']}): {entry['prediction']!r} for {entry['names'][0]!r}: "
                f"{entry['verdict']}"
            )


def read_verdicts(path: Path) -> list[dict[str, Any]]:
    """Read a list whose verdicts are filled in.

    Raises:
        OsmError: the file is not such a list, or all verdicts are of one kind, so that agreement is undefined.
    """
    entries, _ = read_json(path, "list")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise OsmError(f"{path}: expected the list that `sample` wrote, found {shown(entries)}")
    for place, entry in enumerate(entries, 1):
        where = f"{path}: number {shown(entry.get('number', place))}"
        if entry.get("verdict") not in VERDICTS:
            raise OsmError(f"{where}: verdict {shown(entry.get('verdict'))} is not one of {', '.join(VERDICTS)}")
        names = entry.get("names")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise OsmError(f"{where}: names {shown(names)} is not a list of texts")
        prediction_in({"class": entry.get("prediction"), "prob": entry.get("prob")}, where)
    if len({entry["verdict"] == "wrong" for entry in entries}) == 1:
        raise OsmError(f"{path}: {len(entries)} verdicts of one kind; some wrong and some others are needed")
    return entries


def metrics(entries: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Apply the metrics to each prediction.

    Returns:
        The metrics that are true or false, and the metrics that are graded, each by name, as arrays (predictions,).
    """
    predicted, names = [entry["prediction"] for entry in entries], [tuple(entry["names"]) for entry in entries]
    pairs = list(zip(predicted, names, strict=True))
    # Equal names have cosines of 1 ± 2e-7. Without rounding, these ties would be ordered by noise.
    cosines = np.round(semantic_similarities(SentenceEncoder(), pairs)[:, 1], 6)
    lexicon = Lexicon(find_wordnet())
    judged = [lexicon.judge(normalize(text), of_class) for text, of_class in pairs]
    relations = np.array([one.relation for one in judged])
    flags = {
        "Acc": np.array([is_correct(*pair) for pair in pairs]),
        "WordNet: exact or synonym": np.isin(relations, ("exact", "synonym")),
        "WordNet: those, or a hyponym or hypernym": np.isin(relations, ("exact", "synonym", "hyponym", "hypernym")),
        "Semantic Similarity of 0.6 or more": cosines >= 0.6,
    }
    scores = {
        "Acc": flags["Acc"].astype(float),
        "Semantic Similarity": cosines,
        "Semantic IoU": np.array([best_semantic_iou(*pair) for pair in pairs]),
        "WUPS at 0.0": np.array([one.similarity for one in judged]),
    }
    if all(entry.get("prob") is not None for entry in entries):
        scores["the model's own probability"] = np.array([entry["prob"] for entry in entries], float)
    return flags, scores


def cohens_kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Return the agreement of two bool arrays beyond chance (Cohen 1960)."""
    chance = one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean())
    return float(((one == other).mean() - chance) / (1 - chance))


def kendall_tau(one: np.ndarray, other: np.ndarray) -> float:
    """Return Kendall's tau-b: concordant minus discordant pairs, corrected for ties; nan if one array is constant."""
    a, b = (np.sign(values[:, None] - values[None]) for values in (one, other))
    untied = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / untied if untied else math.nan
