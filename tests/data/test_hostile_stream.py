"""Hostile samples among good ones: a stream counts them by reason and goes on; and every reason is documented."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hostile import END, HUGE, header, jpeg_file, pictures, png_file, seconds, tar_member
from nine_sets import boxes, grey, semantic, tif
from stream_sets import SIZE, bands, dataset, instances, panoptic, processor, rectangle, write_shard

from osm import forms
from osm.data.processor import Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.stream import EpochLoader, StreamConfig
from osm.datasets.table import Dataset
from osm.errors import BY_RULE
from osm.forms.base import LOSSES

ROOT = Path(__file__).resolve().parents[2]
FORMS = ("coco_panoptic", "coco_instances", "boxes", "semantic", "parts")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


def skipped(prepared: Processor, row: Dataset, paths: list[Path], count: int = 24) -> Counter[str]:
    """What a stream leaves out while it delivers that many batches of the good sample."""
    config = StreamConfig(tuple(map(str, paths)), 1, count, resampled=False, shuffle_buffer=1)
    loader = EpochLoader(row, config, SampleTransform(SampleConfig(), prepared), 0, 1, 0)
    with seconds(60):
        batches = [parts[0] for parts in loader.epoch(0)]
    assert [batch.keys for batch in batches] == [["good"]] * count
    return sum((batch.skipped for batch in batches), Counter())


@pytest.mark.filterwarnings("ignore")  # Pillow's of broken files
def test_hostile_pictures_do_not_stop_a_stream(prepared: Processor, tmp_path: Path) -> None:
    good = panoptic(bands(64, 48))
    samples, expected = {"good": good}, Counter[str]()
    for name, (data, reason) in pictures().items():
        if name != "jpeg scans":  # it says so when it is decoded, after a segment was found in its 8000 x 8000 pixels
            samples[f"image {name.replace('.', '')}"] = {**good, "image.png": data}
            samples[f"mask {name.replace('.', '')}"] = {**good, "png": data}
            # The image is decoded last: one that can be opened is first found to be of another size than its mask.
            expected.update(["size_mismatch" if reason == "image_truncated" else reason, reason])
    samples["image cut"] = {**good, "image.png": good["image.png"][:-60]}
    path = write_shard(tmp_path / "0.tar", samples)
    found = skipped(prepared, dataset(tmp_path), [path], count=3)
    assert found.keys() == {*expected, "image_truncated"}
    for reason in ("image_too_large", "image_unreadable", "size_mismatch"):  # two whole passes between the good ones
        assert found[reason] == 2 * expected[reason]


def test_hostile_shards_do_not_stop_a_stream(prepared: Processor, tmp_path: Path) -> None:
    good = write_shard(tmp_path / "good.tar", {"good": panoptic(bands(64, 48))})
    bad = {
        "size": header("b.json", HUGE[0]) + END,
        "long name": header("b.json", HUGE[1], b"L") + END,
        "link": header("b.json", 0, b"2") + END,
        "twice": tar_member("b.json", b"{}") * 2 + END,
        "no utf-8": tar_member("b.json", b'"\xff"') + END,
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    found = skipped(prepared, dataset(tmp_path), [good, *(tmp_path / f"{name}.tar" for name in bad)])
    assert found.keys() == {"member_too_large", "broken_tar", "member_not_a_file", "member_twice", "bad_json"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_on_after_bad_masks(prepared: Processor, tmp_path: Path, form: str) -> None:
    whole = np.full((SIZE, SIZE), 2)
    entry = {"category_id": 2, "segmentation": rectangle(0, 0, 30, 30)}
    good, member = {
        "coco_panoptic": (panoptic(whole), "png"),
        "coco_instances": (instances(SIZE, SIZE, [entry]), "json"),
        "boxes": (boxes(SIZE, SIZE, [([0, 0, 30, 30], 2)]), "json"),
        "semantic": (semantic(whole), "tif"),
        "parts": ({**semantic(whole), "part.png": grey(whole)}, "part.png"),
    }[form]
    picture = next(name for name in ("image.png", "jpg") if name in good)
    document = json.loads(good["json"])
    spoilt = {
        "deep": b"[" * 10**5,
        "digits": b"1" * 10**5,
        "infinite": good["json"].replace(b"30", b"Infinity"),
        "gigantic": good["json"].replace(b"30", b"1" * 4000),
        "words": json.dumps({**document, "width": "wide"}).encode(),
    } if member == "json" else {
        "other": tif(np.zeros((3, 3), int)),
        "bomb": png_file(60_000, 60_000),
        "cut": good[member][:50],
    }  # fmt: skip
    samples = {"good": good, "picture": {**good, picture: jpeg_file(65_500, 65_500)}}
    samples |= {name: {**good, member: data} for name, data in spoilt.items()}
    path = write_shard(tmp_path / "0.tar", samples)
    found = skipped(prepared, dataset(tmp_path, form=form), [path], count=4)
    assert sum(found.values()) == 3 * (len(samples) - 1) and found["image_too_large"] >= 3
    assert not found.keys() & BY_RULE


# Reasons.


def raised() -> tuple[set[str], set[str]]:
    """Of every `SampleError(...)` and `losses.add(...)`: their reasons, and patterns of those that are put together."""
    reasons, patterns = set(), set()
    for path in (ROOT / "osm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or not (
                called == "SampleError" or (called == "add" and "losses" in ast.dump(node.func))
            ):
                continue
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.JoinedStr):
                    pieces = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in part.values]
                    patterns.add("".join(map(str, pieces)))
            if isinstance(node.args[0], ast.Constant):
                reasons.add(node.args[0].value)
    return reasons, patterns


def documented() -> dict[str, str]:
    """Reason -> the table's second column."""
    page = (ROOT / "docs" / "datasets.md").read_text()
    table = page.split("## Why a sample is left out")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| .+ \|$", table, re.MULTILINE)
    return {reason: where for names, where in rows for reason in re.findall(r"`(\w+)`", names)}


def test_every_reason_is_documented_and_every_documented_one_is_raised() -> None:
    reasons, patterns = raised()
    table = documented()
    assert len(reasons) > 25 and patterns == {r"\w+_unreadable", r"\w+_"}
    reasons |= LOSSES | {form.nothing_usable for form in map(forms.form_class, forms.FORMS.names())}
    assert reasons <= set(table)
    # A converter says `mask_...` where what is named after the image is wrong with a mask.
    made = {reason.replace("image_", "mask_") for reason in reasons if reason.startswith("image_")}
    assert set(table) <= reasons | made


def test_reasons_by_rule_are_marked_as_such() -> None:
    assert {reason for reason, where in documented().items() if "by rule" in where} == set(BY_RULE)
    assert raised()[0] >= BY_RULE
