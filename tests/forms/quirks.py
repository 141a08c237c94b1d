"""Small sets of every form in the ways in which tools write them. A quirk changes a plain set's files or json.

Three pictures of 48 x 32 with two masks each. `Quirky.masks` are the masks that are right, by picture number and class.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from osm.datasets.table import Dataset

WIDTH, HEIGHT = 48, 32
SIZE = (HEIGHT, WIDTH)
CATEGORIES = [{"id": 1, "name": "sky"}, {"id": 2, "name": "car"}]
BOXES = {1: (2, 3, 20, 16), 2: (24, 8, 18, 20)}  # class -> x, y, width, height


@dataclass
class Quirky:
    """A set on disk.

    Attributes:
        form: of the dataset table. json: of the forms with one; `write` writes it.
        masks: what is right: (picture number, class name) -> mask. lost: annotations that are counted as lost.
    """

    form: str
    root: Path
    json: dict[str, Any] = field(default_factory=dict)
    masks: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    def write(self) -> None:
        if self.json:
            (self.root / "set.json").write_text(json.dumps(self.json))
        (self.root / "labels.json").write_text(json.dumps({"categories": CATEGORIES}))

    def row(self) -> Dataset:
        json_file = str(self.root / "set.json") if self.json else None
        maps = str(self.maps) if self.maps.exists() else None
        labels = "" if self.form == "regions" else json_file or str(self.root / "labels.json")
        return Dataset("mine", self.form, "Mine", labels, str(self.images), maps, json_file)

    def command(self, out: Path) -> list[str]:
        words = [self.form, "--output_dir", str(out), "--image_dir", str(self.images), "--num_workers", "1"]
        words += ["--max_bad_annotations", "0.5"]
        if self.json:
            words += ["--json_file", str(self.root / "set.json")]
        if self.maps.exists():
            words += ["--ann_dir", str(self.maps)]
        return words + (["--labels", str(self.root / "labels.json")] if self.form == "semantic" else [])

    def lose(self, reason: str, *keys: tuple[int, str]) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + 1
        for key in keys:
            del self.masks[key]


def pixels(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def box_mask(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    x, y, width, height = box
    mask[y : y + height, x : x + width] = True
    return mask


def polygon_of(box: tuple[int, int, int, int]) -> list[int]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    coded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(SIZE), "counts": coded["counts"].decode()}


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]).tolist()


def plain(form: str, root: Path) -> Quirky:
    """A set without quirks."""
    made = Quirky(form, root)
    made.images.mkdir(parents=True)
    names = {one["id"]: one["name"] for one in CATEGORIES}
    for number in range(3):
        pixels(number).save(made.images / f"{number}.png")
        for category, box in BOXES.items():
            made.masks[number, names[category]] = box_mask(box)
    if form in ("coco_instances", "boxes", "coco_panoptic", "regions"):
        made.json = {"images": [], "annotations": [], "categories": CATEGORIES}
        for number in range(3):
            image = {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
            made.json["images"].append(image)
            _annotate(made, number)
    else:
        made.maps.mkdir()
        for number in range(3):
            Image.fromarray(map_of()).save(made.maps / f"{number}.png")
    return made


def map_of() -> np.ndarray:
    """A label map of the two classes; 0 is no class."""
    ids = np.zeros(SIZE, np.uint8)
    for category, box in BOXES.items():
        ids[box_mask(box)] = category
    return ids


def panoptic_png(ids: dict[int, int]) -> Image.Image:
    """`ids`: class -> segment id."""
    values = np.zeros(SIZE, np.int64)
    for category, box in BOXES.items():
        values[box_mask(box)] = ids.get(category, 0)
    return Image.fromarray(np.stack([values % 256, values // 256 % 256, values // 65536], -1).astype(np.uint8))


def _annotate(made: Quirky, number: int) -> None:
    if made.form == "coco_panoptic":
        made.maps.mkdir(exist_ok=True)
        panoptic_png({1: 7, 2: 70000}).save(made.maps / f"{number}.png")
        segments = [{"id": 7, "category_id": 1, "iscrowd": 0}, {"id": 70000, "category_id": 2, "iscrowd": 0}]
        row = {"image_id": number, "file_name": f"{number}.png", "segments_info": segments}
        made.json["annotations"].append(row)
        return
    for category, box in BOXES.items():
        row = {"id": 10 * number + category, "image_id": number, "category_id": category, "iscrowd": 0}
        row |= {"bbox": list(box), "area": box[2] * box[3]}
        if made.form in ("coco_instances", "regions"):
            row["segmentation"] = [polygon_of(box)]
        if made.form == "regions":
            row["phrase"] = f" {CATEGORIES[category - 1]['name']}"
        made.json["annotations"].append(row)


# Quirks of jsons: of the first annotation (of picture 0, class sky) where nothing else is said.

Quirk = Callable[[Quirky], Any]


def _first(made: Quirky) -> dict[str, Any]:
    row: dict[str, Any] = made.json["annotations"][0]
    return row["segments_info"][0] if made.form == "coco_panoptic" else row  # type: ignore[no-any-return]


def _each(made: Quirky, change: Callable[[dict[str, Any]], None]) -> None:
    for row in made.json["annotations"]:
        change(row)


def _lose_first(reason: str, **changes: Any) -> Quirk:
    def quirk(made: Quirky) -> None:
        _first(made).update(changes)
        made.lose(reason, (0, "sky"))

    return quirk


def _segmentations(change: Callable[[dict[str, Any], np.ndarray], Any]) -> Quirk:
    def quirk(made: Quirky) -> None:
        _each(made, lambda row: row.update(segmentation=change(row, box_mask(BOXES[row["category_id"]]))))

    return quirk


def _crowd(**changes: Any) -> Quirk:
    def quirk(made: Quirky) -> None:
        _first(made).update(changes)
        del made.masks[0, "sky"]  # not named, and not lost

    return quirk


def _convert_images(ending: str, mode: str = "RGB", **options: Any) -> Quirk:
    def quirk(made: Quirky) -> None:
        for number in range(3):
            path = made.images / f"{number}.png"
            Image.open(path).convert(mode).save(path.with_suffix(ending), **options)
            if ending != ".png":
                path.unlink()
        for image in made.json.get("images", ()):
            image["file_name"] = f"{image['id']}{ending}"

    return quirk


def _grey_16_bits(made: Quirky) -> None:
    for number in range(3):
        grey = np.random.default_rng(number).integers(0, 65536, SIZE, dtype=np.uint16)
        Image.fromarray(grey).save(made.images / f"{number}.png")


def _exif(orientation: int, stored: tuple[int, int] = SIZE) -> Quirk:
    """Every picture is stored at a size, with an orientation; annotations keep their place."""

    def quirk(made: Quirky) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        for number in range(3):
            (made.images / f"{number}.png").unlink()
            pixels(number, stored).save(made.images / f"{number}.jpg", exif=exif)
        for image in made.json.get("images", ()):
            image["file_name"] = f"{image['id']}.jpg"

    return quirk


def _subfolders(made: Quirky) -> None:
    """Pictures of one name in three folders, with Windows' slashes in the json."""
    for image in made.json["images"]:
        folder = made.images / f"day{image['id']}"
        folder.mkdir()
        (made.images / image["file_name"]).rename(folder / "frame.1.png")
        image["file_name"] = f"day{image['id']}\\frame.1.png"


