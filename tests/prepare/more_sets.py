"""Sets beyond the nine, small, in the folders and files of their own releases; and a namer that is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_namer import FakeName, FakeNamer
from PIL import Image
from source_sets import folder

from osm.data.shards import RawSample, read_shard
from osm.prepare import convert

WIDTH, HEIGHT = 40, 30
SIZE = {"width": WIDTH, "height": HEIGHT}
SQUARE = [2, 2, 22, 2, 22, 22, 2, 22]  # 20 x 20 pixels


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    folder(path.parent)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, document: Any) -> Path:
    folder(path.parent)
    path.write_text(json.dumps(document))
    return path


def prepare(name: str, out: Path, *more: str, **paths: Path) -> int:
    flags = [word for flag, path in paths.items() for word in (f"--{flag}", str(path))]
    return convert.main(name, ["--output_dir", str(out), *flags, "--num_workers", "1", *more])


def samples(out: Path) -> dict[str, RawSample]:
    """By key, all of a folder's shards."""
    found = {}
    for shard in sorted(out.glob("*.tar")):
        for sample in read_shard(str(shard)):
            assert isinstance(sample, RawSample)
            found[sample.key] = sample
    return found


def documents(out: Path) -> dict[str, dict[str, Any]]:
    """The json members by key."""
    return {key: json.loads(sample.members["json"]) for key, sample in samples(out).items()}


def told(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


class RightNamer(FakeNamer):
    """Says what it was told of masks of that many pixels."""

    def __init__(self, by_area: Mapping[int, str], modes: Sequence[str] = ("any",)) -> None:
        super().__init__()
        self.by_area, self.modes = by_area, tuple(modes)

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: Sequence[str], **more: Any) -> Any:
        return [{mode: FakeName(self.by_area[int(mask.sum())], 0.5) for mode in modes} for mask in masks]


def visual_genome(root: Path) -> dict[str, Path]:
    """Two images, in the two folders of the release; region descriptions and objects."""
    top = folder(root / "visual_genome")
    picture(top / "VG_100K" / "1.jpg", 1)
    picture(top / "VG_100K_2" / "2.jpg", 2)
    regions = [
        {
            "id": number,
            "regions": [
                {"region_id": 10 * number, "image_id": number, "phrase": " The  Clock is green ", **_box(0, 0, 20, 20)},
                {"region_id": 10 * number + 1, "image_id": number, "phrase": "shade", **_box(5, 5, 30, 20)},
            ],
        }
        for number in (1, 2)
    ]
    objects = [
        {
            "image_id": 1,
            "image_url": "https://example.org/VG_100K/1.jpg",
            "objects": [
                {"object_id": 7, "x": 1, "y": 2, "w": 20, "h": 10, "names": ["Tree", "trees"], "synsets": ["tree.n.01"]}
            ],
        }
    ]
    return {
        "image_dir": top,
        "regions": write_json(top / "region_descriptions.json", regions),
        "objects": write_json(top / "objects.json", objects),
    }


def _box(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "width": width, "height": height}


