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
from panoptic_pets import write_panoptic

from osm.errors import OsmError
from osm.evaluation.metrics.statistics import Bootstrap
from osm.training.run_config import parse

ROOT = Path(__file__).resolve().parents[2]
WANTED: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "scripts" / "experiments.yaml").read_text())


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiments, imagenet_regions = script("experiments"), script("imagenet_regions")
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
    assert wanted["why"] and set(wanted) <= {"why", "config", "set", "train", "imagenet", "halve_images", "versus"}
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
    words = shlex.split(run._train(wanted, 1, tmp_path / "run"))
    assert words[1] == "train/train.py"
    parsed = parse(words[2:])
    config, model = parsed.training, parsed.model
    assert config.views == 2 and set(config.used_sets) >= set(experiments.SOURCES)
    assert ("imagenet" in config.used_sets) == bool(wanted.get("imagenet"))
    assert name == "baseline" or model.bridge.direct_tokens == 4


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


def test_the_everyday_names_are_written_as_the_script_reads_them() -> None:
    table = yaml.safe_load((ROOT / "scripts" / "ordinary_names.yaml").read_text())
    synsets = [one for synsets in table.values() for one in synsets]
    assert len(synsets) == len(set(synsets)) and all(one[0] == "n" and len(one) == 9 for one in synsets)
    assert int(synsets[0][1:]) > 0 and all(name == " ".join(name.lower().split()) for name in table)
