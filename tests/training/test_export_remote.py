"""`osm export` and `osm import` to `s3://` and `gs://`: a model is found there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from servers import S3Server, registered
from tiny import tiny_model_section

from osm.config import from_dict
from osm.models import checkpoint
from osm.models.factory import build
from osm.models.model_config import ModelConfig
from osm.sharing.export_cli import export_main
from osm.training.export import export

URL = "s3://bucket/model"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    model, _ = build(from_dict(ModelConfig, tiny_model_section(root, modes=["any"]), "model"))
    path = root / "trained.pt"
    document = checkpoint.config_document(model)
    torch.save({"model_state_dict": model.trainable_state_dict(), "config": document}, path)
    return path


def stored(server: S3Server, prefix: str = "model/") -> dict[str, bytes]:
    names = [name for name in server.names("bucket") if name.startswith(prefix)]
    return {name.removeprefix(prefix): server.read("bucket", name) for name in names}


def here(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def staged(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_same_files_as_here(
    source: Path, tmp_path: Path, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    export(source, tmp_path / "model")
    assert export_main([str(source), URL]) == 0
    assert capsys.readouterr().out.startswith(f"{URL}: ")
    assert stored(clean_s3) == here(tmp_path / "model")
    assert export_main([str(source), "s3://bucket/zoo/osm.pt"]) == 0
    whole = tmp_path / "fetched.pt"
    whole.write_bytes(clean_s3.read("bucket", "zoo/osm.pt"))
    export(whole, tmp_path / "again")
    assert here(tmp_path / "again") == here(tmp_path / "model")
    assert clean_s3.names("bucket") == ["model/config.json", "model/model.safetensors", "zoo/osm.pt"]
    assert not staged(tmp_path)


def test_what_stands_there_is_not_replaced_without_force(
    source: Path, clean_s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (URL, "s3://bucket/osm.pt"):
        assert export_main([str(source), out]) == 0
        assert export_main([str(source), out]) == 2
        assert (
            f"error: {out} already exists: choose a different name, or replace it with --force"
            in capsys.readouterr().err
        )
        before = clean_s3.names("bucket")
        assert export_main([str(source), out, "--force", "--half"]) == 0
        assert clean_s3.names("bucket") == before
    assert len(stored(clean_s3)["model.safetensors"]) < len(clean_s3.read("bucket", "osm.pt"))
    clean_s3.put("bucket", "photos/cat.jpg", b"cat")
    assert export_main([str(source), "s3://bucket/photos", "--force"]) == 2
    assert "s3://bucket/photos already exists but contains no model, so it is not replaced" in capsys.readouterr().err
    assert export_main([str(source), "https://host/model?token=secret"]) == 2
    said = capsys.readouterr().err
    assert "error: out https://host/model: the location is read-only" in said and "secret" not in said


@pytest.mark.parametrize("force", [False, True])
def test_an_upload_that_is_cut_off_leaves_no_model(
    source: Path,
    tmp_path: Path,
    clean_s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    force: bool,
) -> None:
    call = [str(source), URL, *(["--force"] if force else [])]
    if force:
        export(source, URL)
    for name in ("model.safetensors", "config.json"):
        clean_s3.status, clean_s3.methods = {f"bucket/model/{name}": 500}, {"PUT"}
        assert export_main(call) == 3
        said = capsys.readouterr().err
        assert (
            f"error: {URL}/{name}: " in said
            and "the same command again to resume" in said
            and clean_s3.SECRET not in said
        )
        assert "config.json" not in stored(clean_s3), "old weights' config beside new weights would be a third model"
    clean_s3.status = {}
    if not force:
        monkeypatch.setenv("OSM_CACHE", str(tmp_path / "another machine"))
        assert export_main(call) == 2
        assert f"{URL} already exists (without its config.json, probably because" in capsys.readouterr().err
        monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    assert export_main(call) == 0
    export(source, tmp_path / "model")
    assert stored(clean_s3) == here(tmp_path / "model") and not staged(tmp_path)


def test_gs_through_a_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "google").mkdir()
    export(source, tmp_path / "model")
    with registered("gs", tmp_path / "google"):
        export(source, "gs://bucket/model")
    assert here(tmp_path / "google" / "bucket" / "model") == here(tmp_path / "model")
