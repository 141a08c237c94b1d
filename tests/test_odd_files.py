"""FIFOs, devices and folders in the place of files: a sentence at once, never a wait."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import seconds

from osm.config import load_yaml
from osm.data.shards import read_shard
from osm.datasets.labels import load_labels
from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.report.report_cli import report_main
from osm.forms.base import SetFiles
from osm.forms.coco_json import CocoJson
from osm.forms.set_files import read_file
from osm.models.checkpoint import read_folder, read_published
from osm.models.weights import load_safetensors, load_torch
from osm.prepare.originals.panoptic_releases import _thing_ids
from osm.recognition.vocabulary import read_names
from osm.sharing.export_cli import export_main, import_main
from osm.synthetic.collages import read_table
from osm.training.tracking import read_log

READERS: dict[str, Callable[[Path], object]] = {
    "one.pt": read_published,
    "one.pth": load_torch,
    "one.safetensors": load_safetensors,
    "config.json": lambda path: read_folder(path.parent),
    "model.safetensors": lambda path: (path.with_name("config.json").write_text("{}"), read_folder(path.parent)),
    "config.yaml": lambda path: load_yaml(str(path)),
    "sets.yaml": lambda path: DatasetTable().with_yaml(path),
    "table.yaml": lambda path: read_table(path, path.parent),
    "labels.json": load_labels,
    "coco.json": lambda path: CocoJson(
        SetFiles("mine", ".", Dataset("mine", "coco_instances", "Mine", ""), json_file=path), None
    ),
    "names.txt": read_names,
    "mapping.txt": lambda path: _thing_ids(str(path)),
    "0.tar": lambda path: list(read_shard(str(path))),
    "log.jsonl": lambda path: read_log(path.parent),
    "image.jpg": read_file,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_readers_refuse_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with (
        seconds(10),
        pytest.raises((OsmError, ValueError), match=f"is not a regular file, but a {kind}") as error,
    ):
        READERS[name](path)
    assert len(str(error.value).splitlines()) == 1


def test_commands_end_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo = tmp_path / "coco_pred_0_of_1.json"
    os.mkfifo(fifo)
    os.mkfifo(tmp_path / "zoo.pt")
    predictions = ["--predictions", f"a={tmp_path}", "--parts", "1"]
    calls = [
        lambda: export_main([str(fifo), str(tmp_path / "out")]),
        lambda: import_main([str(tmp_path / "zoo.pt"), str(tmp_path / "out")]),
        lambda: evaluate_main([str(tmp_path), "1"]),
        lambda: evaluate_main([str(tmp_path), "1", "--datasets", str(fifo)]),
        lambda: report_main([str(tmp_path / "report"), *predictions, "--baselines", str(fifo)]),
        lambda: report_main([str(tmp_path / "report"), *predictions]),
    ]
    for call in calls:
        with seconds(10):
            assert call() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "is not a regular file, but a FIFO" in said and "Traceback" not in said


def test_a_meta_file_that_is_a_fifo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "coco_pred_0_of_1.json").write_text(json.dumps([]))
    os.mkfifo(tmp_path / "coco_meta_0_of_1.json")
    with seconds(10):
        assert evaluate_main([str(tmp_path), "1"]) == 2
    assert "coco_meta_0_of_1.json is not a regular file, but a FIFO" in capsys.readouterr().err