def _one_file_twice(made: Quirky) -> None:
    """A second image of the first file, with the first's annotations."""
    made.json["images"].append({**made.json["images"][0], "id": 3})
    rows = [row for row in made.json["annotations"] if row["image_id"] == 0]
    made.json["annotations"] += [{**row, "image_id": 3, "id": 100 + k} for k, row in enumerate(rows)]
    for name in ("sky", "car"):
        made.masks[3, name] = made.masks[0, name]


def _orphan(made: Quirky) -> None:
    made.json["annotations"].append({**made.json["annotations"][0], "image_id": 99})
    made.lose("annotation_without_image")


def _merged(made: Quirky) -> None:
    """Entries of images and categories twice, and a class without a name."""
    made.json["images"].append(dict(made.json["images"][1]))
    made.json["categories"] = [*CATEGORIES, dict(CATEGORIES[0]), {"id": 9, "name": ""}]


def _ids_as_texts(made: Quirky) -> None:
    for image in made.json["images"]:
        image["id"] = str(image["id"])
    for row in made.json["annotations"]:
        for part in row.get("segments_info", [row]):
            part["category_id"] = str(part["category_id"])


def _ids_as_floats(made: Quirky) -> None:
    for image in made.json["images"]:
        image["id"] = float(image["id"])
    for row in made.json["annotations"]:
        row["image_id"] = str(row["image_id"])


def _sizes(width: Any, height: Any) -> Quirk:
    return lambda made: [image.update(width=width, height=height) for image in made.json["images"]]


def _long_names(made: Quirky) -> None:
    for image in made.json["images"]:
        name = f"{'long' * 40}{image['id']}.png"
        (made.images / image["file_name"]).rename(made.images / name)
        image["file_name"] = name


def _bare_crowd(made: Quirky) -> None:
    """A crowd has nothing but its mark (in panoptic form its id), and NaN where it is read from a table."""
    part = _first(made)
    for name in ("category_id", "segmentation", "bbox"):
        part.pop(name, None)
    part.update(iscrowd=1, area=float("nan"))
    del made.masks[0, "sky"]


