"""The report's page: pictures, the curve, and that names can do no harm."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mugs import Page, Scripted, chart_lines, report
from PIL import Image

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report.charts import loss_curve
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_page import write_report
from osm.recognition.draw import draw_numbered


def test_pictures(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    _, page = report(tmp_path, folder, mugs, pictures=2)
    images = page.all("img")
    assert len(images) == 2
    for attributes in images:
        assert re.fullmatch(
            r"\d\.png: 3 numbered masks, \d named right; they are listed beside it", str(attributes["alt"])
        )
        data = base64.b64decode(str(attributes["src"]).removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (512, 384)  # of 8 x 6
    _, all_of_them = report(tmp_path, folder, mugs)
    assert len(all_of_them.all("img")) == 5
    rows = re.findall(r'<th scope="row">1</th>(.*?)</tr>', all_of_them.source)
    texts = [re.sub("<.*?>", "|", row) for row in rows]
    assert ["✓||" in text.split("striped kettle", 1)[1] for text in texts]
    given = [re.sub(r"\s*<.*?>\s*", "|", row).strip("|") for row in rows]
    assert re.fullmatch(r"striped kettle\|+✓\|+striped kettle\|+[\d.]+\s%\|+\(✓\)\|+kettle\|+[\d.]+\s%", given[0])
    assert re.fullmatch(r"striped kettle\|+✗\|+dotted kettle\|+[\d.]+\s%\|+✓\|+striped kettle\|+[\d.]+\s%", given[2])
    assert re.findall(r'<th scope="row">3</th>(.*?)</tr>', all_of_them.source)[0].count("–") == 2  # not in the PNG
    _, none = report(tmp_path, folder, mugs, pictures=0)
    assert not none.all("img")


def test_the_seed_chooses(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    chosen = {
        tuple(re.findall(r'alt="(\d\.png)', report(tmp_path, folder, mugs, pictures=1, seed=seed)[1].source))
        for seed in range(12)
    }
    assert len(chosen) > 1


def test_drawing_tells_right_from_wrong_without_colour() -> None:
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    masks = np.zeros((3, 100, 200), bool)
    for k in range(3):
        masks[k, 10:90, 5 + 65 * k : 60 + 65 * k] = True
    drawn = np.asarray(draw_numbered(image, masks, [True, False, None]))
    assert drawn.shape == (100, 200, 3)
    top = [drawn[10, 5 + 65 * k : 60 + 65 * k] for k in range(3)]
    colours = [len(np.unique(line, axis=0)) for line in top]
    assert colours == [1, 2, 1]  # the wrong one's outline is dashed
    inner = [drawn[15:25, 10 + 65 * k : 55 + 65 * k].reshape(-1, 3) for k in range(3)]
    assert [len(np.unique(area, axis=0)) for area in inner] == [1, 3, 1]  # and its inside is hatched
    assert (inner[2] == 90).all()  # not named: not filled


def test_recorded_files_come_first(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    meta = json.loads((folder / "pets_meta_0_of_1.json").read_text())
    assert meta["files"] == {f: getattr(mugs, f) for f in ("image_dir", "mask_dir", "json_file")}
    _, page = report(tmp_path, folder, replace(mugs, image_dir=None, mask_dir="/elsewhere"))
    assert len(page.all("img")) == 5
    for no_path in ("a" * 5000, "a\0b"):
        meta["files"]["image_dir"] = no_path
        (folder / "pets_meta_0_of_1.json").write_text(json.dumps(meta))
        assert len(report(tmp_path, folder, mugs)[1].all("img")) == 5
    moved = shutil.move(str(mugs.image_dir), tmp_path / "moved")
    _, page = report(tmp_path, folder, replace(mugs, image_dir=str(moved)))
    assert len(page.all("img")) == 5


def lose_images(row: Dataset, folder: Path) -> None:
    shutil.rmtree(str(row.image_dir))


def lose_one_image(row: Dataset, folder: Path) -> None:
    (Path(str(row.image_dir)) / "3.png").unlink()


def change_annotations(row: Dataset, folder: Path) -> None:
    path = Path(str(row.json_file))
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("damage", "images", "message"),
    [
        (lose_images, 0, "Pictures that could not be drawn: 5. pets_image_dir "),
        (lose_one_image, 4, "Pictures that could not be drawn: 1. image "),
        (change_annotations, 0, "has changed since the predictions were made"),
    ],
)
def test_missing_pictures_are_told(
    mugs: Dataset,
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Dataset, Path], None],
    images: int,
    message: str,
) -> None:
    assert mugs.label_set
    damage(mugs, folder)
    _, page = report(tmp_path, folder, mugs)
    assert len(page.all("img")) == images
    assert message in page.text


def test_predictions_for_other_masks_are_refused(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    """Without a meta file nothing says that the annotations have changed since."""
    (folder / "pets_meta_0_of_1.json").unlink()
    path = Path(str(mugs.json_file))
    path.write_text(path.read_text().replace('"id": 300,', '"id": 301,', 1))
    with pytest.raises(OsmError, match="image 104 has mask 300 of category ., which is not in .*"):
        report(tmp_path, folder, mugs)


def test_a_set_without_paths(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    (folder / "pets_meta_0_of_1.json").unlink()
    _, page = report(tmp_path, folder, replace(mugs, image_dir=None))
    assert "needs image_dir, which is not set" in page.text


def test_instances_form(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 500)).save(tmp_path / "a.png")
    square = [[100, 100, 400, 100, 400, 300, 100, 300]]
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": square, "iscrowd": 1},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": square},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    row = Dataset("pets", "coco_instances", "Pets", str(path), str(tmp_path), None, str(path))
    generate_predictions(Scripted(("", "cats", "")), row, 0, 1, tmp_path / "pred")
    result, page = report(tmp_path, tmp_path / "pred", row)
    assert result["predictions"]["trained"]["pets"]["specific"]["correct"] == 1
    assert (page.all("img")[0]["width"], page.all("img")[0]["height"]) == ("800", "400")
    assert page.row("1")[0] == "cat"


def test_curve_of_little_or_much() -> None:
    assert loss_curve([{"step": 1, "loss": float("nan")}]) == ""
    assert loss_curve([{"step": 1, "loss": 3.0}, {"step": 2, "loss": float("inf")}]) == ""  # a point is no curve
    late = loss_curve([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "loss/new/own": 2.0}])
    assert sorted(len(points) for points in chart_lines(late).values()) == [1, 2] and "<use" in late
    long = loss_curve([{"step": step, "loss": 1.0 + step} for step in range(100_000)])
    assert len(long) < 30_000
    assert "100000 at step 99999" in long.replace("1e+05", "100000")


def test_labels_of_a_chart_are_neither_markup_nor_formulas() -> None:
    labels = ["_hidden/own", "$x^2$/own", "<b>/own", "\u6c34/own", "very " * 20 + "long/own"]
    records = [{"step": step, "loss": 1.0, **{f"loss/{label}": 1.0 for label in labels}} for step in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = loss_curve(records)
    for shown in (
        ">_hidden/own<",
        ">$x^2$/own<",
        ">&lt;b&gt;/own<",
        ">\u6c34/own<",
        ">very very very very very very very \u2026<",
    ):
        assert shown in chart
    assert chart == loss_curve(records)


EVIL = "<script>alert('1')</script>\"&\ud800\x1b[31m\x9b\u202e"


def test_everything_is_escaped(mugs: Dataset, tmp_path: Path) -> None:
    path = Path(str(mugs.json_file))
    document = json.loads(path.read_text())
    document["categories"][1]["name"] = EVIL
    path.write_text(json.dumps(document))
    generate_predictions(Scripted(*[(EVIL, EVIL, EVIL)] * 5), mugs, 0, 1, tmp_path / "pred")
    run = tmp_path / "run"
    run.mkdir()
    records = [{"step": step, "loss": 1.0, f"loss/{EVIL}/own": 1.0, "skipped_samples": {EVIL: 1}} for step in (1, 2)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_report(
        tmp_path / "out",
        {EVIL: tmp_path / "pred"},
        1,
        {"pets": replace(mugs, title=EVIL)},
        ReportOptions(run, {EVIL: {EVIL: EVIL}}, title=EVIL),
    )
    page = Page(tmp_path / "out" / "report.html")
    assert len(page.all("script")) == 1
    assert "alert('1')" not in page.source
    assert (
        page.source.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;\\ud800\\x1b[31m\\x9b\\u202e") > 20
    )
    assert not set("\ud800\x1b\x9b\u202e") & set(page.source)
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_nothing_is_fetched(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    _, page = report(tmp_path, folder, mugs)
    for attributes in [a for _, a in page.elements]:
        for key in ("src", "href"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:"))
    assert "url(" not in page.source
