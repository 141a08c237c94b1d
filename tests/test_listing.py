"""`osm list`: names, origins and descriptions of everything that configs and flags can name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from osm.datasets.table import BUILTIN
from osm.evaluation.bench import BENCHES
from osm.evaluation.metrics import BUILTIN_METRICS
from osm.forms import FORMS, form_class, register_form
from osm.forms.instances import Boxes
from osm.labeling.formats import FORMATS
from osm.listing import LISTS, REGISTRIES, Listed, main, summary_of
from osm.terminal import PIPE_CLOSED


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Listed]:
    assert main([*arguments, "--json"]) == 0
    return {one["name"]: Listed(**one) for one in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llms", {"FOLDER", "HUB_ID", "FILE.gguf"}),
        ("segmenters", {"sam", "transformers", "embedded"}),
        ("metrics", set(BUILTIN_METRICS)),
        ("forms", {row.form for row in BUILTIN}),
        ("datasets", {row.name for row in BUILTIN}),
        ("configs", {"osm", "osm_small", "osm_nano", "osm_flamingo"}),
        ("label_formats", set(FORMATS.names())),
        ("benches", set(BENCHES.names())),
    ],
)
def test_lists(kind: str, names: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, kind)
    assert names <= set(found)
    assert all(one.origin and one.about and "cannot be imported" not in one.about for one in found.values())
    assert main([kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][: len(found)] and len(lines) >= len(found)


def test_every_registry_and_every_list_that_the_docs_name_is_listed() -> None:
    root = Path(__file__).resolve().parents[1]
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    named = {kind for page in pages for kind in re.findall(r"`osm\s+list\s+([a-z_]+)", page.read_text())}
    assert {"label_formats", "benches", "forms"} <= named
    assert named <= set(LISTS) == {"llms", "datasets", "configs", *REGISTRIES}


@pytest.mark.parametrize("kind", ["towers", "bridges"])
def test_lists_of_model_parts(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"towers": {"timm", "open_clip", "random"}, "bridges": {"maskqformer", "flamingo"}}
    found = listed(capsys, kind)
    assert expected[kind] <= set(found)
    assert all(one.about and "cannot be imported" not in one.about for one in found.values())


def test_a_listing_imports_no_torch() -> None:
    script = "import sys; from osm.listing import main; main(['segmenters']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_own_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text("datasets: {mine: {form: boxes, labels: coco}}")
    found = listed(capsys, "datasets", "--datasets", str(path))
    assert found["mine"].origin == str(path) and found["coco"].origin == "built in"
    assert main(["forms", "--datasets", str(path)]) == 2
    assert "has no effect when listing forms" in capsys.readouterr().err


def test_a_registered_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(FORMS, "_registered", {})

    @register_form("more_boxes")
    class MoreBoxes(Boxes):
        """Boxes, and more of them."""

    assert form_class("more_boxes") is MoreBoxes
    assert listed(capsys, "forms")["more_boxes"].origin == "registered"
    form_class.cache_clear()


def test_what_is_broken_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "osm_test_odd.py").write_text("def (")
    assert "osm_test_odd:Tower cannot be imported" in summary_of("osm_test_odd:Tower")
    assert "osm_test_none:Tower cannot be imported" in summary_of("osm_test_none:Tower")
    assert "does not define the class" in summary_of("osm.listing:Tower")


def test_classes_that_a_name_does_not_select_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, target in (("alpha", "alpha:One"), ("beta", "beta:Two")):
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[osm.segmenters]\nsam = {target}\nmine_{package} = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["segmenters"]) == 0
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines()].count("sam") == 1
    for package, target in (("alpha", "alpha:One"), ("beta", "beta:Two")):
        assert f"segmenter 'sam' of package {package} is hidden by another segmenter" in output.err
        assert f"use {target} to select it" in output.err
    assert "mine_" not in output.err


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    """The reader is gone before the first line, as after `osm list configs | true`."""
    command = [sys.executable, "-m", "osm", "list", "configs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == PIPE_CLOSED
