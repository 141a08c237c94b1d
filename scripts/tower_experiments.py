#!/usr/bin/env python3
"""Compares feature maps, input sizes and pooled regions of osm-small's frozen tower with a ridge probe.

    python3 scripts/tower_experiments.py DATA OUT

DATA contains coco_panoptic/ and coco_mini/, of which only `train` is read. Each mask is described by feature maps of
EfficientNet-lite2 (strides 8, 16 and 32, and the last layer before the classifier), which are averaged over the mask,
over its context box, over the image, and over the mask in a zoom window (`osm.models.zoom`). A ridge classifier is
trained on one fold of the photos and scored on the other (benchmarks/photo_folds.py). No LLM is involved, so the
figures measure what the features contain, not what a model answers. OUT keeps the features of each input size. The last
line of the output is a JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from sklearn.linear_model import RidgeClassifier  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torchvision.ops import roi_align  # noqa: E402

from benchmarks.page_tables import with_interval  # noqa: E402
from benchmarks.photo_folds import FOLDS, fold_of  # noqa: E402
from osm.datasets.table import Dataset  # noqa: E402
from osm.errors import run_command  # noqa: E402
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, differences  # noqa: E402
from osm.forms import split_of  # noqa: E402
from osm.io.resizing import fitted_size  # noqa: E402
from osm.models.masks import context_mask  # noqa: E402
from osm.models.weights import load_first, timm_state_dict  # noqa: E402
from osm.models.zoom import zoom_boxes  # noqa: E402

NAME = "tf_efficientnet_lite2"
SIZES = (896, 640)
MAPS = ("8", "16", "32", "head")
REGIONS = ("mask", "context", "image")
# region -> (side of the zoom window, by which share of its side it is larger than the mask's box); at SIZES[0] only
ZOOMS = {"zoom 256": (256, 0.5), "wide zoom 256": (256, 1.0), "zoom 384": (384, 0.5)}
ZOOM_MAPS = ("16", "32")
ALPHAS = (100.0, 300.0, 1000.0)
CONTEXT = 0.5  # the context box is this much larger than the mask's box, as in configs/osm_small.yaml
# title -> (input size, maps, regions). The first is osm-small's, which the others are compared with.
WANTED: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "strides 16 and 32, mask": (896, ("16", "32"), ("mask",)),
    "strides 16 and 32, mask, context and image": (896, ("16", "32"), REGIONS),
    "stride 32, mask": (896, ("32",), ("mask",)),
    "strides 8, 16 and 32, mask": (896, ("8", "16", "32"), ("mask",)),
    "last layer, mask": (896, ("head",), ("mask",)),
    "strides 16 and 32 and last layer, mask": (896, ("16", "32", "head"), ("mask",)),
    "strides 16 and 32, mask, input of 640 pixels": (640, ("16", "32"), ("mask",)),
    "strides 16 and 32, zoom window of 256 pixels only": (896, ("16", "32"), ("zoom 256",)),
    "strides 16 and 32, mask, zoom window of 256 pixels": (896, ("16", "32"), ("mask", "zoom 256")),
    "strides 16 and 32, mask, wider zoom window of 256 pixels": (896, ("16", "32"), ("mask", "wide zoom 256")),
    "strides 16 and 32, mask, both of these windows": (896, ("16", "32"), ("mask", "zoom 256", "wide zoom 256")),
    "strides 16 and 32, all regions, zoom window of 256 pixels": (896, ("16", "32"), (*REGIONS, "zoom 256")),
    "strides 16 and 32, mask, zoom window of 384 pixels": (896, ("16", "32"), ("mask", "zoom 384")),
}


class Maps:
    """The tower's feature maps, normalized over their channels as in `osm.models.towers.timm_tower`."""

    def __init__(self, size: int) -> None:
        import timm

        _, state = load_first(NAME, "", lambda place: timm_state_dict(NAME, place), hub_id=f"timm/{NAME}")
        self.model: Any = timm.create_model(NAME).eval()
        self.model.load_state_dict(state)
        self.size = size
        config = self.model.pretrained_cfg
        self.mean, self.std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def describe(self, image: Any, masks: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Return, for each mask (K, H, W), the mean of each map over each region, keyed by `map region`."""
        width, height = fitted_size(*image.size, self.size)
        canvas = torch.zeros(3, self.size, self.size)
        pixels = torch.from_numpy(np.array(image.resize((width, height)))).permute(2, 0, 1) / 255
        canvas[:, :height, :width] = (pixels - self.mean) / self.std
        last, maps = self.model.forward_intermediates(canvas[None], indices=[2, 3, 4])
        found = [F.layer_norm(one[0].permute(1, 2, 0), one.shape[1:2]) for one in maps] + [last[0].permute(1, 2, 0)]
        scaled = F.interpolate(torch.from_numpy(masks)[:, None].float(), (height, width))
        mask_K1SS = torch.zeros(len(masks), 1, self.size, self.size)
        mask_K1SS[:, :, :height, :width] = scaled
        whole = torch.zeros_like(mask_K1SS)
        whole[:, :, :height, :width] = 1
        regions = {"mask": mask_K1SS, "context": context_mask(mask_K1SS.bool(), CONTEXT).float(), "image": whole}
        described: list[dict[str, np.ndarray]] = [{} for _ in masks]
        for name, map_hhD in zip(MAPS, found, strict=True):
            for region, area_K1SS in regions.items():
                cover_KG = F.avg_pool2d(area_K1SS, self.size // len(map_hhD)).flatten(1)
                mean_KD = cover_KG @ map_hhD.flatten(0, 1) / cover_KG.sum(1, keepdim=True).clamp(min=1e-6)
                for one, mean_D in zip(described, mean_KD, strict=True):
                    one[f"{name} {region}"] = mean_D.numpy().copy()
        for zoom, (side, enlarge) in (ZOOMS if self.size == SIZES[0] else {}).items():
            boxes_K4 = zoom_boxes(mask_K1SS, enlarge)
            for one, mask_1SS, box_4 in zip(described, mask_K1SS, boxes_K4, strict=True):
                one.update({f"{name} {zoom}": mean for name, mean in self._zoomed(canvas, mask_1SS, box_4, side)})
        return described

    def _zoomed(
        self, canvas_3SS: torch.Tensor, mask_1SS: torch.Tensor, box_4: torch.Tensor, side: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name of each map, and its mean over the mask in a window with the given side."""
        window_13zz, mask_11zz = (
            roi_align(x[None], [box_4[None]], side, sampling_ratio=sampling, aligned=True)
            for x, sampling in ((canvas_3SS, -1), (mask_1SS, 2))
        )
        maps = self.model.forward_intermediates(window_13zz, indices=[3, 4], intermediates_only=True)
        for name, one in zip(ZOOM_MAPS, maps, strict=True):
            map_hhD = F.layer_norm(one[0].permute(1, 2, 0), one.shape[1:2])
            cover_G = F.avg_pool2d(mask_11zz, side // len(map_hhD)).flatten()
            yield name, (cover_G @ map_hhD.flatten(0, 1) / cover_G.sum().clamp(min=1e-6)).numpy().copy()


def features_of(data: Path, out: Path, size: int) -> dict[str, np.ndarray]:
    """Return the features of all masks (M, D), keyed by `map region`, and their `class`, `fold` and `image`."""
    path = out / f"described_{size}.npz"
    if not path.exists():
        maps, rows, images = Maps(size), [], 0
        for name in ("coco_panoptic", "coco_mini"):
            place = data / name / "train"
            files = {"image_dir": "images", "mask_dir": "panoptic", "json_file": "panoptic.json"}
            paths = {field: str(place / one) for field, one in files.items()}
            split = split_of(Dataset("coco", "coco_panoptic", "COCO", labels="coco", **paths))
            for index in range(len(split)):
                item = split.load(index)
                known = [k for k in range(len(item.annotations)) if item.mask(k).any()]
                described = maps.describe(item.image(), np.stack([item.mask(k) for k in known]))
                for k, one in zip(known, described, strict=True):
                    category = item.annotations[k][split.form.category_key]
                    rows.append({**one, "class": category, "fold": fold_of(item.image_path.name), "image": images})
                images += 1
                print(f"{size}: image {images}", file=sys.stderr, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{key: np.stack([row[key] for row in rows]) for key in rows[0]})  # type: ignore[arg-type]
        path.with_suffix(".tmp").rename(path)
    with np.load(path) as stored:
        return dict(stored)


def right_names(found: dict[str, np.ndarray], keys: list[str]) -> tuple[np.ndarray, float]:
    """Return whether each mask's class is found from the given features, and the best ridge strength."""
    inputs_MD = np.concatenate([found[key] for key in keys], 1)
    best: tuple[np.ndarray, float] | None = None
    for alpha in ALPHAS:
        right = np.zeros(len(inputs_MD))
        for fold in range(FOLDS):
            inside = found["fold"] == fold
            scaler = StandardScaler().fit(inputs_MD[~inside])
            probe = RidgeClassifier(alpha=alpha).fit(scaler.transform(inputs_MD[~inside]), found["class"][~inside])
            right[inside] = probe.predict(scaler.transform(inputs_MD[inside])) == found["class"][inside]
        if best is None or right.mean() > best[0].mean():
            best = right, alpha
    assert best is not None
    return best


def _main(args: argparse.Namespace) -> None:
    stored = {size: features_of(args.data, args.out, size) for size in SIZES}
    results: dict[str, Any] = {}
    first: ImageSums | None = None
    print("| features | Acc | difference from the first row |\n|---|---|---|")
    for title, (size, maps, regions) in WANTED.items():
        right, alpha = right_names(stored[size], [f"{one} {region}" for one in maps for region in regions])
        images = stored[size]["image"]
        sums = ImageSums(images, int(images.max()) + 1, {"acc": right})
        first = first or sums
        rate, versus = sums.rates(Bootstrap())["acc"], differences(first, sums, Bootstrap())["acc"]
        results[title] = {"acc": rate.as_json(), "difference": versus.as_json(), "alpha": alpha}
        change = with_interval(versus.as_json(), "+") if sums is not first else ""
        print(f"| {title} | {with_interval(rate.as_json())} | {change} |", flush=True)
    print(json.dumps({"tower": NAME, "results": results}))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    return run_command(_main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
