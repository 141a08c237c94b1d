"""Weight files that run code, claim gigabytes or hold something else: one sentence, nothing run, nothing changed."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_instructblip, tiny_llm, tiny_model_section
from torch import Tensor, nn

import osm
from osm.config import from_dict
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.checkpoint import load_published_state_dict, read_published
from osm.models.factory import build, load_folder
from osm.models.llm import load_llm
from osm.models.model_config import LlmConfig, ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.weights import Found, load_first, load_torch, timm_state_dict

ROOT = Path(__file__).resolve().parents[2]


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def sentence(error: Any, path: Path) -> str:
    """One line that names the file, and does not pass on torch's advice to load it anyway."""
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 400 + len(str(path))
    for word in ("weights_only", "arbitrary code", "trusted"):
        assert word not in text
    return text


# -- code --------------------------------------------------------------------------------------------------------------


def test_nothing_that_the_project_loads_can_run_code() -> None:
    """Of every call that could unpickle or run what a file says."""
    loads = 0
    for path in (path for folder in ("osm", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"dill", "cloudpickle", "joblib", "shelve", "marshal"} & {
                    name.split(".")[0] for name in named
                }
            if not isinstance(node, ast.Call):
                continue
            called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{path.name}:{node.lineno} {called}"
            if called == "torch.load":
                loads += 1
                assert options.get("weights_only") == "True", where
            assert options.get("allow_pickle", "False") == "False", where
            assert options.get("trust_remote_code", "False") == "False", where
            assert not re.fullmatch(r"(c?pickle|torch\.jit|yaml|marshal)\.(un)?loads?|pickle\.Unpickler", called), where
            assert called not in ("eval", "exec", "os.system") and options.get("shell", "False") == "False", where
    assert loads == 1, "one place that loads torch's files, which bounds them too"


def legacy_tar(path: Path) -> None:
    """The oldest form of torch.save, whose members are pickles."""
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(Bomb(path.parent / "ran"))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def script(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model_state_dict": Bomb(path.parent / "ran")}))


def in_a_storage(path: Path) -> None:
    """The bomb in the place of a tensor's name."""
    torch.save({"model_state_dict": {"a": torch.ones(2)}, "b": [{"c": Bomb(path.parent / "ran")}]}, path)


@pytest.mark.filterwarnings("ignore")  # torch's, of what is on its way out
@pytest.mark.parametrize("make", [legacy_tar, script, plain_pickle, in_a_storage])
def test_files_whose_loading_runs_code_are_refused_in_a_sentence(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x.pt"
    make(path)
    with pytest.raises(OsmError, match="checkpoint .*x.pt .*(not loaded|cannot be read)") as error:
        read_published(path)
    sentence(error, path)
    with pytest.raises(OsmError, match="x.pt") as error:
        load_first(str(path), "folder", lambda place: timm_state_dict("test_vit", place))
    assert "arbitrary code" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_code_beside_an_llm_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llm"
    tiny_llm(folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "evil", "auto_map": {name: "evil.Evil" for name in names}})
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    with pytest.raises(OsmError, match="llm"):
        load_llm(LlmConfig(str(folder), "folder"))
    assert not (tmp_path / "ran").exists()


def test_an_llm_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    tiny_llm(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(OsmError, match="llm"):
        load_llm(LlmConfig(str(folder), "folder"))
    assert not (tmp_path / "ran").exists()


# -- claims ------------------------------------------------------------------------------------------------------------


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_records_that_expand_are_refused_before_they_do(tmp_path: Path) -> None:
    path, packed = tmp_path / "x.pt", tmp_path / "packed.pt"
    torch.save({"model_state_dict": {"a": torch.zeros(50 << 20, dtype=torch.uint8)}}, path)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records(path).items():
            archive.writestr(name, data)
    assert packed.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(OsmError, match="packed.pt cannot be read .*would expand to 52") as error:
            read_published(packed)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    sentence(error, packed)


def test_records_that_lie_on_top_of_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(10_000))
        archive.filelist *= 50  # the directory names the same bytes fifty times
    with pytest.raises(OsmError, match="would expand to 500000 bytes"):
        read_published(path)


@pytest.mark.parametrize("count", [2**31 - 1, 500, 100_000_000])
def test_tensors_that_claim_more_than_there_is_are_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"a": torch.ones(300)}}, path)
    parts = records(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            number = b"M" + struct.pack("<H", 300)  # pickle's form of the 300, the storage's and the tensor's
            archive.writestr(name, data.replace(number, b"J" + struct.pack("<i", count)) if "pkl" in name else data)
    with pytest.raises(OsmError, match="x.pt cannot be read"):
        read_published(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of odd pickles
def test_damaged_checkpoints_never_raise_anything_else(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "x.pt"
    for zipped in (True, False):
        torch.save({"model_state_dict": {"a": torch.ones(9)}, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
        whole, refused = path.read_bytes(), 0
        for turn in range(150):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.randrange(len(data))] if turn % 3 == 0 else data)
            try:
                read_published(path)
            except OsmError as error:
                assert str(path) in str(error)
                refused += 1
        assert refused > 50


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


SAFETENSORS = {
    "a header of 8 EiB": safetensors(b"{}", length=2**63 - 1),
    "a header of 90 MiB": safetensors(b"{}", length=90 << 20),
    "a tensor of 2^80": safetensors(entry(shape=[2**40, 2**40]), bytes(4)),
    "a tensor of gigabytes": safetensors(entry(shape=[2**30], data_offsets=[0, 2**32]), bytes(4)),
    "offsets beyond the end": safetensors(entry(data_offsets=[2**62, 2**62 + 4]), bytes(4)),
    "a negative size": safetensors(entry(shape=[-1]), bytes(4)),
    "another type": safetensors(entry(dtype="F99"), bytes(4)),
    "a type that torch lacks": safetensors(entry(dtype="F6_E2M3", shape=[16], data_offsets=[0, 12]), bytes(12)),
    "a list": safetensors([]),
    "a deep header": safetensors(b"[" * 10**5),
    "no utf-8": safetensors(b"\xff\xfe"),
    "too short": b"\0\0",
    "cut": safetensors(entry(), bytes(3)),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_that_lie_are_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[case])
    with pytest.raises(OsmError, match="model.safetensors cannot be read") as error:
        checkpoint.read_folder(tmp_path)
    sentence(error, path)
    with pytest.raises(OsmError, match="cannot be read"):
        load_first(str(path), "folder", lambda place: timm_state_dict("test_vit", place))


@pytest.mark.parametrize("value", [[1], 5, "text", None, {"a": 1}, {"a": [torch.ones(1)]}])
def test_a_file_of_other_things_than_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.pth")
    assert load_torch(tmp_path / "x.pth") == value
    with pytest.raises(ValueError, match="does not contain a mapping from names to tensors"):
        timm_state_dict("test_vit", Found("folder", str(tmp_path / "x.pth")))


# -- what is in them ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> OmniScientModel:
    return OmniScientModel.from_instructblip(tiny_instructblip(), 56, 28, 28).eval()


@pytest.mark.filterwarnings("ignore")  # torch's, of kinds of tensors that are on their way out
@pytest.mark.parametrize("kind", ["sparse", "quantised", "complex", "meta", "integer", "bool", "nested", "word"])
def test_tensors_that_cannot_be_copied_are_refused_by_name(model: OmniScientModel, kind: str) -> None:
    state: dict[str, Any] = {name: value.clone() for name, value in model.trainable_state_dict().items()}
    value: Tensor = state["mask_query"]
    state["mask_query"] = {
        "sparse": lambda: value.to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(value, 1, 0, torch.qint8),
        "complex": lambda: value.to(torch.complex64),
        "meta": lambda: value.to("meta"),
        "integer": lambda: value.long(),
        "bool": lambda: value.bool(),
        "nested": lambda: torch.nested.nested_tensor([value[0], value[0, :1]]),
        "word": lambda: "mask",
    }[kind]()
    state["context_query"] = state["base_model.query_tokens"] = state["context_query"] + 1
    before = model.bridge.context_query.clone()
    with pytest.raises(
        OsmError, match=r"does not fit this model \(1 entries differ\):\n  mask_query is not a dense tensor of real"
    ):
        load_published_state_dict(model, state, "checkpoint x.pt")
    assert torch.equal(model.bridge.context_query, before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random tower and tiny LLM, as `save_pretrained` leaves it."""
    root = tmp_path_factory.mktemp("saved")
    made, _ = build(from_dict(ModelConfig, tiny_model_section(root), "model"))
    made.save_pretrained(root / "model")
    return root / "model"


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


MODEL_SECTIONS = {
    "input_size": ["large", 56.0, None, True, -56, 0, 10**12, 10**4000, deep(400)],
    "sliding_window_size": [0, -28, "28", 10**12],
    "sliding_window_stride": [0, -1],
    "context_enlarge_ratio": ["half", float("nan"), float("inf"), []],
    "modes": ["any", 5, ["any", "any"], ["any", 5], ["any", "a.b"], ["any", ""], ["any", "keys"], ["other"], None],
    "mask_to_grid": [1, "middle"],
    "qformer": [[], {"layers": 10**9}, {"layers": 0}, {"heads": 0}, {"width": 10**9}, {"width": "24"}, {"dropout": 2},
                {"cross_attention_frequency": 0}, {"mask_queries": -1}, {"instruction_dim": -8}, {"other": 1}],
    "tower": [None, "vit", {"kind": "random", "patch": 0}, {"kind": "random", "width": 10**9}, {"kind": "other"},
              {"kind": "timm", "name": "hf-hub:evil/evil"}, {"kind": "timm", "name": "local-dir:/tmp"},
              {"kind": "timm", "name": "test_vit", "options": {"checkpoint_path": "x.pt"}},
              {"kind": "timm", "name": "test_vit", "options": {"embed_dim": 10**9}},
              {"kind": "timm", "name": "test_vit", "strides": [0]}],
    "llm": [None, [], {"name": 5}, {"name": "llm", "source": "http"}, {"name": "pipe:cat x"}],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, value) for f, values in MODEL_SECTIONS.items() for value in values])
def test_a_config_of_wrong_types_or_sizes_is_refused(saved: Path, tmp_path: Path, field: str, value: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    document = json.loads((folder / "config.json").read_text())
    document["model"][field] = value
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(OsmError) as error:
        load_folder(folder)[0]
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    "content",
    [b"[" * 10**5, b"1" * 5000, b"null", b'{"format": 1}', b'{"format": 1, "model": []}',
     b'{"format": [], "model": {}}', b'{"format": 1, "model": %s}' % (b"[" * 900 + b"]" * 900)],
)  # fmt: skip
def test_a_config_that_is_none_is_refused(saved: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(content)
    with pytest.raises(OsmError, match=str(tmp_path / "model" / "config.json")) as error:
        load_folder(tmp_path / "model")[0]
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("frozen", [5, ["tower"], {"tower": 5}, {"tower": None}, {"tower": deep(400)}, {"other": "x"}])
def test_hashes_of_wrong_types_are_refused(saved: Path, tmp_path: Path, frozen: Any) -> None:
    shutil.copytree(saved, tmp_path / "model")
    document = json.loads((saved / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**document, "frozen": frozen}))
    with pytest.raises(OsmError, match="hash"):
        load_folder(tmp_path / "model")[0]


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "model_type", "quantization_config", "dtype"])
def test_an_llm_config_of_wrong_types_is_refused(tmp_path: Path, field: str) -> None:
    tiny_llm(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wrong = {"num_attention_heads": 0, "model_type": [], "dtype": "evil"}.get(field, "x")
    (tmp_path / "config.json").write_text(json.dumps({**config, field: wrong}))
    with pytest.raises(OsmError, match=f"folder {tmp_path}: \\S"):
        load_llm(LlmConfig(str(tmp_path), "folder"))


def test_modes_of_a_checkpoint_are_names(saved: Path, tmp_path: Path) -> None:
    made, _ = build(checkpoint.model_config(json.loads((saved / "config.json").read_text()), "config"))
    state = {**made.trainable_state_dict(), "mode_query.a.b": torch.ones(1, 1, 40)}
    torch.save({"model_state_dict": state}, tmp_path / "x.pt")
    config, modes = checkpoint.config_and_modes(tmp_path / "x.pt")
    assert config is None and "a.b" in modes
    with pytest.raises(OsmError, match="mode 'a.b': a mode name may contain only letters"):
        build(made.config.with_modes(modes))


def test_a_checkpoint_is_never_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "pipe:touch ran .pt",
        "| touch ran .pt",
        "file:///x.pt",
        "http://localhost/x.pt",
        "pipe:touch ran",
        "|x",
    ):
        with pytest.raises(OsmError):
            osm.load_model(name)
    assert not list(tmp_path.iterdir())
