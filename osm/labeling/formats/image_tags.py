"""The names in each image with their shares of the image, as prompts for other tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osm.files import write_atomically
from osm.labeling.formats.label_format import Holds, LabeledImage, LabeledImages, LabelFormat, LabelShape


class ImageTags(LabelFormat):
    """One JSON line per image: its names, and all of them as the prompt of an open-vocabulary detector."""

    name, title = "tags", "names of each image"
    output = "tags.jsonl"
    holds = Holds(masks=False)
    reads = False

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "tags.jsonl", cls._lines(labels))

    @classmethod
    def _lines(cls, labels: LabeledImages) -> Iterator[str]:
        for image in labels.images:
            tags = image_tags(image)
            prompt = " ".join(f"{tag['name']}." for tag in tags)
            document = {"image": image.file_name, "tags": tags, "prompt": prompt}
            yield json.dumps(document, ensure_ascii=False) + "\n"


def image_tags(image: LabeledImage) -> list[dict[str, Any]]:
    """Return the names of an image by descending share of its pixels.

    Returns:
        for each name, the number of its masks, the share of the image that they cover, and their highest probability.
    """
    groups: dict[str, list[LabelShape]] = {}
    for shape in image.shapes:
        groups.setdefault(shape.name, []).append(shape)
    pixels = image.size[0] * image.size[1]
    tags = []
    for name, shapes in groups.items():
        covered = np.zeros(image.size[::-1], bool)
        for shape in shapes:
            covered |= shape.mask
        prob = max(shape.prob for shape in shapes)
        share = round(float(covered.sum()) / pixels, 6)
        tags.append({"name": name, "masks": len(shapes), "share": share, "prob": prob})
    return sorted(tags, key=lambda tag: (-tag["share"], tag["name"]))
