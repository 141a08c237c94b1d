"""Samples predictions for people to judge: a list and sheets for one person, or blind files for several raters.

`scripts/judged.py` is the command. `rater_files.py` reads what is written here, once the verdicts are filled in.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rating_page import rating_page

from osm.datasets.table import ANY_MODE, DatasetTable
from osm.errors import OsmError, shown, write_failed
from osm.evaluation.metrics import is_correct, normalize
from osm.evaluation.predict.generate import OWN_MODE
from osm.evaluation.predict.records import SetRecords, read_set
from osm.evaluation.report.result_images import masks_by_image
from osm.files import write_output
from osm.forms import Split, split_of
from osm.terminal import echo

SIDE, COLUMNS, ROWS = 300, 5, 2
FORMAT = "judged names, 1"
"""The field `format` of a key file."""
_FIELDS = ("set", "image", "segment", "names", "prediction")
_RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_HOW = (
    "Set each verdict to right, acceptable (true, but vaguer, finer or another word) or wrong. Leave the verdict empty "
    "if you cannot tell."
)
Drawn = list[tuple[dict[str, Any], Image.Image]]


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled.

    Attributes:
        sets: names of the datasets to sample from.
        mode: of the predictions.
        each: number of right predictions, and of wrong ones, to sample from each dataset and model, if there are as
            many.
        seed: of the sampling, and of the orders.
    """

    sets: Sequence[str]
    mode: str = ANY_MODE
    each: int = 10
    seed: int = 0


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
    """Sample predictions for one person. Write them as a list with empty verdicts, and as sheets of images.

    Args:
        folder: of the prediction files.
        parts: number of parts of the predictions.
        out_list: the json list to write.
        sheets: folder of the sheets.
        table: the datasets.
        sets, mode, each, seed: what is sampled (see `SampleOptions`).

    Raises:
        OsmError: the list exists, a dataset is unknown, or the predictions are invalid.
    """
    _refuse_existing(out_list)
    drawn = draw_entries({"": folder}, parts, table, SampleOptions(sets, mode, each, seed))
    _write_sheets(sheets, [(entry["prediction"], picture) for entry, picture in drawn])
    entries = [
        {**{field: entry[field] for field in _FIELDS}, "prob": entry["models"][""], "number": number, "verdict": ""}
        for number, (entry, _) in enumerate(drawn, 1)
    ]
    write_output(out_list, "out_list", [json.dumps(entries, indent=1) + "\n"])


def sample_for_raters(
    models: Mapping[str, Path],
    parts: int,
    key: Path,
    folder: Path,
    table: DatasetTable,
    options: SampleOptions,
    raters: Sequence[str],
) -> None:
    """Sample predictions for several raters. Write a key, and a folder for each rater with a list and sheets.

    A rater's folder has the pictures, the predicted names and ids of the items, in an order of its own, as a list with
    sheets and as a page that saves the list. The classes, datasets, probabilities and models are in the key alone. If
    two models give the same name to a mask, the name is one item. Names are in lower case, because upper case could
    tell the models apart.

    Args:
        models: folders of prediction files by the models' titles.
        parts: number of parts of the predictions.
        key: the key file to write.
        folder: of the raters' folders. RATER/RATER.json is a rater's list, RATER/RATER.html the page.
        table: the datasets.
        options: what is sampled.
        raters: names of the raters.

    Raises:
        OsmError: a file exists, a rater's name cannot be that of a file, a dataset is unknown, or the predictions are
            invalid.
    """
    _check_raters(raters)
    for path in (key, *(folder / name for name in raters)):
        _refuse_existing(path)
        if path.resolve() in key.resolve().parents:
            raise OsmError(f"{key} is in the folder of the rater {path.name}, who may not see it; give another folder")
    drawn = draw_entries(models, parts, table, options)
    for entry, _ in drawn:
        entry["prediction"] = normalize(entry["prediction"])
    drawn.sort(key=lambda pair: pair[0]["item"])
    for name in raters:
        own = list(drawn)
        random.Random(f"{options.seed} {name}").shuffle(own)
        _write_sheets(folder / name, [(entry["prediction"], picture) for entry, picture in own])
        items = [
            {"number": number, "item": entry["item"], "prediction": entry["prediction"], "verdict": ""}
            for number, (entry, _) in enumerate(own, 1)
        ]
        document = {"rater": name, "how": _HOW, "items": items}
        page = rating_page(document, [picture for _, picture in own])
        write_output(folder / name / f"{name}.html", f"{name}.html", [page])
        _write_json(folder / name / f"{name}.json", document)
    # The key is written last: if it is there, the raters' files are complete.
    facts = {"format": FORMAT, "mode": options.mode, "each": options.each, "seed": options.seed}
    _write_json(key, {**facts, "models": list(models), "raters": list(raters), "items": [entry for entry, _ in drawn]})
    echo(f"{len(drawn)} items for {len(raters)} raters in {folder}; {key} is the key, which no rater may see")


