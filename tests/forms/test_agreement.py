"""Converter, training and evaluation read every set alike: the same masks bitwise, the same names, the same counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from quirks import HEIGHT, QUIRKS, WIDTH, Quirky, quirky

from osm.data.shards import RawSample, read_shard
from osm.datasets.table import Dataset
from osm.forms import Form, read_sample, split_of
from osm.forms.base import LOSSES
from osm.io.views import View
from osm.prepare.convert import prepare

CASES = [(form, quirk) for form, quirks in QUIRKS.items() for quirk in quirks]
WHOLE = View(WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT, False)
Masks = dict[tuple[int, str], bytes]


def packed(mask: np.ndarray) -> bytes:
    assert mask.shape == (HEIGHT, WIDTH)
    return np.packbits(mask).tobytes()


def samples(folder: Path, row: Dataset) -> dict[int, tuple[Form, dict[str, Any]]]:
    """The samples of a converted set by the number of their picture."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        for raw in read_shard(str(shard)):
            assert isinstance(raw, RawSample), raw
            document = json.loads(raw.members["json"])
            sample = read_sample(row.form, raw.members, row.label_set, row.rules)
            found[number_of(document)] = sample, document
    return found


def number_of(document: dict[str, Any]) -> int:
    if "image_id" in document:
        return int(document["image_id"])
    return int(Path(document["file_name"]).stem)


@pytest.mark.parametrize(("form", "quirk"), CASES, ids=[f"{form}-{quirk}" for form, quirk in CASES])
def test_all_three_agree(form: str, quirk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = quirky(form, quirk, tmp_path / "set")
    row = made.row()
    right = {key: packed(mask) for key, mask in made.masks.items()}
    for layout in ("webdataset", "published"):
        out = tmp_path / layout
        assert prepare([*made.command(out), "--format", layout]) == 0, capsys.readouterr().err
        written = json.loads((out / "summary.json").read_text())
        assert {reason: n for reason, n in written["warnings"].items() if reason in LOSSES} == made.lost
        assert written["left_out"] == {}
        if layout == "webdataset":
            converted = samples(out, row)
            assert trained_on(converted) == right
            assert form == "regions" or listed(converted) == right  # they have no classes there
            seen = {number: np.asarray(sample.image()) for number, (sample, _) in converted.items()}
    evaluated, counts, pictures = evaluation(made, row)
    assert evaluated == right
    assert counts == made.lost
    for number, picture in pictures.items():
        np.testing.assert_array_equal(picture, seen[number])
    assert all(picture.std() > 20 for picture in pictures.values()), "neither black nor white"


def trained_on(converted: dict[int, tuple[Form, dict[str, Any]]]) -> Masks:
    """What training may draw, by picture and name."""
    found: Masks = {}
    for number, (sample, _) in converted.items():
        for segment in sample.pick(WHOLE, 100, np.random.default_rng(0), fixed_view=True):
            found[number, sample.target(segment, np.random.default_rng(0))] = packed(segment.mask)
    return found


def listed(converted: dict[int, tuple[Form, dict[str, Any]]]) -> Masks:
    """The targets of the samples."""
    return {
        (number, sample.labels[target.category_id].target): packed(target.draw())
        for number, (sample, _) in converted.items()
        for target in sample.targets()
        if target.draw().any()
    }


def evaluation(made: Quirky, row: Dataset) -> tuple[Masks, dict[str, int], dict[int, np.ndarray]]:
    """What a val split names, what it lost, and the pictures it looks at."""
    split = split_of(row, max_bad_annotations=0.5)
    found: Masks = {}
    counts, pictures = Counter(split.listing.losses.counts), {}
    for index in range(len(split)):
        entry, item = split.entries[index], split.load(index)
        number = number_of(entry.record)
        pictures[number] = np.asarray(item.image())
        counts.update(split.read(index)[2].counts)
        key = split.form.category_key
        for k, annotation in enumerate(item.annotations):
            if item.mask(k).any():
                found[number, row.label_set[int(annotation[key])].target] = packed(item.mask(k))
    return found, {reason: n for reason, n in counts.items() if reason in LOSSES}, pictures


def test_an_upright_annotation_lies_where_it_lies_upright(tmp_path: Path) -> None:
    """A bright square in the stored picture, annotated in the upright one, is under its mask after conversion."""
    made = quirky("coco_instances", "exif 6, annotated upright", tmp_path / "set")
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    upright[made.masks[0, "sky"]] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(made.images / "0.jpg", exif=exif, quality=95)  # 6: shown turned clockwise
    assert prepare(made.command(tmp_path / "out")) == 0
    sample = samples(tmp_path / "out", made.row())[0][0]
    shown = np.asarray(sample.image()).mean(-1)
    assert shown[made.masks[0, "sky"]].min() > 150 and shown[~made.masks[0, "sky"]].max() < 100


def test_an_undecided_orientation_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = quirky("coco_instances", "exif 3", tmp_path / "set")
    assert prepare(made.command(tmp_path / "out")) == 0
    assert capsys.readouterr().err.count("upright is assumed") == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["warnings"] == {"exif_undecided": 3}