def _ids_twice_as_text(made: Quirky) -> None:
    """One image is listed again with its id as a text."""
    made.json["images"].append({**made.json["images"][1], "id": "1", "width": str(WIDTH)})


JSON_QUIRKS: dict[str, Quirk] = {
    "plain": lambda made: None,
    "ids as texts": _ids_as_texts,
    "ids as floats": _ids_as_floats,
    "sizes as texts": _sizes(str(WIDTH), f"{HEIGHT}.0"),
    "no sizes": _sizes(-1, None),
    "windows subfolders, one name": _subfolders,
    "one file twice": _one_file_twice,
    "an orphan": _orphan,
    "merged jsons": _merged,
    "a class that is null": _lose_first("category_unknown", category_id=None),
    "a class that is unknown": _lose_first("category_unknown", category_id=5),
    "a crowd that is true": _crowd(iscrowd=True),
    "a crowd that is a text": _crowd(iscrowd="1"),
    "no crowd, as a text": lambda made: _first(made).update(iscrowd="0"),
    "no crowd, false": lambda made: _first(made).update(iscrowd=False),
    "to be ignored": _crowd(ignore=1),
    "a crowd without its fields": _bare_crowd,
    "a crowd that is 2": _lose_first("annotation_malformed", iscrowd=2),
    "a crowd that is a word": _lose_first("annotation_malformed", iscrowd="perhaps"),
    "an image twice, once with a text": _ids_twice_as_text,
    "long names": _long_names,
}
PICTURE_QUIRKS: dict[str, Quirk] = {
    "webp": _convert_images(".webp", lossless=True),
    "bmp": _convert_images(".bmp"),
    "gif": _convert_images(".gif"),
    "tiff": _convert_images(".tif"),
    "rgba": _convert_images(".png", "RGBA"),
    "palette": _convert_images(".png", "P"),
    "16 bits": _grey_16_bits,
    "exif 6, annotated upright": _exif(6, (WIDTH, HEIGHT)),
    "exif 6, annotated raw": _exif(6),
    "exif 3": _exif(3),
}
INSTANCE_QUIRKS: dict[str, Quirk] = {
    "flat polygons": _segmentations(lambda row, mask: row["segmentation"][0]),
    "polygons of texts": _segmentations(lambda row, mask: [[str(v) for v in row["segmentation"][0]]]),
    "polygons of points": _segmentations(lambda row, mask: [np.reshape(row["segmentation"][0], (-1, 2)).tolist()]),
    "rle": _segmentations(lambda row, mask: rle_of(mask)),
    "rle in a list": _segmentations(lambda row, mask: [rle_of(mask)]),
    "rle as bytes in a text": _segmentations(
        lambda row, mask: {**rle_of(mask), "counts": str(rle_of(mask)["counts"].encode())}
    ),
    "runs as texts": _segmentations(lambda row, mask: {"size": list(SIZE), "counts": list(map(str, runs_of(mask)))}),
    "runs without the end": _segmentations(lambda row, mask: {"size": list(SIZE), "counts": runs_of(mask)[:-1]}),
    "a polygon of two points beside a good one": lambda made: _first(made)["segmentation"].append([1, 1, 5, 5]),
    "a polygon of two points": _lose_first("polygon_too_short", segmentation=[[1, 1, 5, 5]]),
    "a polygon with nan": _lose_first("polygon_not_numbers", segmentation=[[1, 1, float("nan"), 5, 9, 9]]),
    "no segmentation": _lose_first("annotation_without_mask", segmentation=None),
    "an rle of another size": _lose_first("rle_size", segmentation={"size": [3, 4], "counts": [12]}),
    "an rle that does not add up": _lose_first("rle_malformed", segmentation={"size": list(SIZE), "counts": [5]}),
    "an rle and nothing in a list": _segmentations(lambda row, mask: [rle_of(mask), []]),
    "an rle and a line in a list": _segmentations(lambda row, mask: [rle_of(mask), [1, 1, 5, 5]]),
    "polygons of x and y": _segmentations(
        lambda row, mask: [{"x": x, "y": y} for x, y in np.reshape(row["segmentation"][0], (-1, 2)).tolist()]
    ),
    "one list too many": _segmentations(lambda row, mask: [row["segmentation"]]),
    "json in a text": _segmentations(lambda row, mask: json.dumps(row["segmentation"])),
    "ids that are nan": lambda made: _each(made, lambda row: row.update(id=float("nan"), area=[float("nan")])),
    "boxes that are null": lambda made: _each(made, lambda row: row.update(bbox=None, area=float("nan"))),
}
BOX_QUIRKS: dict[str, Quirk] = {
    "boxes of texts": lambda made: _each(made, lambda row: row.update(bbox=list(map(str, row["bbox"])))),
    "a box of three": _lose_first("box_malformed", bbox=[1, 2, 3]),
    "no box": _lose_first("box_malformed", bbox=None),
    "a box of another kind": _lose_first("box_malformed", bbox_mode=0),
    "a box outside": _lose_first("box_outside", bbox=[WIDTH, 0, 9, 9]),
    "a box without area": _lose_first("box_empty", bbox=[3, 3, 0, 9]),
}