def phrased(root: Path) -> dict[str, Path]:
    """A COCO-like json of pseudo-labels: two images; masks, boxes and a crowd."""
    top = folder(root / "pseudo")
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", **SIZE} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "phrase": "A red Mug", "segmentation": [SQUARE], "bbox": [2, 2, 20, 20]},
            {"id": 2, "image_id": 1, "phrases": ["old chair", "Chair"], "bbox": [10, 5, 25, 20]},
            {"id": 3, "image_id": 2, "caption": "a red mug", "segmentation": [], "bbox": [0, 0, 15, 15]},
            {"id": 4, "image_id": 2, "name": "people", "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    for number in (1, 2):
        picture(top / f"{number}.png", number)
    return {"image_dir": top, "json_file": write_json(top / "regions.json", document)}


def refcoco(root: Path) -> dict[str, Path]:
    """Three referring expressions of two masks; the second image is of val alone."""
    top = folder(root / "refcoco")
    names = {n: f"COCO_train2014_{n:012d}.jpg" for n in (1, 2)}
    for number, name in names.items():
        picture(top / "train2014" / name, number)
    instances = {
        "images": [{"id": n, "file_name": name, **SIZE} for n, name in names.items()],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "bbox": [2, 2, 20, 20], "iscrowd": 0},
            {"id": 12, "image_id": 2, "category_id": 1, "segmentation": [SQUARE], "bbox": [2, 2, 20, 20], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    sentences = [{"sent": "The left man", "raw": "The left man!"}, {"raw": "guy in blue"}]
    refs = [
        {"ref_id": 0, "ann_id": 11, "image_id": 1, "split": "train", "sentences": sentences},
        {"ref_id": 1, "ann_id": 11, "image_id": 1, "split": "train", "sentences": [{"sent": "him"}]},
        {"ref_id": 2, "ann_id": 12, "image_id": 2, "split": "val", "sentences": [{"sent": "woman"}]},
    ]
    return {
        "image_dir": top / "train2014",
        "json_file": write_json(top / "instances.json", instances),
        "refs_file": write_json(top / "refs.json", refs),
    }


def objects365(root: Path) -> dict[str, Path]:
    """Images of both parts of the release, below the folder that the json's names begin with."""
    top = folder(root / "objects365")
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg"]
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": 1, "name": "Person"}, {"id": 20, "name": "Cabinet/shelf"}]
    for number, name in enumerate(names, 1):
        picture(top / name, number)
        document["images"].append({"id": number, "file_name": name, "url": "", **SIZE})
        for category, box in ((20, [1.5, 2.0, 20.0, 15.0]), (1, [5.0, 5.0, 30.0, 20.0])):
            row = {"id": len(document["annotations"]), "image_id": number, "category_id": category, "bbox": box}
            document["annotations"].append({**row, "isfake": 0, "isreflected": 0, "iscrowd": 0, "area": 300.0})
    return {"image_dir": top, "json_file": write_json(top / "zhiyuan_objv2_train.json", document)}


def openimages(root: Path) -> dict[str, Path]:
    """Three masks, one of half its image's size, in folders by their first digit."""
    top = folder(root / "openimages")
    rows = [
        ("0a1b", "/m/0199g", "b1", (WIDTH, HEIGHT), (2, 2, 22, 22)),
        ("0a1b", "/m/01g317", "b2", (WIDTH // 2, HEIGHT // 2), (5, 5, 15, 15)),
        ("f00d", "/m/01g317", "b3", (WIDTH, HEIGHT), (0, 0, 30, 20)),
    ]
    lines = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    for image, label, box, size, area in rows:
        picture(top / "train" / f"{image}.jpg")
        name = f"{image}_{label.removeprefix('/').replace('/', '')}_{box}.png"
        mask = np.zeros((size[1], size[0]), bool)
        mask[area[1] : area[3], area[0] : area[2]] = True
        at = folder(top / "masks" / image[0]) / name
        Image.fromarray(mask).save(at)
        assert Image.open(at).mode == "1"
        lines.append(f'{name},{image},{label},{box},0.1,0.5,0.1,0.5,0.9,"0.1 0.2 1;0.3 0.4 0"')
    table = top / "train-annotations-object-segmentation.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    names = top / "class-descriptions-boxable.csv"
    names.write_text('/m/011k07,Tortoise\n/m/0199g,Bicycle\n/m/01g317,"Person, human"\n')
    return {"image_dir": top / "train", "ann_dir": top / "masks", "json_file": table, "labels": names}


def paco(root: Path) -> dict[str, Path]:
    top = folder(root / "coco")
    picture(top / "train2017" / "000000000007.jpg")
    document = {
        "images": [{"id": 7, "file_name": "train2017/000000000007.jpg", "neg_category_ids": [], **SIZE}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE], "bbox": [2, 2, 20, 20], "area": 400},
            {"id": 2, "image_id": 7, "category_id": 80, "segmentation": [SQUARE], "area": 400, "attribute_ids": [1]},
        ],
        "categories": [
            {"id": 3, "name": "car_(automobile)", "supercategory": "OBJECT"},
            {"id": 80, "name": "trash_can:rim", "supercategory": "PART", "synset": "rim.n.01"},
        ],
        "part_categories": [{"id": 1, "name": "rim"}],
        "attributes": [{"id": 1, "name": "black"}],
    }
    return {"image_dir": top, "json_file": write_json(top / "paco_lvis_v1_train.json", document)}
