"""The names that a model gives to classes that were left out of its training (`scripts/open_ended.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.labels import LabelSet, load_labels
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, shown
from osm.evaluation.metrics import accepted_forms, normalize
from osm.evaluation.metrics.lexical import RELATIONS, Lexicon
from osm.evaluation.metrics.statistics import auroc
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.predict.records import read_set
from osm.files import read_json
from osm.recognition.similarity import SentenceEncoder

SET = "clothing"
AT_LEAST = 10  # minimum number of val masks of a class that is left out; fewer give no useful figure
RESULT = "open_ended.json"
PARTS = 2  # number of parts of the predictions of scripts/osm_small.sh


@dataclass(frozen=True)
class Answer:
    """The prediction for one val mask in one mode."""

    category_id: int
    mode: str
    text: str
    prob: float


def segments(data: Path, split: str) -> Counter[int]:
    """Return the number of masks of each category in a split."""
    document, _ = read_json(data / SET / split / "panoptic.json", "DATA")
    return Counter(
        s["category_id"] for a in document["annotations"] for s in a["segments_info"] if not s.get("iscrowd")
    )


def choose(data: Path, count: int, seed: int) -> list[int]:
    """Choose the category ids that are left out, at random by the seed."""
    often = sorted(key for key, masks in segments(data, "val").items() if masks >= AT_LEAST)
    if not 0 < count < len(often):
        raise OsmError(f"--classes {count}: {len(often)} classes have {AT_LEAST} val masks or more; fewer are needed")
    return sorted(np.random.default_rng(seed).choice(often, count, replace=False).tolist())


def answers(row: Dataset, out: Path) -> list[Answer]:
    """Read the predictions for all val masks of the dataset, in both modes.

    Args:
        row: the dataset, with the paths of the run.
        out: folder of the run.
    """
    found = []
    for _, mask in read_set(row, out / "predictions", PARTS).counted():
        for mode, prediction in mask.predictions.items():
            if prediction.prob is None:
                raise OsmError(f"{out}: mask {shown(mask.id)} of {SET} has no prob in mode {mode!r}")
            found.append(Answer(mask.category_id, mode, normalize(prediction.name), prediction.prob))
    return found


def measure(data: Path, labels: LabelSet, left_out: list[int], found: list[Answer]) -> dict[str, Any]:
    """Measure the names of the classes that were left out, and those of the other classes, by mode.

    Args:
        data: folder of the datasets.
        labels: the classes.
        left_out: ids of the classes that were left out of training.
        found: the predictions.
    """
    encoder, trained = SentenceEncoder(), segments(data, "train")
    taught = {labels[key].target for key in trained if key not in left_out}
    elsewhere = names_of_the_other_sets(data)
    missing = {labels[key].target: trained[key] for key in left_out}
    modes = {}
    for mode in (SET, ANY_MODE):
        ours = [a for a in found if a.mode == mode and a.category_id in left_out]
        others = [a for a in found if a.mode == mode and a.category_id in trained and a.category_id not in left_out]
        texts = {labels[key].target: [a.text or "(nothing)" for a in ours if a.category_id == key] for key in left_out}
        modes["own" if mode == SET else mode] = {
            "masks": len(ours),
            "exactly_right": share(is_right(a, labels) for a in ours),
            "right_of_the_taught_classes": share(is_right(a, labels) for a in others),
            "a_taught_clothing_name": share(a.text in taught for a in ours),
            "a_name_of_another_set": share(a.text in elsewhere - taught for a in ours),
            "no_taught_name": share(a.text not in elsewhere | taught for a in ours),
            **nearness(encoder, texts, [a.text or "(nothing)" for a in others], sorted(taught)),
            "related_in_wordnet": related(texts, labels, left_out),
            "taught_surer_than_left_out_auroc": round(auroc([a.prob for a in others], [a.prob for a in ours]), 3),
            "classes": {target: of_class(encoder, target, names, sorted(taught)) for target, names in texts.items()},
        }
    return {"left_out": missing, "also_taught_by_another_set": sorted(elsewhere & missing.keys()), "modes": modes}


def names_of_the_other_sets(data: Path) -> set[str]:
    """Return the class names of the other datasets of the training. They are trained too, so they are not new words."""
    coco, camvid = (
        read_json(data / name / "train" / "panoptic.json", "DATA")[0]["categories"] for name in ("coco_mini", "camvid")
    )
    table = load_labels("coco")
    camvid_labels = LabelSet.from_categories(camvid, str(data / "camvid"))
    return {table[c["id"]].target for c in coco if c["id"] in table} | {
        c.target for c in camvid_labels.classes.values()
    }


def nearness(
    encoder: SentenceEncoder, texts: dict[str, list[str]], chance: list[str], taught: list[str]
) -> dict[str, float]:
    """Return mean cosines to the true names, which are the keys of `texts`.

    The cosines are those of the predicted names and, for comparison, those of the names of other masks and of the most
    similar trained name.
    """
    predicted = mean(cosines(encoder, target, of_target) for target, of_target in texts.items())
    nearest = mean([cosines(encoder, target, taught).max()] * len(of_target) for target, of_target in texts.items())
    return {
        "similarity_to_the_true_name": round(predicted, 3),
        "similarity_of_names_said_of_other_masks": round(mean(cosines(encoder, t, chance) for t in texts), 3),
        "similarity_of_the_nearest_taught_name": round(nearest, 3),
    }


def of_class(encoder: SentenceEncoder, target: str, predicted: list[str], taught: list[str]) -> dict[str, Any]:
    """Summarize the predicted names of one class that was left out."""
    nearest = taught[int(cosines(encoder, target, taught).argmax())]
    return {
        "masks": len(predicted),
        "called": dict(Counter(predicted).most_common(5)),
        "similarity": round(float(np.mean(cosines(encoder, target, predicted))), 3),
        "nearest_taught": nearest,
        "called_the_nearest": predicted.count(nearest),
    }


def related(texts: dict[str, list[str]], labels: LabelSet, left_out: list[int]) -> dict[str, float] | str:
    """Return the shares of WordNet relations between predicted and true names, in percent.

    Without WordNet, return the reason as text.
    """
    try:
        lexicon = Lexicon(find_wordnet())
    except OsmError as error:
        return str(error)
    found = Counter(
        lexicon.judge(text, labels[key].names).relation for key in left_out for text in texts[labels[key].target]
    )
    return {relation: round(100 * found[relation] / found.total(), 1) for relation in RELATIONS}


def is_right(answer: Answer, labels: LabelSet) -> bool:
    """Return whether the predicted name is accepted by the published accuracy."""
    return answer.text in accepted_forms(labels[answer.category_id].names)


def share(flags: Iterable[bool]) -> float:
    """Return the share of true values, in percent."""
    return round(100 * float(np.mean(list(flags))), 1)


def mean(parts: Iterable[Any]) -> float:
    """Return the mean over all values of all parts."""
    return float(np.concatenate([np.asarray(part, dtype=float) for part in parts]).mean())


def cosines(encoder: SentenceEncoder, target: str, texts: list[str]) -> np.ndarray:
    """Return the cosine of each text with a name."""
    return (encoder.encode(texts) @ encoder.encode([target])[0]).numpy()


def table(document: dict[str, Any]) -> str:
    """Return the results as Markdown: a table of shares, and a table of the names of each class."""
    modes = document["modes"]
    lines = ["| excluded classes | own mode | `any` |", "|---|---|---|"]
    for key in [key for key in modes["own"] if key != "classes"]:
        cells = [written(modes[mode][key]) for mode in ("own", ANY_MODE)]
        lines.append(f"| {key.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    lines += ["", "| excluded | masks | names, own mode | names, `any` | nearest trained |", "|---|---|---|---|---|"]
    for target, own in modes["own"]["classes"].items():
        called = [
            ", ".join(f"{name} {count}" for name, count in modes[mode]["classes"][target]["called"].items())
            for mode in ("own", ANY_MODE)
        ]
        lines.append(f"| {target} | {own['masks']} | {called[0]} | {called[1]} | {own['nearest_taught']} |")
    return "\n".join(lines)


def written(value: Any) -> str:
    """Format a value as the text of a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {share}" for name, share in value.items() if share)
    return str(value)
