"""The experiments of docs/experiments.md: folds, merged sets, the figures of finished runs, and the settings."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from everyday_names import everyday_name
from panoptic_pets import write_panoptic
from PIL import Image

from osm.datasets.labels import load_labels
from osm.errors import OsmError
from osm.evaluation.metrics.statistics import Bootstrap
from osm.io.segmentation import encode_rle
from osm.training import names_refit_cli
from osm.training.run_config import parse

KEYS = {"why", "config", "set", "train", "imagenet", "mosaics", "refit", "images", "versus"}
ROOT = Path(__file__).resolve().parents[2]
WANTED: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "scripts" / "experiments.yaml").read_text())
# The experiments with another number of embeddings of the direct path than 4.
TOKENS = {"shipped": 3, "slower_mosaics_light": 2, "all_sets_light": 2, "without_imagenet": 2, "less_imagenet": 2}
TOKENS |= {
    "known_names": 2,
    "known_or_other": 2,
    "known_three": 3,
    "known_classes": 3,
    "tight_windows": 3,
    "refitted": 3,
    "discriminant": 3,
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiments, imagenet_regions = script("experiments"), script("imagenet_regions")
imagenet_mosaics = script("imagenet_mosaics")
imagenet_classes = script("imagenet_classes")
merge_sets = script("merge_panoptic").merge_sets


def test_a_video_is_in_one_fold_and_photos_are_in_both() -> None:
    fold_of = experiments.fold_of
    for video in ("0001TP", "0006R0", "0016E5"):
        assert len({fold_of(f"{video}_{frame:05}.jpg") for frame in range(50)}) == 1
    assert {fold_of(f"{number:012}.jpg") for number in range(50)} == {0, 1}
    assert fold_of("000000000139.jpg") == fold_of("other/000000000139.png")


def test_merged_sets_keep_every_photo_with_its_own_segments(tmp_path: Path) -> None:
    rows = [write_panoptic(tmp_path / name) for name in ("one", "two")]
    folders = []
    for row in rows:
        folder = Path(str(row.json_file)).parent
        (folder / "panoptic").symlink_to(Path(str(row.mask_dir)))
        folders.append(folder)
    document = json.loads((folders[1] / "panoptic.json").read_text())
    for image in document["images"]:
        image["file_name"] = f"b{image['file_name']}"
        (folders[1] / "images" / image["file_name"]).write_bytes(b"")
    with pytest.raises(OsmError, match="two: the name 0.png also occurs in .*one"):
        merge_sets(folders, tmp_path / "collision")
    for row in document["annotations"]:
        row["file_name"] = f"b{row['file_name']}"
    (folders[1] / "panoptic.json").write_text(json.dumps(document))
    merge_sets(folders, tmp_path / "merged")
    merged = json.loads((tmp_path / "merged" / "panoptic.json").read_text())
    sources = [json.loads((folder / "panoptic.json").read_text()) for folder in folders]
    assert len(merged["images"]) == sum(len(source["images"]) for source in sources)
    assert [image["id"] for image in merged["images"]] == list(range(len(merged["images"])))
    names = {image["id"]: image["file_name"] for image in merged["images"]}
    segments = {names[row["image_id"]]: row["segments_info"] for row in merged["annotations"]}
    for source in sources:
        own = {image["id"]: image["file_name"] for image in source["images"]}
        for row in source["annotations"]:
            assert segments[own[row["image_id"]]] == row["segments_info"]
    assert (tmp_path / "merged" / "images" / names[0]).resolve().parent == (folders[0] / "images").resolve()
    merge_sets(folders, tmp_path / "merged")  # again
    document["categories"][0]["name"] = "another"
    (folders[1] / "panoptic.json").write_text(json.dumps(document))
    with pytest.raises(OsmError, match="the category id .* stands for .* and 'another'"):
        merge_sets(folders, tmp_path / "other")


@pytest.mark.parametrize("name", WANTED)
def test_every_experiment_is_a_config_of_the_command(name: str, tmp_path: Path) -> None:
    """Its settings differ from the baseline's, and train.py accepts them."""
    wanted, baseline = WANTED[name], WANTED["baseline"]
    assert wanted["why"] and set(wanted) <= KEYS and set(wanted.get("images", ())) <= set(experiments.IMAGES)
    assert wanted.get("versus", "baseline") in WANTED
    assert name == "baseline" or {k: v for k, v in wanted.items() if k != "why"} != {
        k: v for k, v in baseline.items() if k != "why"
    }
    run = experiments.Experiments(tmp_path, tmp_path, 10, tmp_path / "cache")
    (tmp_path / "sets").mkdir()
    for fold in range(experiments.FOLDS):
        for one in experiments.SOURCES:
            (tmp_path / f"{one}_{fold}_scored.json").write_text('{"categories": [{"id": 1, "name": "cat"}]}')
        (tmp_path / f"sets_{fold}.yaml").write_text(yaml.safe_dump({"datasets": run._rows(fold)}))
    if "refit" in wanted:
        again = shlex.split(run._refit(wanted, 1, tmp_path / "run"))
        assert again[1:4] == ["-m", "osm", "refit_names"]
        given = names_refit_cli.parser().parse_args(again[4:])
        assert [one.partition("=")[0] for one in given.shards] == list(experiments.IMAGES)
    words = shlex.split(run._train(wanted, 1, tmp_path / "run"))
    assert words[1] == "train/train.py"
    parsed = parse(words[2:])
    config, model = parsed.training, parsed.model
    assert config.views == 2 and set(config.used_sets) >= set(experiments.SOURCES)
    assert ("imagenet" in config.used_sets) == bool(wanted.get("imagenet"))
    assert name == "baseline" or model.bridge.direct_tokens == TOKENS.get(name, 4)


