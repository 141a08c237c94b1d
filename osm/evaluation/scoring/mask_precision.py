"""Mask average precision (AP) under the COCO and LVIS protocols, computed with `faster-coco-eval`.

The AP of a class is the precision averaged over 101 recall levels and the IoU thresholds 0.50, 0.55, ..., 0.95.

COCO uses the 100 highest-scoring masks per image and class. A crowd annotation counts neither as a true positive nor as
a false negative.

LVIS uses the 300 highest-scoring masks per image. In LVIS, a class is evaluated only in images that contain the class
or are verified not to contain it (`neg_category_ids`). In an image where a class is not exhaustively annotated
(`not_exhaustive_category_ids`), unmatched predictions of the class are not counted as false positives.

Shapes: H, W = height and width of an image; T = IoU thresholds, R = recall levels, K = classes, A = area ranges, M =
limits on the number of masks per image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osm.errors import OsmError
from osm.io.segmentation import encode_rle

_COCO_MASKS, _LVIS_MASKS = 100, 300
# Maximum number of (image, class) pairs per evaluation; `faster-coco-eval` keeps one object per pair in memory.
_PAIRS_AT_ONCE = 1_000_000
_AP50, _AP75 = 0, 5  # indices of the IoU thresholds


Mask = np.ndarray | Mapping[str, Any]
"""A bool array (H, W), or a compressed COCO RLE."""


@dataclass(frozen=True)
class Federated:
    """The classes that an LVIS image is verified not to contain, and the classes not exhaustively annotated in it."""

    absent: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


class MaskPrecision:
    """Collects the masks of all images as RLEs, from which `by_class` computes the average precision.

    Args:
        federated: True for the LVIS protocol, False for the COCO protocol.

    Raises:
        OsmError: `faster-coco-eval` is not installed.
    """

    def __init__(self, federated: bool = False) -> None:
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError:
            raise OsmError(
                "mask AP needs the package faster-coco-eval; install it with pip install faster-coco-eval, "
                "or skip AP with --without_ap"
            ) from None
        self.federated = federated
        self._images: list[dict[str, Any]] = []
        self._true: dict[int, list[dict[str, Any]]] = {}
        self._found: dict[int, list[dict[str, Any]]] = {}
        self._room = 0
        self._evaluated: set[int] = set()  # classes that are evaluated in the current image

    def add_image(self, size: tuple[int, int], about: Federated | None = None) -> None:
        """Start a new image; all masks added afterwards belong to it.

        Args:
            size: height and width of the image.
            about: the classes that LVIS declares absent or not exhaustively annotated in the image.
        """
        about = about or Federated()
        image = {"id": len(self._images) + 1, "height": size[0], "width": size[1]}
        lists = {"neg_category_ids": about.absent, "not_exhaustive_category_ids": about.not_exhaustive}
        self._images.append({**image, **{key: list(value) for key, value in lists.items()}})
        self._room = _LVIS_MASKS
        self._evaluated = set(about.absent)

    def add_truth(self, mask: Mask, category_id: int, crowd: bool = False) -> None:
        """Add a ground-truth mask of the current image."""
        self._evaluated.add(category_id)
        entry = self._entry(mask, category_id)
        # Boxes are required by `faster-coco-eval`, although it does not use them to evaluate masks.
        more = {"iscrowd": int(crowd), "area": _area(entry["segmentation"]), "bbox": [0, 0, 0, 0]}
        self._true.setdefault(category_id, []).append({**entry, **more})

    def add_found(self, mask: Mask, category_id: int, score: float) -> None:
        """Add a predicted mask. Add ground-truth masks first, then predicted masks in descending score order."""
        if self.federated:
            self._room -= 1
            # Masks of unevaluated classes are skipped, because `faster-coco-eval` fails on images with only such masks.
            if self._room < 0 or category_id not in self._evaluated:
                return
        self._found.setdefault(category_id, []).append({**self._entry(mask, category_id), "score": score})

    def _entry(self, mask: Mask, category_id: int) -> dict[str, Any]:
        rle = encode_rle(mask) if isinstance(mask, np.ndarray) else mask
        return {"image_id": len(self._images), "category_id": category_id, "segmentation": rle}

    def by_class(self) -> dict[int, tuple[float, float, float]]:
        """Return AP, AP at IoU 0.5 and AP at IoU 0.75 (0 to 1) of each class with at least one non-crowd annotation."""
        present = sorted(i for i, masks in self._true.items() if not all(mask["iscrowd"] for mask in masks))
        step = max(1, _PAIRS_AT_ONCE // max(1, len(self._images)))
        result: dict[int, tuple[float, float, float]] = {}
        for start in range(0, len(present), step):
            result.update(self._count(present[start : start + step]))
        return result

    def _count(self, categories: Sequence[int]) -> dict[int, tuple[float, float, float]]:
        from faster_coco_eval import COCO, COCOeval_faster

        # Ids start at 1, because `faster-coco-eval` uses the id 0 for "not matched".
        # The field `frequency` is required but ignored by `faster-coco-eval`.
        true = [{**mask, "id": k} for k, mask in enumerate(_of(self._true, categories), 1)]
        names = [{"id": i, "name": str(i), "frequency": "f"} for i in categories]
        truth = COCO({"images": self._images, "annotations": true, "categories": names}, print_function=_quiet)
        found = truth.loadRes(_of(self._found, categories))
        counting = COCOeval_faster(truth, found, "segm", print_function=_quiet, lvis_style=self.federated)
        if self.federated:
            counting.params.maxDets = [_LVIS_MASKS]
        assert counting.params.maxDets[-1] == (_LVIS_MASKS if self.federated else _COCO_MASKS)
        counting.evaluate()
        counting.accumulate()
        precision_TRKAM = np.asarray(counting.eval["precision"])
        ap_TK = precision_TRKAM[:, :, :, 0, -1].mean(1)
        return {
            i: (float(ap_TK[:, k].mean()), float(ap_TK[_AP50, k]), float(ap_TK[_AP75, k]))
            for k, i in enumerate(categories)
        }


def mean_precision(
    by_class: dict[int, tuple[float, float, float]], among: Callable[[int], bool] = lambda category_id: True
) -> dict[str, Any]:
    """Return `ap`, `ap50` and `ap75`, averaged over the classes that `among` selects (None if it selects no class).

    In the result, `classes` is the number of averaged classes.
    """
    found = [figures for i, figures in by_class.items() if among(i)]
    means = np.mean(found, axis=0).tolist() if found else [None] * 3
    return {**dict(zip(("ap", "ap50", "ap75"), means, strict=True)), "classes": len(found)}


def _area(rle: Mapping[str, Any]) -> int:
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    return int(coco_mask.area(rle))


def _of(masks: dict[int, list[dict[str, Any]]], categories: Collection[int]) -> list[dict[str, Any]]:
    return [dict(mask) for i in categories for mask in masks.get(i, ())]


def _quiet(*_: object) -> None:
    """Suppress the progress messages of `faster-coco-eval`."""