def titled_folders(title: str, folder: Path, also: Sequence[str]) -> dict[str, Path]:
    """Return the folders of predictions by the models' titles.

    Args:
        title: of the first model.
        folder: of the first model's predictions.
        also: "TITLE=FOLDER" of each further model.

    Raises:
        OsmError: one of these is something else, or a title is given twice.
    """
    models = {title: folder}
    for given in also:
        name, equals, place = given.partition("=")
        if not equals or not name.strip() or not place:
            raise OsmError(f"--also {given!r}: expected TITLE=FOLDER")
        if name.strip() in models:
            raise OsmError(f"--also {given!r}: the title {name.strip()!r} is given twice; expected different titles")
        models[name.strip()] = Path(place)
    return models


def _check_raters(raters: Sequence[str]) -> None:
    if not raters:
        raise OsmError("--raters '': expected one name or more, such as ann,ben")
    for place, name in enumerate(raters):
        if not _RATER.fullmatch(name):
            raise OsmError(
                f"--raters {shown(name)}: expected a name of at most 40 letters, digits, _ and -, because a folder "
                "gets this name"
            )
        # Some file systems ignore case.
        if name.lower() in [other.lower() for other in raters[:place]]:
            raise OsmError(f"--raters {name!r} is given twice; expected different names")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise OsmError(f"{path} exists, and its verdicts would be lost; remove it, or give another name")


def draw_entries(models: Mapping[str, Path], parts: int, table: DatasetTable, options: SampleOptions) -> Drawn:
    """Draw right and wrong predictions of each dataset and model at random, in random order, with their pictures.

    Raises:
        OsmError: a dataset is unknown, the predictions are invalid, or there are none.
    """
    for flag, count in (("parts", parts), ("--each", options.each)):
        if count < 1:
            raise OsmError(f"{flag} {count}: expected 1 or more")
    drawn: dict[str, tuple[dict[str, Any], Image.Image]] = {}
    for name in options.sets:
        if name not in table:
            raise OsmError(f"--sets: unknown set {name!r}; the sets are {', '.join(table)}")
        row = table[name]
        split, of_model = split_of(row), {}
        for title, folder in models.items():
            records = read_set(row, folder, parts)
            if records.meta.get("annotations", split.source_hash) != split.source_hash:
                raise OsmError(f"{split.source} has changed since the predictions were made; its masks may be others")
            of_model[title] = candidates(records, row.name if options.mode == OWN_MODE else options.mode)
        rng = random.Random(f"{options.seed} {name}")
        for known in merged(of_model).values():
            for right in (True, False):
                some = [entry for entry in known if is_correct(entry["prediction"], entry["names"]) == right]
                for entry in rng.sample(some, min(options.each, len(some))):
                    if entry["item"] not in drawn:
                        drawn[entry["item"]] = (entry, draw_mask(split, entry))
    if not drawn:
        folders, sets = ", ".join(map(str, models.values())), ", ".join(options.sets) or "no set"
        raise OsmError(f"{folders}: no prediction in mode {options.mode!r} of {sets} (see --mode, --sets)")
    found = list(drawn.values())
    random.Random(options.seed).shuffle(found)  # otherwise the order reveals which names are right
    return found


def merged(of_model: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Make one entry of equal names that several models give to a mask, and let it be in the list of each of them.

    Each entry gets an id (`item`), which only depends on the mask and the name, and `models`: the probability of the
    name by the title of each model that gave it.
    """
    entries: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for title, known in of_model.items():
        found[title] = []
        for entry in known:
            where = [entry[field] for field in ("set", "image", "segment", "at")]
            text = json.dumps([*where, normalize(entry["prediction"])])
            item = hashlib.sha256(text.encode()).hexdigest()[:12]
            prob = entry.pop("prob")
            one = entries.setdefault(item, {**entry, "item": item, "models": {}})
            one["models"][title] = prob
            found[title].append(one)
    return found


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


def draw_sheet(named: Sequence[tuple[str, Image.Image]], first: int) -> Image.Image:
    """Arrange images in a grid, each with its number, from `first` on, and the predicted name."""
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), ROWS * (SIDE + 40)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for place, (name, picture) in enumerate(named):
        left, top = place % COLUMNS * (SIDE + 8), place // COLUMNS * (SIDE + 40)
        page.paste(picture, (left, top + 34))
        draw.text((left + 4, top + 4), f"{first + place}: {name or '(nothing)'}", "black", font)
    return page


def _write_sheets(folder: Path, named: Sequence[tuple[str, Image.Image]]) -> None:
    """Write sheets of predicted names and their pictures, which are numbered from 1 on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for page, start in enumerate(range(0, len(named), COLUMNS * ROWS), 1):
            draw_sheet(named[start : start + COLUMNS * ROWS], start + 1).save(folder / f"{page:02}.png")
    except OSError as error:
        raise write_failed(error, f"sheets {folder}", "a folder that can be written") from None


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_output(path, str(path), [json.dumps(document, indent=1, ensure_ascii=False) + "\n"])
