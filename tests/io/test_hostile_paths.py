"""Commands and URLs in the place of a path: a sentence wherever one is given, and nothing is run or made."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model_yaml

from osm.data.feature_cache import FeatureCache
from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.evaluation.predict import generate_cli as benchmark
from osm.io.paths import check_local
from osm.prepare import convert
from osm.training import train_cli as training

NO_LOCATIONS = ("pipe:touch ran", "|touch ran", "touch ran|", " pipe:touch ran", "ftp://x/y", "file:y", "-")
COMMANDS = (*NO_LOCATIONS, "http://x/y", "S3://x/y")
FIELDS = ("labels", "whole_labels", "image_dir", "mask_dir", "json_file")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which a command would leave a trace."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_path_is_refused(command: str) -> None:
    with pytest.raises(OsmError, match="here '.*': expected a local path; URLs and commands") as error:
        check_local(command, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["", "a.tar", "/a/b:c.tar", "./pipe:x", "a|b/c", "dir-/x-", "../x", "~/x", "--", "a b"]
)
def test_paths_are_paths(path: str) -> None:
    check_local(path, "here")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("command", NO_LOCATIONS)
def test_a_dataset_table_names_files_alone(folder: Path, field: str, command: str) -> None:
    row = {"form": "coco_panoptic", "labels": "coco", field: command}
    (folder / "sets.yaml").write_text(yaml.safe_dump({"datasets": {"mine": row}}))
    with pytest.raises(OsmError, match=f"sets.yaml, set 'mine': {field} '.*': expected a local path or a URL"):
        DatasetTable().with_yaml(folder / "sets.yaml")


@pytest.mark.parametrize("command", NO_LOCATIONS)
def test_flags_of_a_prediction_name_files_alone(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["0", "1", "x.pt", "out", "--sets", "coco", f"--coco_json_file={command}"]
    assert benchmark.generate_main(arguments, lambda *_, **__: pytest.fail("a model was loaded")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--coco_json_file" in said and "expected a local path or a URL" in said
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "command",
    [
        *(c for c in COMMANDS if "://" not in c),
        "ftp://x/y",
        "a.tar::pipe:touch ran",
        "{pipe,a}:touch ran",
        "{0..999999}{0..999999}",
    ],
)
@pytest.mark.parametrize("by_flag", [True, False])
def test_shards_of_a_training_are_files_alone(
    folder: Path, command: str, by_flag: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(tiny_model_yaml(folder).read_text())
    chosen = {"batch_size": 1, **({} if by_flag else {"shards": command})}
    document["training"] = {"run_name": "run", "device": "cpu", "sets": {"coco": chosen}}
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    flags = ["--config", str(folder / "run.yaml"), *([f"--coco_shards={command}"] if by_flag else [])]
    assert training.main(flags) == 2
    said = capsys.readouterr().err
    assert "shards '" in said and len(said) < 600
    assert not list(Path().iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_feature_cache_is_a_folder(command: str) -> None:
    with pytest.raises(OsmError, match="--feature_cache '"):
        FeatureCache(command, "fingerprint")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("command", NO_LOCATIONS)
def test_converters_open_files_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{flag}={command}" for flag in ("image_dir", "ann_dir", "json_file")]
    for name in ("coco_panoptic", "a847", "pascal_part"):
        accepted = {action.dest for action in convert.parser(name)._actions}
        given = [flag for flag in flags if flag[2:].partition("=")[0] in accepted]
        assert convert.main(name, ["--output_dir", "out", *given]) == 2
        assert capsys.readouterr().err.startswith("error: --")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("script", ["loader", "linear_probe"])
@pytest.mark.parametrize("command", ["pipe:touch ran", "|touch ran"])
def test_scripts_that_measure_take_files_alone(
    folder: Path, script: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sets.yaml").write_text("datasets: {coco: {title: COCO}}")
    scripts = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(scripts))
    monkeypatch.setattr(sys, "argv", [script, "--shards", f"coco={command}", "--datasets", str(folder / "sets.yaml")])
    assert importlib.import_module(script).main() == 2
    assert "expected a local path" in capsys.readouterr().err
    assert not list(Path().iterdir())
