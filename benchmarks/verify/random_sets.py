"""Random datasets and predictions in the documented formats, with the odd values that occur."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PREDICTED_FORMS = ("coco_panoptic", "coco_instances", "boxes", "semantic", "parts")
TABLES = ("coco", "ade20k", "cityscapes", "lvis", "a847", "pc459", "partimagenet", "pascal_part")
_WORDS = """
animal dog poodle puppy cat kitten wheel car coach bus vehicle couch sofa seat leg man men woman people person
child children wolf wolves leaf leaves knife knives shelf shelves roof baby babies cherry berries box boxes bus
buses glass glasses scissors tooth teeth mouse mice goose geese foot feet ox oxen sheep fish hand finger tree
bark forest water wine beer red blue s es entity object thing table tables chair bed traffic light tomato tomatoes
"""
_PHRASES = (
    "striped kettle",
    "dotted kettle",
    "red traffic light",
    "traffic lights",
    "fire hydrants",
    "bow (weapon)",
    "bat (animal)",
    "crane (machine) ",
    "passenger cars (railway)",
    "hot dogs",
    "ice cream",
    "ice creams",
    "men's room",
    "t-shirt",
    "T-shirts",
    "potted_plant",
    "dining tables",
    "café",
    "CAFÉ",
    "straße",
    "İstanbul",
    "猫",
    "кошка",
    "naïve dog",
    "dog\u00a0",
    "e\u0301clair",
    "éclair",
    "a dog and a cat",
    "dog dog",
    "  ",
    "",
    "!?",
    "-",
    "7 up",
    "10",
    "wine glasses",
    "polar bear",
    "polar  bear",
    "church of england",
    "tree bark",
    "mother-in-law",
    "mothers-in-law",
    "attorneys general",
)
_AREAS = (0, 1, 1023, 1023.5, 1024, 1025, 9215, 9215.999, 9216, 9217, 100000)
_PROBS = (0, 0.0, 1, 1.0, 1e-12, 1 / 15, 2 / 15, 0.2, 0.4, 0.6, 0.8, 1 / 3, 2 / 3, 14 / 15, 0.5, 1.00005)


class RandomSets:
    """Random datasets.

    Args:
        tables: the categories of the built-in label tables.
        lemmas: nouns of WordNet; may be empty.
        seed: the random seed.
    """

    def __init__(self, tables: Sequence[Sequence[dict[str, Any]]], lemmas: Sequence[str], seed: int) -> None:
        self.random = random.Random(seed)
        self.tables = tables
        self.lemmas = lemmas

    def labels(self) -> list[dict[str, Any]]:
        """Return the categories of a dataset: some of a table, some of the odd names."""
        draw = self.random
        several = list(draw.choice(self.tables))
        table = draw.sample(several, min(len(several), draw.randint(2, 12)))
        rows = [{"name": row["name"], "synonyms": list(row.get("synonyms") or [])[:6]} for row in table]
        for _ in range(draw.randint(0, 5)):
            names = [name for name in self._odd_names(draw.randint(1, 4)) if name.strip()]
            if names:
                rows.append({"name": names[0], "synonyms": names[1:]})
        start, step = draw.choice((0, 1, 7)), draw.choice((1, 3))
        often = draw.random() < 0.5
        for k, row in enumerate(rows):
            row.update(id=start + step * k, isthing=draw.randint(0, 1))
            if often and draw.random() < 0.8:
                row["frequency"] = draw.choice("rcf")
        return rows

    def _odd_names(self, count: int) -> list[str]:
        draw = self.random
        words = _WORDS.split()
        pools = [words, _PHRASES, self.lemmas or words]
        return [str(draw.choice(draw.choice(pools))) for _ in range(count)]

    def name(self, categories: list[dict[str, Any]], own: dict[str, Any]) -> str:
        """Return a predicted name for a mask of a class."""
        draw = self.random
        kind = draw.random()
        row = own if kind < 0.5 else draw.choice(categories)
        name = str(draw.choice([row["name"], *row["synonyms"]]))
        if kind > 0.7:
            name = self._odd_names(1)[0]
        change = draw.random()
        if change < 0.1:
            name = name + draw.choice(("s", "es"))
        elif change < 0.2:
            name = name.removesuffix("s") if draw.random() < 0.5 else name.removesuffix("y") + "ies"
        elif change < 0.25 and len(name) > 2:
            place = draw.randrange(len(name))
            name = name[:place] + draw.choice("aexz") + name[place + 1 :]
        elif change < 0.35:
            name = f"{draw.choice(('striped', 'red', 'wooden', 'traffic', 'wine'))} {name}"
        elif change < 0.4:
            name = f"{name} {draw.choice(_WORDS.split())}"
        elif change < 0.45:
            name = f" {name.upper()}\n"
        elif change < 0.5:
            name = " ".join(name.split()[-1:])
        return name

    def predictions(self, name: str, categories: list[dict[str, Any]], own: dict[str, Any]) -> dict[str, Any]:
        """Return `open_end_pred` of a mask."""
        draw = self.random
        found: dict[str, Any] = {}
        for mode in (name, "any"):
            if draw.random() < 0.95:
                found[mode] = {"class": self.name(categories, own)}
                if draw.random() < 0.9:
                    found[mode]["prob"] = draw.choice(_PROBS) if draw.random() < 0.3 else draw.random() ** 0.5
        return found

    def annotation(self, name: str, form: str, number: int, categories: list[dict[str, Any]]) -> dict[str, Any]:
        """Return an annotation of a prediction file."""
        draw = self.random
        own = draw.choice(categories)
        key = "mask_unique_id" if form in ("semantic", "parts") else "id"
        out: dict[str, Any] = {key: own["id"] if key == "mask_unique_id" else number}
        if key == "id":
            out["category_id"] = own["id"]
            if draw.random() < 0.9:
                out["area"] = draw.choice(_AREAS) if draw.random() < 0.5 else draw.uniform(0, 20000)
            side = draw.choice((1, 32, 96, draw.uniform(1, 200)))
            out["bbox"] = [draw.randint(0, 9), 0, side, draw.choice((side, 31.5))]
            if draw.random() < 0.05:
                own_crowd = draw.random() < 0.2  # a name for a crowd is not scored
                return {**out, "iscrowd": 1} | (
                    {"open_end_pred": self.predictions(name, categories, own)} if own_crowd else {}
                )
            out["iscrowd"] = 0
        if draw.random() < 0.3:
            out["names"] = self._odd_names(2) + [own["name"]]
        if draw.random() < 0.92 and (given := self.predictions(name, categories, own)):
            out["open_end_pred"] = given
        return out

    def images(self, name: str, form: str, categories: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the annotations of every image of a dataset."""
        draw = self.random
        found = []
        for _ in range(draw.choice((1, 2, 3, 5, 8, 20))):
            several = [self.annotation(name, form, k + 1, categories) for k in range(draw.randint(0, 5))]
            if form in ("semantic", "parts"):  # a class is one mask there
                several = list({one["mask_unique_id"]: one for one in several}.values())
            found.append(several)
        return found

    def write(self, root: Path, name: str, out_dir: str, parts: int) -> dict[str, Any]:
        """Write a dataset and its prediction files, and return its row of the dataset YAML."""
        draw = self.random
        form = draw.choice(PREDICTED_FORMS)
        categories = self.labels()
        (root / f"{name}.json").write_text(json.dumps({"categories": categories}), encoding="utf-8")
        images = self.images(name, form, categories)
        if not any("open_end_pred" in one for image in images for one in image):  # a file without one is refused
            images[0].append(_sure(name, form, categories[0], len(images[0])))
        share = len(images) // parts
        for part in range(parts):
            stop = len(images) if part == parts - 1 else (part + 1) * share
            entries = [(k + 1, images[k]) for k in range(part * share, stop)]
            path = root / out_dir / f"{name}_pred_{part}_of_{parts}.json"
            path.write_text(json.dumps(_document(form, entries)), encoding="utf-8")
        row: dict[str, Any] = {"form": form, "labels": f"{name}.json"}
        if draw.random() < 0.3:
            row["ignored_ids"] = [draw.choice(categories)["id"], 65535]
        return row


def _sure(name: str, form: str, own: dict[str, Any], number: int) -> dict[str, Any]:
    predictions = {mode: {"class": own["name"], "prob": 0.5} for mode in (name, "any")}
    if form in ("semantic", "parts"):
        return {"mask_unique_id": own["id"], "open_end_pred": predictions}
    box = [0, 0, 2, 3]
    return {"id": number + 1, "category_id": own["id"], "bbox": box, "area": 6, "open_end_pred": predictions}


def _document(form: str, entries: list[tuple[int, list[dict[str, Any]]]]) -> Any:
    if form == "coco_panoptic":
        return [{"image_id": i, "file_name": f"{i}.png", "segments_info": several} for i, several in entries]
    if form in ("semantic", "parts"):
        return {"pred": [{"file_name": f"{i}.png", "pred": several} for i, several in entries]}
    return {"pred": [[{"id": i, "file_name": f"{i}.jpg"}, several] for i, several in entries]}
