"""What a model calls classes of photos that it was not taught: `scripts/open_ended.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.labels import LabelSet, load_labels
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError
from osm.errors import shown as describe
from osm.evaluation.metrics import accepted_forms, normalize
from osm.evaluation.metrics.lexical import RELATIONS, Lexicon
from osm.evaluation.metrics.statistics import auroc
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.predict.records import read_set
from osm.files import read_json
from osm.recognition.similarity import SentenceEncoder

SET = "clothing"
AT_LEAST = 10  # val masks of a class that may be left out: a figure of fewer says nothing
RESULT = "open_ended.json"
PARTS = 2  # as scripts/osm_small.sh predicts


@dataclass(frozen=True)
class Answer:
    """One val mask in one mode."""

    category_id: int
    mode: str
    text: str
    prob: float


def segments(data: Path, split: str) -> Counter[int]:
    """How many masks of each category a split has."""
    document, _ = read_json(data / SET / split / "panoptic.json", "DATA")
    return Counter(
        s["category_id"] for a in document["annotations"] for s in a["segments_info"] if not s.get("iscrowd")
    )


def choose(data: Path, count: int, seed: int) -> list[int]:
    """The category ids that are left out."""
    often = sorted(key for key, masks in segments(data, "val").items() if masks >= AT_LEAST)
    if not 0 < count < len(often):
        raise OsmError(f"--classes {count}: {len(often)} classes have {AT_LEAST} val masks or more; fewer are needed")
    return sorted(np.random.default_rng(seed).choice(often, count, replace=False).tolist())


def answers(row: Dataset, out: Path) -> list[Answer]:
    """All val masks of the set, in both modes.

    Args:
        row: of the set, as the run's own table has it.
    """
    found = []
    for _, mask in read_set(row, out / "predictions", PARTS).counted():
        for mode, prediction in mask.predictions.items():
            if prediction.prob is None:
                raise OsmError(f"{out}: mask {describe(mask.id)} of {SET} has no prob in mode {mode!r}")
            found.append(Answer(mask.category_id, mode, normalize(prediction.name), prediction.prob))
    return found


def measure(data: Path, labels: LabelSet, left_out: list[int], found: list[Answer]) -> dict[str, Any]:
    """What is said of the classes left out and of the others, by mode."""
    encoder, shown = SentenceEncoder(), segments(data, "train")
    taught = {labels[key].target for key in shown if key not in left_out}
    elsewhere = names_of_the_other_sets(data)
    missing = {labels[key].target: shown[key] for key in left_out}
    modes = {}
    for mode in (SET, ANY_MODE):
        ours = [a for a in found if a.mode == mode and a.category_id in left_out]
        others = [a for a in found if a.mode == mode and a.category_id in shown and a.category_id not in left_out]
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
            "classes": {target: of_class(encoder, target, said, sorted(taught)) for target, said in texts.items()},
        }
    return {"left_out": missing, "also_taught_by_another_set": sorted(elsewhere & missing.keys()), "modes": modes}


def names_of_the_other_sets(data: Path) -> set[str]:
    """They are taught as well, so a word from there is not taken for a new one."""
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
    """Mean cosines to the true names (the keys of `texts`): of what was said, and what they are to be held against."""
    said = mean(cosines(encoder, target, of_target) for target, of_target in texts.items())
    nearest = mean([cosines(encoder, target, taught).max()] * len(of_target) for target, of_target in texts.items())
    return {
        "similarity_to_the_true_name": round(said, 3),
        "similarity_of_names_said_of_other_masks": round(mean(cosines(encoder, t, chance) for t in texts), 3),
        "similarity_of_the_nearest_taught_name": round(nearest, 3),
    }


def of_class(encoder: SentenceEncoder, target: str, said: list[str], taught: list[str]) -> dict[str, Any]:
    """What the masks of one class left out are called."""
    nearest = taught[int(cosines(encoder, target, taught).argmax())]
    return {
        "masks": len(said),
        "called": dict(Counter(said).most_common(5)),
        "similarity": round(float(np.mean(cosines(encoder, target, said))), 3),
        "nearest_taught": nearest,
        "called_the_nearest": said.count(nearest),
    }


def related(texts: dict[str, list[str]], labels: LabelSet, left_out: list[int]) -> dict[str, float] | str:
    """Shares of the relations of what is said to what it is, in percent, or why there are none."""
    try:
        lexicon = Lexicon(find_wordnet())
    except OsmError as error:
        return str(error)
    found = Counter(
        lexicon.judge(text, labels[key].names).relation for key in left_out for text in texts[labels[key].target]
    )
    return {relation: round(100 * found[relation] / found.total(), 1) for relation in RELATIONS}


def is_right(answer: Answer, labels: LabelSet) -> bool:
    return answer.text in accepted_forms(labels[answer.category_id].names)


def share(flags: Iterable[bool]) -> float:
    """Of a sequence of truths, in percent."""
    return round(100 * float(np.mean(list(flags))), 1)


def mean(parts: Iterable[Any]) -> float:
    """Over all that the parts hold."""
    return float(np.concatenate([np.asarray(part, dtype=float) for part in parts]).mean())


def cosines(encoder: SentenceEncoder, target: str, texts: list[str]) -> np.ndarray:
    """How near each text is to a name."""
    return (encoder.encode(texts) @ encoder.encode([target])[0]).numpy()


def table(document: dict[str, Any]) -> str:
    """Markdown: the shares, then what each class is called."""
    modes = document["modes"]
    lines = ["| classes left out | own mode | `any` |", "|---|---|---|"]
    for key in [key for key in modes["own"] if key != "classes"]:
        cells = [written(modes[mode][key]) for mode in ("own", ANY_MODE)]
        lines.append(f"| {key.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    lines += ["", "| left out | masks | called, own mode | called, `any` | nearest taught |", "|---|---|---|---|---|"]
    for target, own in modes["own"]["classes"].items():
        called = [
            ", ".join(f"{name} {count}" for name, count in modes[mode]["classes"][target]["called"].items())
            for mode in ("own", ANY_MODE)
        ]
        lines.append(f"| {target} | {own['masks']} | {called[0]} | {called[1]} | {own['nearest_taught']} |")
    return "\n".join(lines)


def written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {share}" for name, share in value.items() if share)
    return str(value)