def _repaint(mode: str) -> Quirk:
    def quirk(made: Quirky) -> None:
        for path in made.maps.iterdir():
            rgb = Image.open(path)
            if mode == "P":
                rgb.quantize(8, dither=Image.Dither.NONE).save(path)
            else:
                ids = {1: 7, 2: 9} if mode == "L" else {1: 7, 2: 700}
                values = np.zeros(SIZE, np.uint8 if mode == "L" else np.uint16)
                for category, box in BOXES.items():
                    values[box_mask(box)] = ids[category]
                Image.fromarray(values).save(path)
                for row in made.json["annotations"]:
                    row["segments_info"][1]["id"] = ids[2]

    return quirk


def _by_index(made: Quirky) -> None:
    for path in made.maps.iterdir():
        ids = np.zeros(SIZE, np.uint8)
        for category, box in BOXES.items():
            ids[box_mask(box)] = {1: 7, 2: 9}[category]
        image = Image.fromarray(ids, "P")
        image.putpalette([(37 * k) % 256 for k in range(768)])
        image.save(path)
    for row in made.json["annotations"]:
        row["segments_info"][1]["id"] = 9


def _not_drawn(made: Quirky) -> None:
    panoptic_png({2: 70000}).save(made.maps / "0.png")
    made.lose("id_not_in_png", (0, "sky"))


PANOPTIC_QUIRKS: dict[str, Quirk] = {
    "png with a palette": _repaint("P"),
    "grey png": _repaint("L"),
    "grey png of 16 bits": _repaint("I;16"),
    "segment ids as texts": lambda made: _first(made).update(id="7"),
    "a segment id of 0": _lose_first("annotation_malformed", id=0),
    "a palette whose indices are the ids": _by_index,
    "area that is nan": lambda made: _first(made).update(area=float("nan")),
    "a segment that is not drawn": _not_drawn,
}


def _maps(kind: type, ending: str = ".png", ids: Callable[[np.ndarray], np.ndarray] = lambda ids: ids) -> Quirk:
    def quirk(made: Quirky) -> None:
        for path in list(made.maps.iterdir()):
            path.unlink()
            Image.fromarray(ids(map_of()).astype(kind)).save(path.with_suffix(ending))

    return quirk


def _unknown_id(made: Quirky) -> None:
    ids = map_of()
    ids[0, :] = 77
    Image.fromarray(ids).save(made.maps / "0.png")
    made.lost["id_not_in_labels"] = 1


MAP_QUIRKS: dict[str, Quirk] = {
    "plain": lambda made: None,
    "png of 16 bits": _maps(np.uint16),
    "tiff of 8 bits": _maps(np.uint8, ".tif"),
    "tiff of 16 bits": _maps(np.uint16, ".tiff"),
    "void as 255": _maps(np.uint8, ids=lambda ids: np.where(ids == 0, 255, ids)),
    "an id that the labels lack": _unknown_id,
}

QUIRKS: dict[str, dict[str, Quirk]] = {
    "coco_instances": {**JSON_QUIRKS, **PICTURE_QUIRKS, **INSTANCE_QUIRKS},
    "boxes": {**JSON_QUIRKS, **PICTURE_QUIRKS, **BOX_QUIRKS},
    "coco_panoptic": {**JSON_QUIRKS, **PICTURE_QUIRKS, **PANOPTIC_QUIRKS},
    "regions": {
        **{name: quirk for name, quirk in JSON_QUIRKS.items() if "class" not in name},
        **PICTURE_QUIRKS,
        **{name: quirk for name, quirk in INSTANCE_QUIRKS.items() if name != "no segmentation"},  # the box is meant
        "a phrase that is missing": _lose_first("phrase_missing", phrase=None),
        "phrases in a list": lambda made: _each(made, lambda row: row.update(phrases=[row.pop("phrase")])),
    },
    "semantic": {**MAP_QUIRKS, **PICTURE_QUIRKS},
}


def quirky(form: str, quirk: str, root: Path) -> Quirky:
    """A set with a quirk, written to disk."""
    shutil.rmtree(root, ignore_errors=True)
    made = plain(form, root)
    QUIRKS[form][quirk](made)
    made.write()
    return made
