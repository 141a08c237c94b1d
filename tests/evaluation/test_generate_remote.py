"""Predictions on `s3://`: made here, uploaded whole, read from there by all that reads predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_namer import FakeNamer
from servers import S3Server, registered

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.generate_cli import generate_main
from osm.evaluation.report.report_cli import compare_main, report_main
from osm.storage import remote

HERE = Path(__file__).resolve().parent
NAME = "pets_pred_0_of_1.json"
META = "pets_meta_0_of_1.json"
URL = "s3://bucket/out"


def staged(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "staging").rglob("*") if path.is_file())


def without_time(meta: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(meta).items() if key != "seconds"}


@pytest.mark.usefixtures("console")
def test_the_same_files_as_here(
    pets: Dataset, tmp_path: Path, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "here"))
    assert generate_predictions(FakeNamer(), pets, 0, 1, URL) == f"{URL}/{NAME}"
    assert clean_s3.names("bucket") == [f"out/{META}", f"out/{NAME}"]
    assert clean_s3.read("bucket", f"out/{NAME}") == here.read_bytes()
    assert without_time(clean_s3.read("bucket", f"out/{META}")) == without_time((here.parent / META).read_bytes())
    assert not staged(tmp_path / "cache")
    idle = FakeNamer()
    capsys.readouterr()
    generate_predictions(idle, pets, 0, 1, URL)
    assert not idle.calls and f"{URL}/{NAME}: finished already, skipped" in capsys.readouterr().err
    with pytest.raises(
        OsmError, match=f"{URL}/{NAME} exists, but was made with a different value of limit; choose another"
    ):
        generate_predictions(idle, pets, 0, 1, URL, limit=2)
    assert clean_s3.SECRET.encode() not in clean_s3.read("bucket", f"out/{META}")


def test_a_killed_run_goes_on_on_its_machine_and_begins_anew_elsewhere(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, clean_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "here"))
    command = [sys.executable, str(HERE / "fake_namer.py"), str(pets_yaml), URL, "3"]
    assert subprocess.run(command, check=False).returncode == 9
    assert clean_s3.names("bucket") == [f"out/{NAME}.lock"], "what it has named is on its machine"
    assert staged(tmp_path / "cache") == [NAME.replace(".json", ".partial.jsonl")]
    namer = FakeNamer()
    generate_predictions(namer, pets, 0, 1, URL)
    assert len(namer.calls) == 2 and clean_s3.read("bucket", f"out/{NAME}") == here.read_bytes()
    assert subprocess.run([*command[:-2], f"{URL}-2", "3"], check=False).returncode == 9
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "another machine"))
    namer = FakeNamer()
    generate_predictions(namer, pets, 0, 1, f"{URL}-2")
    assert len(namer.calls) == 5 and clean_s3.read("bucket", f"out-2/{NAME}") == here.read_bytes()


def command(pets_yaml: Path, out_dir: str, *more: str) -> list[str]:
    return ["0", "1", "ckpt.pt", out_dir, "--datasets", str(pets_yaml), "--sets", "pets", *more]


def test_a_server_that_is_gone(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    clean_s3.methods = {"PUT"}
    for name in (META, NAME):
        clean_s3.status = {f"bucket/out/{name}": 500}
        assert generate_main(command(pets_yaml, URL), lambda checkpoint, **options: FakeNamer()) == 3
        said = capsys.readouterr().err
        assert f"error: {URL}/{name}: " in said and "the same command again to resume" in said
        assert "Traceback" not in said and clean_s3.SECRET not in said
    assert clean_s3.names("bucket") == [f"out/{META}"], "the predictions come last"
    clean_s3.status = {}
    idle = FakeNamer()
    assert generate_main(command(pets_yaml, URL), lambda checkpoint, **options: idle) == 0
    assert not idle.calls, "they were whole"
    assert clean_s3.names("bucket") == [f"out/{META}", f"out/{NAME}"] and not staged(tmp_path / "cache")


def test_what_an_upload_left_is_not_taken_for_another_run(pets: Dataset, tmp_path: Path, clean_s3: S3Server) -> None:
    clean_s3.status, clean_s3.methods = {f"bucket/out/{META}": 500}, {"PUT"}
    with pytest.raises(OsmError):
        generate_predictions(FakeNamer(), pets, 0, 1, URL, limit=2)
    clean_s3.status = {}
    generate_predictions(FakeNamer(), pets, 0, 1, URL)
    here = Path(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "here"))
    assert clean_s3.read("bucket", f"out/{NAME}") == here.read_bytes()


def test_two_runs_of_one_part(pets: Dataset, clean_s3: S3Server) -> None:
    class Second(FakeNamer):
        def name_images(self, *arguments: Any, **options: Any) -> Any:
            with pytest.raises(OsmError, match=f"out_dir {URL}: another process is writing there"):
                generate_predictions(FakeNamer(), pets, 0, 2, URL)
            if not self.calls:
                generate_predictions(FakeNamer(), pets, 1, 2, URL)
            return super().name_images(*arguments, **options)

    generate_predictions(Second(), pets, 0, 2, URL)
    assert [name for name in clean_s3.names("bucket") if "pred" in name] == [
        f"out/pets_pred_{part}_of_2.json" for part in range(2)
    ]


def test_no_model_is_loaded_for_a_place_that_only_reads(pets_yaml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_main(command(pets_yaml, "https://host/out?token=secret"), lambda *_, **__: pytest.fail()) == 2
    said = capsys.readouterr().err
    assert "error: out_dir https://host/out: the location is read-only" in said and "secret" not in said


def test_scores_report_and_comparison_from_there(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for out_dir in (URL, tmp_path / "here"):
        generate_predictions(FakeNamer(), pets, 0, 1, out_dir)
    table = ["--datasets", str(pets_yaml)]
    told = []
    for out_dir, place in ((URL, URL), (str(tmp_path / "here"), str(tmp_path))):
        capsys.readouterr()
        assert evaluate_main([out_dir, "1", *table, "--json", f"{place}/figures.json"]) == 0
        told.append([line for line in capsys.readouterr().out.splitlines() if "left out" not in line])
    assert told[0] == told[1]
    assert clean_s3.read("bucket", "out/figures.json") == (tmp_path / "figures.json").read_bytes()
    predictions = ["--predictions", f"ours={URL}", "--parts", "1", *table, "--metrics", "published"]
    assert report_main([f"{URL}/report", *predictions]) == 0
    assert capsys.readouterr().out == f"{URL}/report/report.html\n"
    assert report_main([str(tmp_path / "report"), *predictions]) == 0
    for name in ("results.json", "report.html"):
        assert clean_s3.read("bucket", f"out/report/{name}") == (tmp_path / "report" / name).read_bytes()
    both = [URL, str(tmp_path / "here"), "--parts", "1", *table, "--metrics", "published"]
    assert compare_main([*both, "--report", f"{URL}/compared.html"]) == 0
    assert b"<html" in clean_s3.read("bucket", "out/compared.html")
    # What is removed there is not read from this machine's copy.
    generate_predictions(FakeNamer(), pets, 0, 1, f"{URL}-2")
    assert evaluate_main([f"{URL}-2", "1", *table]) == 0
    for name in (NAME, META):
        remote.remove(f"{URL}-2/{name}")
    clean_s3.put("bucket", "out-2/readme.txt", b"moved")
    capsys.readouterr()
    assert evaluate_main([f"{URL}-2", "1", *table]) == 2
    assert "no prediction file for 1 parts" in capsys.readouterr().err


def test_gs_through_a_folder(pets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "google").mkdir()
    here = Path(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "here"))
    with registered("gs", tmp_path / "google"):
        generate_predictions(FakeNamer(), pets, 0, 1, "gs://bucket/out")
        generate_predictions(FakeNamer(die_at=0), pets, 0, 1, "gs://bucket/out")
    assert sorted(os.listdir(tmp_path / "google" / "bucket" / "out")) == [META, NAME]
    assert (tmp_path / "google" / "bucket" / "out" / NAME).read_bytes() == here.read_bytes()
