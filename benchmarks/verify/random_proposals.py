"""Random datasets with images, ground truth and named proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from verify.random_sets import PREDICTED_FORMS, RandomSets

_MAPS = ("semantic", "parts")


class RandomProposals:
    """Random proposals for the classes and names of `RandomSets`."""

    def __init__(self, sets: RandomSets, seed: int) -> None:
        self.sets = sets
        self.random = np.random.default_rng(seed)

    def write(self, root: Path, name: str) -> dict[str, Any]:
        """Write a dataset and its named proposals, and return its row of the dataset YAML."""
        draw = self.random
        form = str(draw.choice(PREDICTED_FORMS))
        categories = self.sets.labels()[:8]
        if form == "parts":  # 0 is no part, and an 8-bit map ends at 255
            categories = [{**one, "id": k + 1} for k, one in enumerate(categories)]
        folder = root / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        proposals: list[dict[str, Any]] = []
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for number in range(1, int(draw.integers(1, 6)) + 1):
            size = int(draw.integers(8, 40)), int(draw.integers(8, 40))
            Image.new("RGB", size[::-1], (90, 100, 200)).save(folder / "images" / f"{number}.png")
            document["images"].append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
            masks = self._truth(folder, form, document, number, size, categories)
            if draw.random() < 0.9:
                proposals += self._proposals(name, form, number, size, masks, categories)
        if not proposals:
            proposals += self._proposals(name, form, 1, size_of(document, 1), [], categories)
        (folder / "labels.json").write_text(json.dumps(document), encoding="utf-8")
        out = root / "predictions" / f"{name}_proposals_0_of_1.json"
        out.write_text(json.dumps(proposals), encoding="utf-8")
        row: dict[str, Any] = {"form": form, "labels": f"{name}/labels.json", "image_dir": f"{name}/images"}
        if form not in _MAPS:
            row["json_file"] = f"{name}/labels.json"
        if form not in ("coco_instances", "boxes"):
            row["mask_dir"] = f"{name}/masks"
        if draw.random() < 0.3 and len(categories) > 1:
            row["ignored_ids"] = [categories[0]["id"]]
        return row

    def _rectangle(self, size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(size, bool)
        (y, x), (h, w) = self.random.integers(0, size), self.random.integers(1, np.array(size))
        mask[y : y + h, x : x + w] = True
        return mask

    def _truth(
        self, folder: Path, form: str, document: Any, number: int, size: tuple[int, int], categories: list[Any]
    ) -> list[tuple[np.ndarray, Any]]:
        """Write the ground truth of an image, and return its masks with their classes."""
        draw = self.random
        kinds = [categories[int(draw.integers(len(categories)))] for _ in range(int(draw.integers(1, 7)))]
        masks = [(self._rectangle(size), kind) for kind in kinds]
        if form in ("coco_instances", "boxes"):
            for mask, kind in masks:
                crowd = int(draw.random() < 0.1)
                one = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": kind["id"]}
                box = [float(v) for v in coco_mask.toBbox(_rle(mask))]
                shape = {"segmentation": _text(mask)} if form == "coco_instances" else {}
                document["annotations"].append(one | shape | {"bbox": box, "area": int(mask.sum()), "iscrowd": crowd})
            return masks
        void = 65535 if form == "semantic" else 0
        ids = np.full(size, void, np.int64)
        segments, crowds = [], set()
        for k, (mask, kind) in enumerate(masks, 1):
            ids[mask] = kind["id"] if form in _MAPS else k * 300
            crowd = bool(draw.random() < 0.15) and kind["id"] not in crowds
            crowds |= {kind["id"]} if crowd else set()
            segments.append({"id": k * 300, "category_id": kind["id"], "iscrowd": int(crowd)})
        if form in _MAPS:
            pixels = ids.astype(np.uint16 if form == "semantic" else np.uint8)
            Image.fromarray(pixels).save(folder / "masks" / f"{number}.png")
            return masks
        there = [one for one in segments if (ids == one["id"]).any()]
        listed = there[:-1] if len(there) > 1 and draw.random() < 0.2 else there  # other ids of the PNG are void
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "masks" / f"{number}.png")
        entry = {"image_id": number, "file_name": f"{number}.png", "segments_info": listed}
        document["annotations"].append(entry)
        drawn = [(ids == one["id"], kind) for one, (_, kind) in zip(segments, masks, strict=True)]
        return [(mask, kind) for mask, kind in drawn if mask.any()]

    def _proposals(
        self,
        name: str,
        form: str,
        number: int,
        size: tuple[int, int],
        masks: list[tuple[np.ndarray, Any]],
        categories: list[Any],
    ) -> list[dict[str, Any]]:
        draw, found = self.random, []
        for _ in range(int(draw.integers(1, 12))):
            near = bool(masks) and draw.random() < 0.7
            own = masks[int(draw.integers(len(masks)))] if near else None
            mask = self._rectangle(size) if own is None else np.roll(own[0], draw.integers(-2, 3, 2), (0, 1))
            kind = categories[int(draw.integers(len(categories)))] if own is None else own[1]
            said = {"class": self.sets.name(categories, kind), "prob": float(draw.random())}
            if draw.random() < 0.6:
                said["class"] = kind["name"]
            one: dict[str, Any] = {"image_id": number} if form not in _MAPS else {"file_name": f"{number}.png"}
            one |= {"segmentation": _text(mask), "open_end_pred": {name: said, "any": {**said, "class": kind["name"]}}}
            if form == "boxes":
                one["bbox"] = [float(v) + float(draw.choice((0, 0, 0.25))) for v in coco_mask.toBbox(_rle(mask))]
            if draw.random() < 0.8:
                one["score"] = float(draw.random())
            if draw.random() < 0.05:
                del one["open_end_pred"]
            found.append(one)
        return found


def size_of(document: Any, number: int) -> tuple[int, int]:
    """Return height and width of an image."""
    return next((one["height"], one["width"]) for one in document["images"] if one["id"] == number)


def _rle(mask: np.ndarray) -> Any:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def _text(mask: np.ndarray) -> dict[str, Any]:
    rle = _rle(mask)
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode()}
