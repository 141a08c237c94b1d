#!/usr/bin/env python3
"""Makes a training dataset with regions and names from photos that have a class but no masks.

    python3 scripts/imagenet_regions.py PHOTOS OUT

PHOTOS contains one photo of each class of ImageNet-1k, `<WordNet id>_<name>.jpg`. Each photo gets three regions: the
salient region, where an ImageNet classifier finds the photo's class (class activation map, Zhou et al., CVPR 2016), the
box of this region, and an ellipse at its center. The names of a class are its own name, and an everyday name from
`scripts/ordinary_names.yaml` if there is one ("golden retriever", "dog"). The box has the own name and the salient
region has the everyday name. The ellipse has the own name in every second class. OUT/regions.json and OUT/images are
written in the annotation format `regions`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.measure import label  # noqa: E402

from benchmarks.everyday_names import everyday_name  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402
from osm.evaluation.metrics.wordnet import find_wordnet  # noqa: E402
from osm.files import read_yaml, write_atomically  # noqa: E402
from osm.io.images import read_rgb  # noqa: E402
from osm.io.segmentation import encode_rle, rle_box  # noqa: E402
from osm.models.weights import load_first, timm_state_dict  # noqa: E402

CLASSIFIER = "tf_efficientnet_lite2"
SIDE = 512  # pixels; the classifier's map then has 16 x 16 cells
SALIENT = 0.35  # cells with at least this share of the largest activation belong to the salient region
ELLIPSE = 0.6  # the ellipse's axes, as a share of the sides of the box
WORDNET = "3.0"  # the release whose offsets are ImageNet's class ids
NAMES = Path(__file__).with_name("ordinary_names.yaml")
_FILE = re.compile(r"(n\d{8})_(.+)\.jpe?g")


class Classifier:
    """An ImageNet classifier from timm, used for its class activation maps."""

    def __init__(self) -> None:
        import timm

        _, state = load_first(
            CLASSIFIER, "", lambda place: timm_state_dict(CLASSIFIER, place), hub_id=f"timm/{CLASSIFIER}"
        )
        self.model: Any = timm.create_model(CLASSIFIER).eval()
        self.model.load_state_dict(state)
        config = self.model.pretrained_cfg
        self.mean, self.std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def salient_region(self, image: Image.Image, number: int) -> np.ndarray:
        """Return the mask (H, W) of the region around the largest activation of class `number`."""
        pixels = torch.from_numpy(np.array(image.resize((SIDE, SIDE)))).permute(2, 0, 1)[None] / 255
        map_1Dhh = self.model.forward_features((pixels - self.mean) / self.std)
        activation_hh = torch.einsum("dhw,d->hw", map_1Dhh[0], self.model.classifier.weight[number]).relu()
        size = (image.height, image.width)
        activation_HW = F.interpolate(activation_hh[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        parts = label((activation_HW >= SALIENT * activation_HW.max()).numpy())
        return parts == parts.flat[int(activation_HW.argmax())]


def ellipse_in(box: list[float], size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of an ellipse at the center of a box (x, y, width, height)."""
    x, y, width, height = box
    rows, columns = np.ogrid[: size[0], : size[1]]
    vertical = (rows - y - height / 2) / (ELLIPSE * height / 2)
    horizontal = (columns - x - width / 2) / (ELLIPSE * width / 2)
    return vertical**2 + horizontal**2 <= 1


def photos_of(folder: Path) -> list[tuple[str, str, Path]]:
    """Return (WordNet id, class name, file) for each photo, in the order of ImageNet's classes.

    Raises:
        OsmError: the folder does not contain exactly one photo of each class.
    """
    found = sorted(
        (match[1], match[2].replace("_", " ").lower(), folder / name)
        for name in os.listdir(folder)
        if (match := _FILE.fullmatch(name))
    )
    classes = len({class_id for class_id, _, _ in found})
    if len(found) != 1000 or classes != 1000:
        raise OsmError(
            f"{folder}: {len(found)} photos of {classes} classes; expected one photo of each of the 1,000 classes of "
            "ImageNet-1k, named <WordNet id>_<name>.jpg, because the classifier's outputs are in the order of the ids"
        )
    return found


def make(photos: Path, out: Path) -> None:
    wordnet, table = find_wordnet(), read_yaml(NAMES, "table of names")
    if wordnet.version != WORDNET:
        raise OsmError(f"WordNet {wordnet.source} is release {wordnet.version}; the ids of ImageNet are from {WORDNET}")
    classifier, found = Classifier(), photos_of(photos)
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (class_id, own, path) in enumerate(found):
        image = read_rgb(path)
        name = f"{class_id}.jpg"
        shutil.copyfile(path, out / "images" / name)
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        everyday = everyday_name(wordnet, table, class_id) or own
        salient = encode_rle(classifier.salient_region(image, number))
        box = rle_box(salient)
        ellipse = encode_rle(ellipse_in(box, (image.height, image.width)))
        for shape, phrases in (
            ({"segmentation": salient}, [everyday, own]),
            ({"bbox": box}, [own, everyday]),
            ({"segmentation": ellipse}, [own, everyday] if number % 2 else [everyday, own]),
        ):
            phrases = list(dict.fromkeys(phrases))
            annotations.append({"id": len(annotations), "image_id": number, "phrases": phrases, **shape})
    write_atomically(out / "regions.json", [json.dumps({"images": images, "annotations": annotations})])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    return run_command(lambda _: make(args.photos, args.out), args)


if __name__ == "__main__":
    sys.exit(main())
