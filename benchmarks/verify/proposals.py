"""The check of the scores of proposals, with panopticapi, pycocotools and scikit-learn."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.evaluation import pq_compute_single_core
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import jaccard_score

from osm.datasets.table import Dataset
from verify.checks import EXACT, Checks
from verify.names import Sentences, clean, forms
from verify.truths import VOID, Truth, decoded, filled, read_truths, things_of

TOLERANCE = 1e-9  # quotients of pixel counts, and means of 101 precisions


@dataclass(frozen=True)
class Found:
    """A proposal with its class and score."""

    mask: np.ndarray
    category_id: int
    score: float


class ProposalJudge:
    """Recomputes the scores of the proposals of one dataset.

    Args:
        row: the dataset.
        sentences: the sentence embeddings for `--map nearest`, or None for `--map exact`.
    """

    def __init__(self, row: Dataset, sentences: Sentences | None) -> None:
        self.row = row
        self.sentences = sentences
        self.classes = [row.label_set.classes[i] for i in sorted(row.label_set.classes)]
        self.things = things_of(row)

    def check(self, checks: Checks, paths: Sequence[Path], mode: str, found: Mapping[str, Any]) -> None:
        """Compare the project's scores with the recomputed ones."""
        truths = read_truths(self.row)
        of_image, named = self._proposals(truths, paths, mode)
        if found["limit"] is not None:  # only the named images are scored
            truths = [truth for truth in truths if truth.key in named]
        drawn = [self._paint(truth, of_image[truth.key], found) for truth in truths]
        where = f"{paths[0].parent}/{self.row.name}_proposals_*_of_{len(paths)}.json, mode {mode}"
        if "panoptic" in found:
            self._check_quality(checks, where, truths, drawn, found["panoptic"])
        for key in ("mask_ap", "box_ap"):
            if key in found:
                self._check_precision(checks, f"{where}: {key}", key, truths, of_image, found[key])
        if "semantic" in found:
            self._check_overlap(checks, where, truths, drawn, found["semantic"])
        form = self.row.form
        expected = {
            "panoptic": form == "coco_panoptic",
            "mask_ap": form in ("coco_panoptic", "coco_instances"),
            "box_ap": form == "boxes",
            "semantic": form in ("coco_panoptic", "semantic", "parts"),
        }
        for key, there in expected.items():
            checks.same("proposals: which scores", f"{where}: {key}", key in found, there)

    def class_of(self, name: str) -> int | None:
        """Return the class of a predicted name."""
        said = clean(name)
        for label in self.classes:
            if said in label.names:
                return label.id
        for label in self.classes:
            if said and any(said in forms(own) for own in label.names):
                return label.id
        if not said or self.sentences is None:
            return None
        scored = [label for label in self.classes if label.id not in self.row.ignored_ids]
        owners = [(own, label.id) for label in scored for own in label.names]
        return max(owners, key=lambda pair: self.sentences.similarity(said, pair[0]))[1]  # type: ignore[union-attr]

    def _proposals(
        self, truths: list[Truth], paths: Sequence[Path], mode: str
    ) -> tuple[dict[Any, list[Found]], set[Any]]:
        """Return the proposals of every image by descending score, and the images that have proposals."""
        by_name = {truth.file_name: truth for truth in truths} | {str(truth.key): truth for truth in truths}
        found: dict[Any, list[Found]] = {truth.key: [] for truth in truths}
        named = set()
        for path in paths:
            for entry in json.loads(path.read_text(encoding="utf-8")):
                truth = by_name[entry["file_name"] if "file_name" in entry else str(entry["image_id"])]
                named.add(truth.key)
                if "open_end_pred" not in entry:
                    continue
                said = entry["open_end_pred"][mode]
                category_id = self.class_of(said["class"])
                if category_id is None or category_id in self.row.ignored_ids:
                    continue
                if self.row.form == "boxes":
                    mask = filled(entry["bbox"], truth.size)
                else:
                    mask = decoded(entry["segmentation"], truth.size)
                if mask.any():
                    score = float(entry.get("score", 1)) * min(1.0, float(said["prob"]))
                    found[truth.key].append(Found(mask, category_id, score))
        return {key: sorted(several, key=lambda one: -one.score) for key, several in found.items()}, named

    def _paint(
        self, truth: Truth, proposals: list[Found], options: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Paint proposals on a map. Return the map and the class of every segment."""
        drawn, classes = np.zeros(truth.size, np.int64), {}
        stuff: dict[int, int] = {}
        for number, one in enumerate(proposals, 1):
            free = one.mask & (drawn == VOID)
            own = one.mask & (drawn == stuff[one.category_id]) if one.category_id in stuff else free & False
            visible = free.sum() + own.sum()  # pixels of the same stuff class do not hide a mask
            if one.score < options["min_score"] or not visible or visible < options["overlap"] * one.mask.sum():
                continue
            place = number if one.category_id in self.things else stuff.setdefault(one.category_id, number)
            drawn[free] = place
            classes[place] = one.category_id
        return drawn, classes

    def _check_quality(
        self, checks: Checks, where: str, truths: list[Truth], drawn: list[Any], found: Mapping[str, Any]
    ) -> None:
        categories = {label.id: {"id": label.id, "isthing": int(label.id in self.things)} for label in self.classes}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            both = enumerate(zip(truths, drawn, strict=True))
            pairs = [_panoptic_files(Path(folder), k, truth, *painted) for k, (truth, painted) in both]
            counts = pq_compute_single_core(0, pairs, f"{folder}/true", f"{folder}/drawn", categories)
        for group, isthing in (("all", None), ("things", True), ("stuff", False)):
            chosen = {i: one for i, one in categories.items() if isthing is None or one["isthing"] == isthing}
            some = any(counts[i].tp + counts[i].fp + counts[i].fn for i in chosen)
            means = counts.pq_average(chosen, None)[0] if some else {"pq": None, "sq": None, "rq": None, "n": 0}
            for key in ("pq", "sq", "rq"):
                checks.same(f"proposals: {key.upper()} ({group})", where, found[group][key], means[key], TOLERANCE)
            checks.same("proposals: classes of PQ", f"{where}, {group}", found[group]["classes"], means["n"])
        for i in categories:
            own = {key: getattr(counts[i], key) for key in ("tp", "fp", "fn")}
            given = dict(found["by_class"].get(str(i), {"pq": None, "tp": 0, "fp": 0, "fn": 0}))
            weight = own["tp"] + own["fp"] / 2 + own["fn"] / 2
            at = f"{where}: class {i}"
            pq = counts[i].iou / weight if weight else None
            checks.same("proposals: PQ by class", at, given.pop("pq"), pq, TOLERANCE)
            checks.same("proposals: TP, FP, FN", at, given, own)

    def _check_precision(
        self,
        checks: Checks,
        where: str,
        key: str,
        truths: list[Truth],
        of_image: Mapping[Any, list[Found]],
        found: Mapping[str, Any],
    ) -> None:
        if found["protocol"] != "coco":
            return  # pycocotools has no LVIS protocol
        by_class = _average_precisions(truths, of_image, self.things)
        checks.same("proposals: classes of AP", where, sorted(found["by_class"]), sorted(map(str, by_class)))
        for i, (ap, _, _) in by_class.items():
            if str(i) in found["by_class"]:
                checks.same("proposals: AP by class", f"{where}, class {i}", found["by_class"][str(i)], ap, TOLERANCE)
        for place, name in enumerate(("ap", "ap50", "ap75")):
            mean = float(np.mean([values[place] for values in by_class.values()])) if by_class else None
            checks.same(f"proposals: {key} {name.upper()}", where, found[name], mean, TOLERANCE)

    def _check_overlap(
        self, checks: Checks, where: str, truths: list[Truth], drawn: list[Any], found: Mapping[str, Any]
    ) -> None:
        true, said = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for truth, (painted, classes) in zip(truths, drawn, strict=True):
            assert truth.map_HW is not None
            inside = truth.map_HW != VOID
            true.append(_classes(truth.map_HW[inside], {k: i for k, (i, _) in truth.segments.items()}))
            said.append(_classes(painted[inside], classes))
        y, p = np.concatenate(true), np.concatenate(said)
        ids = np.unique(y)
        values = jaccard_score(y, p, labels=ids, average=None, zero_division=0) if len(ids) else np.zeros(0)
        checks.same("proposals: classes of mIoU", where, sorted(found["by_class"]), sorted(str(i) for i in ids))
        for i, value in zip(ids, values, strict=True):
            given = found["by_class"].get(str(i))
            checks.same("proposals: IoU by class", f"{where}, class {i}", given, float(value), EXACT)
        checks.same("proposals: mIoU", where, found["miou"], float(values.mean()) if len(ids) else None, TOLERANCE)


def _classes(segments: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Return the class of each pixel; -1 without one."""
    kinds, places = np.unique(segments, return_inverse=True)
    return np.array([classes.get(int(kind), -1) for kind in kinds], np.int64)[places.ravel()]


def _panoptic_files(folder: Path, k: int, truth: Truth, drawn: np.ndarray, classes: Mapping[int, int]) -> Any:
    assert truth.map_HW is not None
    for kind, ids in (("true", truth.map_HW), ("drawn", drawn)):
        (folder / kind).mkdir(exist_ok=True)
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / kind / f"{k}.png")
    true = [
        {"id": i, "category_id": c, "iscrowd": int(crowd), "area": int((truth.map_HW == i).sum())}
        for i, (c, crowd) in truth.segments.items()
    ]
    said = [{"id": i, "category_id": c} for i, c in classes.items()]
    return tuple({"image_id": k, "file_name": f"{k}.png", "segments_info": segments} for segments in (true, said))