def test_the_figures_are_those_of_the_prediction_files(tmp_path: Path) -> None:
    """Two folds of one photo each and set: the means over masks, and the paired difference."""
    run = experiments.Experiments(tmp_path, tmp_path, 10, tmp_path / "cache")
    right = {"baseline": (1, 0, 1, 0), "direct": (1, 1, 1, 0)}
    for fold in range(2):
        for one in experiments.SOURCES:
            (tmp_path / f"{one}_{fold}_scored.json").write_text(
                json.dumps({"categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]})
            )
        (tmp_path / f"sets_{fold}.yaml").write_text(yaml.safe_dump({"datasets": run._rows(fold)}))
        for name, hits in right.items():
            folder = tmp_path / name / str(fold)
            folder.mkdir(parents=True)
            for one in experiments.SOURCES:
                segments = [
                    {
                        "id": k + 1,
                        "category_id": 1,
                        "open_end_pred": {
                            one: {"class": "person" if hits[2 * fold + k] else "dog", "prob": 0.5},
                            "any": {"class": "person", "prob": 0.5},
                        },
                    }
                    for k in range(2)
                ]
                entry = [{"image_id": fold, "file_name": "a.png", "segments_info": segments}]
                (folder / f"{one}_pred_0_of_1.json").write_text(json.dumps(entry))
    found = experiments.table_of(run, {name: {"why": ""} for name in ("baseline", "direct", "later")}, Bootstrap(50))
    assert list(found) == ["baseline", "direct"]
    for one in experiments.SOURCES:
        assert found["baseline"]["rates"][f"{one} own"]["value"] == 0.5
        assert found["direct"]["rates"][f"{one} own"]["value"] == 0.75
        assert found["direct"]["rates"][f"{one} any"] == {
            **found["direct"]["rates"][f"{one} any"],
            "value": 1,
            "masks": 4,
        }
        assert found["direct"]["differences"][f"{one} own"]["value"] == 0.25
    lines = experiments.lines_of(found)
    assert len(lines) == 4 and "+25.0" in lines[3] and lines[2].endswith("|  |")


# ImageNet's regions.


def test_everyday_names_are_the_nearest_above() -> None:
    class Above:
        def above(self, sense: int) -> dict[int, int]:
            return {sense: 0, 20: 1, 30: 2, 40: 5}

    table = {"animal": ["n00000040"], "dog": ["n00000030", "n00000099"], "car": ["n00000050"]}
    assert everyday_name(Above(), table, "n00000007") == "dog"
    assert everyday_name(Above(), {"car": ["n00000050"]}, "n00000007") is None
    assert everyday_name(Above(), {"pug": ["n00000007"], **table}, "n00000007") == "pug"


def test_the_ellipse_is_inside_its_box() -> None:
    mask = imagenet_regions.ellipse_in([10.0, 4.0, 40.0, 20.0], (30, 60))
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 20, 18, 42)
    assert mask.sum() == pytest.approx(np.pi * 6 * 12, rel=0.05)


def test_photos_of_other_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n01440764_tench.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(OsmError, match="1 photos of 1 classes; expected one photo of each of the 1,000 classes"):
        imagenet_regions.photos_of(tmp_path)


@pytest.mark.parametrize("name", ["ordinary_names", "coco_names"])
def test_the_everyday_names_are_written_as_the_scripts_read_them(name: str) -> None:
    table = yaml.safe_load((ROOT / "scripts" / f"{name}.yaml").read_text())
    synsets = [one for synsets in table.values() for one in synsets]
    assert len(synsets) == len(set(synsets)) and all(one[0] == "n" and len(one) == 9 for one in synsets)
    assert int(synsets[0][1:]) > 0 and all(name == " ".join(name.lower().split()) for name in table)


class Above:
    """A WordNet in which every class is directly below the synset with its own number."""

    def above(self, sense: int) -> dict[int, int]:
        return {sense: 0}


def test_mosaics_show_each_photo_with_its_salient_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven photos of one color each, of which one has no name and three have the same, of which two are used."""
    colors = [(20 * number + 20, 255 - 20 * number, 90) for number in range(11)]
    (tmp_path / "regions" / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, color in enumerate(colors):
        size = (64, 32) if number % 2 else (30, 60)
        photo = Image.new("RGB", size, (0, 0, 0))
        photo.paste(color, (4, 8, 24, 28))
        name = f"n{number:08d}.png"
        photo.save(tmp_path / "regions" / "images" / name)
        images.append({"id": 50 + number, "file_name": name, "width": size[0], "height": size[1]})
        inside = np.zeros((size[1], size[0]), bool)
        inside[8:28, 4:24] = True
        rows = [{"bbox": [0, 0, 5, 5]}, {"segmentation": encode_rle(inside)}, {"segmentation": encode_rle(~inside)}]
        annotations += [{"id": len(annotations) + k, "image_id": 50 + number, **row} for k, row in enumerate(rows)]
    (tmp_path / "regions" / "regions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "coco").mkdir()
    categories = [{"id": 100 + number, "name": f"name {number}"} for number in range(11)]
    (tmp_path / "coco" / "panoptic.json").write_text(json.dumps({"categories": categories}))
    table = {f"name {number}": [f"n{number:08d}"] for number in range(9) if number not in (4, 5)}
    table["name 3"] += ["n00000004", "n00000005"]
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(imagenet_mosaics, "NAMES", tmp_path / "names.yaml")
    monkeypatch.setattr(imagenet_mosaics, "find_wordnet", Above)
    monkeypatch.setattr(imagenet_mosaics, "MOST", 2)
    monkeypatch.setattr(imagenet_mosaics, "ROWS", 2)
    imagenet_mosaics.make(tmp_path / "regions", tmp_path / "coco", tmp_path / "out")

    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    shown: list[tuple[int, int]] = []
    for image, row in zip(document["images"], document["annotations"], strict=True):
        assert image["id"] == row["image_id"]
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as opened:
            picture_HW3 = np.array(opened)
        with Image.open(tmp_path / "out" / "panoptic" / row["file_name"]) as opened:
            ids_HW = (np.array(opened).astype(int) * [1, 256, 65536]).sum(-1)
        assert ids_HW.shape == picture_HW3.shape[:2] == (image["height"], image["width"]) == (640, 640)
        assert set(np.unique(ids_HW)) == {0, *(segment["id"] for segment in row["segments_info"])}
        for segment in row["segments_info"]:
            inside = ids_HW == segment["id"]
            ys, xs = np.nonzero(inside)
            assert segment["area"] == inside.sum() and segment["iscrowd"] == 0
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert segment["bbox"] == box and box[2] == pytest.approx(box[3], abs=2)
            assert np.median(np.abs(picture_HW3[inside] - picture_HW3[inside].mean(0))) < 4
            color = np.median(picture_HW3[inside], 0)
            [nearest] = [k for k, one in enumerate(colors) if np.abs(color - one).max() < 6]
            shown.append((segment["category_id"] - 100, nearest))
    named = {number: 3 if number in (4, 5) else number for number in range(9)}
    assert all(category == named[photo] for category, photo in shown)
    assert sorted(category for category, _ in shown) == [0, 1, 2, 3, 3, 6, 7, 8]
    assert len(document["images"]) == 2 and document["categories"] == categories
    table["another"] = ["n00000009"]
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(OsmError, match="'another' is not the name of a category of COCO panoptic"):
        imagenet_mosaics.make(tmp_path / "regions", tmp_path / "coco", tmp_path / "again")


def test_the_classes_of_imagenet_have_the_names_that_are_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the repository follows the order of timm's classes, and the classes below a synset share its name."""
    names = json.loads((ROOT / "scripts" / "imagenet_classes.json").read_text())
    taught = {label.target for label in load_labels("coco").classes.values()}
    assert len(names) == 1000 and {*names} - {""} <= taught
    assert [names[index] for index in (151, 281, 468, 0, 950)] == ["dog", "cat", "car", "", "orange fruit"]
    monkeypatch.setattr(imagenet_classes, "find_wordnet", Above)
    monkeypatch.setattr(
        imagenet_classes, "read_yaml", lambda *_: {"tv": ["n02085620"], "sky-other-merged": ["n02110185"]}
    )
    found = imagenet_classes.class_names({"tv": 72, "sky-other-merged": 187})
    assert {index: name for index, name in enumerate(found) if name} == {151: "tv", 250: "sky"}
