"""Kettles and mugs, predicted by a script, and a report of them; its page taken apart."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from fake_namer import FakeNamer
from PIL import Image

from osm.datasets.table import Dataset
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_page import write_report

VOID = {"meta", "img", "line", "polyline", "rect", "circle"}


class Page(HTMLParser):
    """Checks that the page's elements are closed in order, and keeps what they hold."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, header: str) -> list[str]:
        """The cells' texts of the first row with this header."""
        found = re.search(rf'<tr[^>]*><th scope="row">{re.escape(header)}</th>(.*?)</tr>', self.source)
        assert found, header
        return [re.sub("<.*?>", "", cell).replace("\u00a0", " ") for cell in re.findall("<td.*?</td>", found[1])]


def chart_lines(source: str, kind: str = "series") -> dict[str, list[tuple[float, float]]]:
    """Return the points of the lines of a chart, in the units of its SVG, by the number of the line."""
    found = re.findall(rf'<g data-line="{kind}-(\d+)">\s*<path d="(.*?)"', source, re.DOTALL)
    return {number: [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for number, path in found}


def write_mugs(pets: Dataset) -> Dataset:
    """The pets' images, but a striped kettle (or teapot) on the left and a mug on the right."""
    path = Path(str(pets.json_file))
    document = json.loads(path.read_text())
    document["categories"] = [
        {"id": 1, "name": "striped kettle", "synonyms": ["teapot"]},
        {"id": 2, "name": "mug"},
    ]
    path.write_text(json.dumps(document))
    return replace(pets, title="Mugs & more")


class Scripted(FakeNamer):
    """Names the masks of the i-th image with the i-th of its texts: (left own, right own, left any)."""

    def __init__(self, *texts: tuple[str, str, str]) -> None:
        super().__init__()
        self.texts = texts

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: Any) -> Any:
        left, right, anyone = self.texts[len(self.calls)]
        names = super().name_image(image, masks, modes)
        for mask, prediction in zip(masks, names, strict=True):
            is_left = mask[0, 0]
            given = {"pets": left if is_left else right, "any": anyone if is_left else "mug"}
            if prediction is not None:
                prediction.update({mode: replace(prediction[mode], text=given[mode]) for mode in modes})
        return names


# own: kettles: right, right by synonym, head, modifiers, neither; mugs: four right by form or name, one wrong.
TEXTS = (
    ("striped kettle", "mug", "kettle"),
    ("Teapots", "mugs", "Kettles"),
    ("dotted kettle", "MUG", "striped kettle"),
    ("striped mug", "mug", "cup"),
    ("mug", "striped kettle", "mug"),
)


def add_names(folder: Path, images: int = 4) -> None:
    """Writes which names are right in any vocabulary into the first images' kettles of a prediction file."""
    path = folder / "pets_pred_0_of_1.json"
    document = json.loads(path.read_text())
    for entry in document[:images]:
        entry["segments_info"][0]["names"] = ["Striped kettle", "kettle"]
    path.write_text(json.dumps(document))


def predict(mugs: Dataset, tmp_path: Path) -> Path:
    """A folder of the scripted predictions."""
    generate_predictions(Scripted(*TEXTS), mugs, 0, 1, tmp_path / "pred")
    add_names(tmp_path / "pred")
    return tmp_path / "pred"


def report(tmp_path: Path, folder: Path, row: Dataset, **options: Any) -> tuple[dict[str, Any], Page]:
    options = {"surest": 0, **options}
    document = write_report(tmp_path / "out", {"trained": folder}, 1, {"pets": row}, ReportOptions(**options))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(document))
    return document, Page(tmp_path / "out" / "report.html")


def write_log(run: Path, *losses: float) -> Path:
    run.mkdir(exist_ok=True)
    records = [
        {"step": 10 * n, "loss": loss, "loss/a/own": loss / 2, "loss/a/any": loss / 2, "names": 7 * n}
        for n, loss in enumerate(losses, 1)
    ]
    records[-1]["skipped_samples"] = {"no_mask": 3}
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 99, "lo')
    return run