def _average_precisions(
    truths: list[Truth], of_image: Mapping[Any, list[Found]], things: set[int]
) -> dict[int, tuple[float, float, float]]:
    """Return (AP, AP50, AP75) of every class with a ground-truth mask, by pycocotools."""
    true: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for k, truth in enumerate(truths, 1):
        for mask, category_id, crowd in truth.instances:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            one = {"image_id": k, "category_id": category_id, "segmentation": rle, "iscrowd": int(crowd)}
            true.append({**one, "id": len(true) + 1, "area": int(mask.sum()), "bbox": [0, 0, 1, 1]})
        for found in of_image[truth.key]:
            if found.category_id in things:
                rle = coco_mask.encode(np.asfortranarray(found.mask.astype(np.uint8)))
                one = {"image_id": k, "category_id": found.category_id, "segmentation": rle}
                said.append({**one, "score": found.score})
    sizes = [{"id": k, "height": t.size[0], "width": t.size[1]} for k, t in enumerate(truths, 1)]
    kinds = sorted({one["category_id"] for one in true})
    if not kinds:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = {"images": sizes, "annotations": true, "categories": [{"id": i} for i in kinds]}
        truth_set.createIndex()
        kept = [one for one in said if one["category_id"] in kinds]
        results = COCO()
        results.dataset = {**truth_set.dataset, "annotations": [
            {**one, "id": k, "iscrowd": 0, "area": float(coco_mask.area(one["segmentation"])), "bbox": [0, 0, 1, 1]}
            for k, one in enumerate(kept, 1)
        ]}  # fmt: skip
        results.createIndex()
        run = COCOeval(truth_set, results, "segm")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]  # IoUs, recalls, classes; all areas; 100 masks
    values = {}
    for place, i in enumerate(run.params.catIds):
        of_class = precision[:, :, place]
        if (of_class > -1).any():
            values[i] = tuple(float(part.mean()) for part in (of_class, of_class[0], of_class[5]))
    return values  # type: ignore[return-value]
