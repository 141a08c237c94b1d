"""The check of the metrics of named masks, dataset by dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from verify.checks import EMBEDDED, EXACT, ROUNDED, Checks
from verify.files import Mask, read_masks
from verify.lexicon import RELATIONS, Lexicon
from verify.names import Sentences, clean, first_words_right, is_name, last_word_right, word_iou
from verify.statistics import Values, check_calibration, check_interval, most_frequent

_GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
Score = Callable[[str, Mask], float | None]


class Judge:
    """Recomputes the metrics of prediction files and compares them with the project's values.

    Args:
        lexicon: WordNet, or None if it is not installed.
        sentences: the sentence embeddings, or None if they are not installed.
    """

    def __init__(self, lexicon: Lexicon | None, sentences: Sentences | None) -> None:
        self.lexicon = lexicon
        self.sentences = sentences

    def check_set(
        self, checks: Checks, row: Dataset, paths: list[Path], found: Mapping[str, Any], frequencies: Mapping[int, str]
    ) -> None:
        """Check the project's values of one dataset.

        Args:
            checks: where the comparisons are recorded.
            row: the dataset.
            paths: its prediction files.
            found: the dataset's entry of the JSON file that the project wrote.
            frequencies: class id -> rare, common or frequent.
        """
        masks = read_masks(row, paths)
        where = f"{paths[0].parent}/{row.name}_pred_*_of_{len(paths)}.json"
        self._check_counts(checks, where, row, masks, found)
        for mode, key in ((row.name, "specific"), ("any", "agnostic")):
            named = [mask for mask in masks if mask.scored and mode in mask.predictions]
            place = f"{where}, mode {mode}"
            self._check_published(checks, place, row, named, mode, found[key])
            if metrics := found.get("metrics"):
                if not named:
                    checks.same("modes without predictions", place, key in metrics, False)
                    continue
                samples = metrics["bootstrap"]["samples"]
                self._check_metrics(checks, place, row, named, mode, metrics[key], samples, frequencies)

    def _check_counts(
        self, checks: Checks, where: str, row: Dataset, masks: list[Mask], found: Mapping[str, Any]
    ) -> None:
        crowd = sum(mask.crowd for mask in masks)
        without = sum(not mask.predictions and not mask.crowd for mask in masks)
        checks.same("masks not scored", f"{where}: crowd", found["crowd"], crowd)
        checks.same("masks not scored", f"{where}: without a prediction", found["without_prediction"], without)
        scored = [mask.category_id for mask in masks if mask.scored]
        if not scored:
            checks.same("majority class", where, found["majority_class"], None)
            return
        category_id, share = most_frequent(scored)
        own = {"category_id": category_id, "name": row.label_set[category_id].target}
        given = dict(found["majority_class"])
        checks.same("majority class", f"{where}: Acc", given.pop("acc"), share, EXACT)
        checks.same("majority class", where, given, own)

    def _check_published(
        self, checks: Checks, where: str, row: Dataset, named: list[Mask], mode: str, found: Mapping[str, Any]
    ) -> None:
        vocabulary = {name for label in row.label_set.classes.values() for name in label.names}
        right = sum(is_name(mask.predictions[mode][0], row.label_set[mask.category_id].names) for mask in named)
        outside = sum(clean(mask.predictions[mode][0]) not in vocabulary for mask in named)
        own = {"correct": right, "not_in_vocabulary": outside, "total": len(named)}
        for key, value in own.items():
            checks.same(f"published: {key}", where, found[key], value)
        for key, value in (("acc", right), ("niv", outside)):
            checks.same(f"published: {key}", where, found[key], value / len(named) if named else None, EXACT)

    def _check_metrics(
        self,
        checks: Checks,
        where: str,
        row: Dataset,
        named: list[Mask],
        mode: str,
        found: Mapping[str, Any],
        samples: int,
        frequencies: Mapping[int, str],
    ) -> None:
        if self.sentences:
            names = [name for label in row.label_set.classes.values() for name in label.names]
            self.sentences.prepare([*names, *(clean(mask.predictions[mode][0]) for mask in named)])
        all_images = tuple(dict.fromkeys(mask.image for mask in named))
        rates = dict(found["rates"])
        for key, score in self._scores(row, mode, frequencies).items():
            pairs = [(score(mask.predictions[mode][0], mask), mask.image) for mask in named]
            values = [float(value) for value, _ in pairs if value is not None]
            images = [image for value, image in pairs if value is not None]
            at, rate = f"{where}: {key}", rates.pop(key, None)
            if values:
                self._check_rate(checks, key, at, rate, Values(values, images, all_images), samples)
            elif rate is not None:
                nothing = {"value": None, "masks": 0, "images": 0, "interval": None}
                checks.same("metrics without masks", at, rate, nothing)
        checks.same("metrics that should not be there", where, sorted(rates), [])
        self._check_classes(checks, where, row, named, mode, found["classes"], samples)
        self._check_ece(checks, where, row, named, mode, found["calibration"])
        if self.lexicon:
            by_ending = sum(
                self.lexicon.by_ending(clean(mask.predictions[mode][0]), row.label_set[mask.category_id].names)
                for mask in named
            )
            checks.same("WordNet: names known by their endings", where, found["wordnet_by_head"], by_ending)

    def _check_rate(self, checks: Checks, key: str, where: str, rate: Any, values: Values, samples: int) -> None:
        if rate is None:
            checks.same(key, where, None, values.mean())
            return
        checks.same("masks of a metric", where, rate["masks"], len(values.values))
        checks.same("images of a metric", where, rate["images"], len(set(values.images)))
        tolerance = EMBEDDED if "similarity" in key else ROUNDED
        if checks.same(key, where, rate["value"], values.mean(key in ("acc", "niv")), tolerance):
            check_interval(checks, where, rate, values, samples)

    def _scores(self, row: Dataset, mode: str, frequencies: Mapping[int, str]) -> dict[str, Score]:
        vocabulary = {name for label in row.label_set.classes.values() for name in label.names}
        names = {i: label.names for i, label in row.label_set.classes.items()}

        def acc(said: str, mask: Mask) -> float:
            return float(is_name(said, names[mask.category_id]))

        scores: dict[str, Score] = {
            "acc": acc,
            "niv": lambda said, mask: float(clean(said) not in vocabulary),
            "semantic_iou": lambda said, mask: word_iou(said, names[mask.category_id][0]),
            "semantic_iou_best": lambda said, mask: max(word_iou(said, name) for name in names[mask.category_id]),
        }
        for key, part in (("full", is_name), ("head", last_word_right), ("modifiers", first_words_right)):
            scores[f"parts_of_names/{key}_right"] = lambda said, mask, part=part: (  # type: ignore[misc]
                float(part(said, names[mask.category_id])) if len(names[mask.category_id][0].split()) > 1 else None
            )
        if mode == "any":
            scores["either_vocabulary"] = lambda said, mask: (
                None if mask.names is None else float(is_name(said, [clean(name) for name in mask.names]))
            )
        scores |= self._similarities(names) | self._relations(names)
        for size, low, high in (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, float("inf"))):
            scores[f"acc/size/{size}"] = lambda said, mask, low=low, high=high: (  # type: ignore[misc]
                None if mask.area is None or not low <= mask.area < high else acc(said, mask)
            )
        for letter, group in _GROUPS.items():
            scores[f"acc/frequency/{letter}"] = lambda said, mask, group=group: (  # type: ignore[misc]
                acc(said, mask) if frequencies.get(mask.category_id) == group else None
            )
        return scores

    def _similarities(self, names: Mapping[int, tuple[str, ...]]) -> dict[str, Score]:
        model = self.sentences
        if model is None:
            return {}
        return {
            "semantic_similarity": lambda said, mask: model.similarity(clean(said), names[mask.category_id][0]),
            "semantic_similarity_best": lambda said, mask: max(
                model.similarity(clean(said), name) for name in names[mask.category_id]
            ),
        }

    def _relations(self, names: Mapping[int, tuple[str, ...]]) -> dict[str, Score]:
        lexicon = self.lexicon
        if lexicon is None:
            return {}
        scores: dict[str, Score] = {
            f"lexical/{relation}": lambda said, mask, relation=relation: float(  # type: ignore[misc]
                lexicon.relation(clean(said), names[mask.category_id]) == relation
            )
            for relation in RELATIONS
        }

        def wups(said: str, mask: Mask) -> float:
            return lexicon.wups(clean(said), names[mask.category_id])

        scores["wups_0.0"] = wups
        scores["wups_0.9"] = lambda said, mask: wups(said, mask) / (10 if wups(said, mask) < 0.9 else 1)
        return scores

    def _check_classes(
        self,
        checks: Checks,
        where: str,
        row: Dataset,
        named: list[Mask],
        mode: str,
        found: Mapping[str, Any],
        samples: int,
    ) -> None:
        by_class: dict[int, Values] = {}
        all_images = tuple(dict.fromkeys(mask.image for mask in named))
        for mask in named:
            value = float(is_name(mask.predictions[mode][0], row.label_set[mask.category_id].names))
            values = by_class.setdefault(mask.category_id, Values([], [], all_images))
            values.values.append(value)
            values.images.append(mask.image)
        checks.same("Acc by class: classes", where, sorted(found), sorted(map(str, by_class)))
        for category_id, values in by_class.items():
            if rate := found.get(str(category_id)):
                at = f"{where}: class {category_id}"
                checks.same("Acc by class: masks", at, rate["masks"], len(values.values))
                checks.same("Acc by class", at, rate["value"], values.mean(), ROUNDED)
                check_interval(checks, at, rate, values, samples)

    def _check_ece(
        self, checks: Checks, where: str, row: Dataset, named: list[Mask], mode: str, found: Mapping[str, Any]
    ) -> None:
        said = [(mask, *mask.predictions[mode]) for mask in named]
        sure = [(mask, name, prob) for mask, name, prob in said if prob is not None]
        checks.same("ECE: masks without prob", where, found["without_prob"], len(said) - len(sure))
        right = [int(is_name(name, row.label_set[mask.category_id].names)) for mask, name, _ in sure]
        check_calibration(checks, where, dict(found), right, [float(prob) for _, _, prob in sure])


def frequencies_of(row: Dataset) -> dict[int, str]:
    """Return the frequency groups in the label file of a dataset."""
    groups = {i: _GROUPS.get(label.frequency, "") for i, label in row.label_set.classes.items()}
    return {i: group for i, group in groups.items() if group}
