"""Published checkpoint files, files that must be refused, and folders of `save_pretrained`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_instructblip, tiny_instructblip_folder, tiny_llm, tiny_model_section, tiny_model_yaml
from torch import Tensor

import osm
from osm.config import from_dict
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.factory import build, load_folder
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel

MODES = ("coco", "lvis", "v3det", "a847", "pc459", "partimagenet", "pascal_part", "ade20k", "cityscapes", "any")


def published_shapes(
    tokens: int = 20, vision: int = 32, width: int = 24, llm: int = 40, layers: int = 4, queries: int = 4
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, written out from their description and not from the code."""
    shapes: dict[str, tuple[int, ...]] = {
        "window_pos_embed": (1, tokens, vision),
        "mask_query": (1, queries, width),
        "context_query": (1, queries, width),
        "base_model.query_tokens": (1, queries, width),
        "base_model.language_projection.weight": (llm, width),
        "base_model.language_projection.bias": (llm,),
        "base_model.qformer.embeddings.word_embeddings.weight": (61, width),
        "base_model.qformer.embeddings.position_embeddings.weight": (40, width),
    }
    for mode in MODES:
        shapes[f"qformer_mode_query.{mode}"], shapes[f"mode_query.{mode}"] = (1, 1, width), (1, 1, llm)
    linear: dict[str, tuple[int, int]] = {}
    norms = ["embeddings.layernorm"]
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for block, keys in (("attention", width), *([("crossattention", vision)] if i % 2 == 0 else [])):
            for name in ("query", "key", "value"):
                linear[f"{layer}.{block}.attention.{name}"] = (width, width if name == "query" else keys)
            linear[f"{layer}.{block}.output.dense"] = (width, width)
            norms.append(f"{layer}.{block}.output.LayerNorm")
        for half in ("", "_query"):
            linear[f"{layer}.intermediate{half}.dense"] = (2 * width, width)
            linear[f"{layer}.output{half}.dense"] = (width, 2 * width)
            norms.append(f"{layer}.output{half}.LayerNorm")
    for name, (out, inner) in [*linear.items(), *((norm, (width, 0)) for norm in norms)]:
        shapes[f"base_model.qformer.{name}.weight"] = (out, inner) if inner else (out,)
        shapes[f"base_model.qformer.{name}.bias"] = (out,)
    return shapes


def published_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in published_shapes().items()}
    state["base_model.query_tokens"] = state["context_query"]
    return state


def save(path: Path, state: dict[str, Any]) -> Path:
    torch.save({"epoch": 9, "model_state_dict": state, "optimizer_state_dict": {}, "lr_scheduler_state_dict": {}}, path)
    return path


@pytest.fixture
def model() -> OmniScientModel:
    return OmniScientModel.from_instructblip(tiny_instructblip(), 56, 28, 28).eval()


def copied(model: OmniScientModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.trainable_state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_published_file_loads(model: OmniScientModel, tmp_path: Path) -> None:
    state = published_state()
    named = {}
    for number, (name, value) in enumerate(state.items()):  # `module.` where DDP and FSDP put it
        head, dot, tail = name.partition(".")
        named[(f"module.{name}", f"{head}{dot}module.{tail}", name)[number % 3] if dot else f"module.{name}"] = value
    named["module.base_model.qformer.embeddings.position_ids"] = torch.arange(40)[None]
    rest = model.load_checkpoint(save(tmp_path / "checkpoint_9.pt", named))
    assert rest == {"epoch": 9, "optimizer_state_dict": {}, "lr_scheduler_state_dict": {}}
    assert_equal(model.trainable_state_dict(), state)
    assert torch.equal(model.bridge.mode_query["lvis"], state["mode_query.lvis"])


def test_leading_axes_of_one_do_not_matter(model: OmniScientModel, tmp_path: Path) -> None:
    state = published_state()
    flat = {name: value.reshape(value.shape[-1]) if "mode_query" in name else value for name, value in state.items()}
    model.load_checkpoint(save(tmp_path / "flat.pt", flat))
    assert_equal(model.trainable_state_dict(), state)


def more(state: dict[str, Any]) -> None:
    state["base_model.qformer.pooler.weight"] = torch.ones(2)


def less(state: dict[str, Any]) -> None:
    del state["mode_query.ade20k"]


def reshaped(state: dict[str, Any]) -> None:
    state["window_pos_embed"] = torch.ones(1, 21, 32)


def transposed(state: dict[str, Any]) -> None:
    state["base_model.language_projection.weight"] = torch.ones(24, 40)


def no_tensor(state: dict[str, Any]) -> None:
    state["mask_query"] = "hello"


def twice(state: dict[str, Any]) -> None:
    state["module.mask_query"] = state["mask_query"] + 1


def unnamed(state: dict[str, Any]) -> None:
    state[7] = torch.ones(1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more, "unexpected: base_model.qformer.pooler.weight"),
        (less, "missing: mode_query.ade20k"),
        (reshaped, r"shape of window_pos_embed: \(1, 21, 32\) in the file, \(1, 20, 32\) in the model"),
        (transposed, r"base_model.language_projection.weight: \(24, 40\) in the file, \(40, 24\)"),
        (no_tensor, "mask_query is not a dense tensor of real numbers: str"),
        (twice, "given twice, with and without 'module.': mask_query"),
        (unnamed, "unexpected: 7"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    model: OmniScientModel, tmp_path: Path, change: Any, message: str
) -> None:
    before, state = copied(model), published_state()
    change(state)
    path = save(tmp_path / "wrong.pt", state)
    with pytest.raises(OsmError, match=message) as error:
        model.load_checkpoint(path)
    assert str(path) in str(error.value) and "(1 entries differ)" in str(error.value)
    assert_equal(model.trainable_state_dict(), before)


def test_context_query_is_used_where_query_tokens_differ(model: OmniScientModel, tmp_path: Path) -> None:
    state = published_state()
    state["context_query"] = state["context_query"] + 1
    with pytest.warns(UserWarning, match="query_tokens differs from context_query"):
        model.load_checkpoint(save(tmp_path / "untied.pt", state))
    assert torch.equal(model.bridge.context_query, state["context_query"])


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    model: OmniScientModel, tmp_path: Path, zipped: bool
) -> None:
    document = {"model_state_dict": published_state(), "epoch": Bomb(tmp_path / "ran")}
    torch.save(document, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(OsmError, match=r"bomb.pt holds more than tensors and plain values \(\w+.mkdir\)") as error:
        model.load_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(error.value), "torch's advice to load it anyway must not be passed on"


@pytest.mark.parametrize(
    "content", [b"", b"hello, text\n", b"<!DOCTYPE html><html>Not found</html>", b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_files_that_are_no_checkpoint_are_refused(model: OmniScientModel, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(OsmError, match="checkpoint .*x.pt"):
        model.load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_a_file_cut_short_is_refused(model: OmniScientModel, tmp_path: Path, part: float, zipped: bool) -> None:
    before = copied(model)
    torch.save({"model_state_dict": published_state()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: int(part * len(content))])
    with pytest.raises(OsmError, match="checkpoint .*x.pt"):
        model.load_checkpoint(tmp_path / "x.pt")
    assert_equal(model.trainable_state_dict(), before)


def test_missing_files_and_files_without_a_model_are_refused(model: OmniScientModel, tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="nowhere.pt cannot be read"):
        model.load_checkpoint(tmp_path / "nowhere.pt")
    torch.save({"epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(OsmError, match="has no 'model_state_dict'"):
        model.load_checkpoint(tmp_path / "x.pt")


# -- folders of save_pretrained ----------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> tuple[OmniScientModel, Path]:
    """A model of random tower and tiny LLM, saved into the returned folder."""
    torch.manual_seed(0)
    model, _ = build(from_dict(ModelConfig, tiny_model_section(tmp_path), "model"))
    torch.nn.init.normal_(model.window_pos_embed)
    model.save_pretrained(tmp_path / "saved")
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1  # weights can be read by whoever can read their config
    return model.eval(), tmp_path / "saved"


def answers(model: OmniScientModel) -> Tensor:
    """Logits of three steps for one mask."""
    size = model.config.input_size
    mask = torch.zeros(1, 1, size, size)
    mask[..., :20, :30] = 1
    ids = torch.tensor([[1, 5, 6, 7]])
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    out = model.generate(
        picture, ids, ids > 0, ids, (ids > 0).long(), mask, mask,
        max_new_tokens=3, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack(out.logits)


def test_saved_and_loaded_answers_the_same(built: tuple[OmniScientModel, Path]) -> None:
    model, folder = built
    loaded = load_folder(folder)[0]
    assert not loaded.training and torch.equal(answers(loaded), answers(model))
    assert_equal(loaded.trainable_state_dict(), model.trainable_state_dict())
    assert loaded.config == model.config and loaded.config.llm.source == "folder"
    assert [p.name for p in sorted(folder.iterdir())] == ["config.json", "model.safetensors"]


def test_only_trained_parts_are_saved(built: tuple[OmniScientModel, Path]) -> None:
    model, folder = built
    saved = load_file(folder / "model.safetensors")
    assert not [name for name in saved if name.startswith(("llm", "tower", "base_model.language_model"))]
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    assert trained <= {value.data_ptr() for value in model.trainable_state_dict().values()}
    assert saved.keys() == model.trainable_state_dict().keys()


def test_a_model_around_an_instructblip_folder_survives_saving(tmp_path: Path) -> None:
    base = tiny_instructblip_folder(tmp_path / "base")
    sizes = {"input_size": 56, "sliding_window_size": 28, "sliding_window_stride": 28}
    model, processor = osm.create_model_and_transforms(
        str(tmp_path / "base"), **sizes, backbone_output_stride=14, backbone_output_channel=32
    )
    assert torch.equal(model.bridge.mask_query, base.query_tokens)
    text = processor.prompts(["What is in the segmentation mask? Assistant:"])
    assert processor.qformer_tokenizer is not None
    instruction = processor.qformer_tokenizer.convert_ids_to_tokens(text.qformer_ids[0].tolist())
    assert instruction[0] == "[CLS]" and instruction[-1] == "[SEP]" and "[UNK]" not in instruction
    model.eval().save_pretrained(tmp_path / "saved")
    assert torch.equal(answers(load_folder(tmp_path / "saved")[0]), answers(model))


@pytest.mark.parametrize("part", ["llm", "tower"])
def test_other_frozen_parts_are_refused(built: tuple[OmniScientModel, Path], part: str) -> None:
    model, folder = built
    if part == "llm":
        tiny_llm(Path(model.config.llm.name), seed=5)
    else:
        document = json.loads((folder / "config.json").read_text())
        document["model"]["tower"]["seed"] = 5
        (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(OsmError, match=f"the {part} .*expected hash [0-9a-f]{{12}}.*, found [0-9a-f]{{12}}"):
        load_folder(folder)[0]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "saved"),
        ("config.json", b"\xff\xfe\xfa", "saved"),
        ("config.json", b"[]", "not an OmniScientModel config"),
        ("config.json", b'{"format": 2, "model": {}}', "format 1"),
        ("model.safetensors", b"nothing", "saved"),
        ("model.safetensors", None, "saved"),
    ],
)
def test_broken_folders_are_refused(
    built: tuple[OmniScientModel, Path], file: str, content: bytes | None, message: str
) -> None:
    (built[1] / file).unlink()
    if content is not None:
        (built[1] / file).write_bytes(content)
    with pytest.raises(OsmError, match=message):
        load_folder(built[1])[0]


def test_folders_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "nowhere", "not/a/hub-id"):
        with pytest.raises(OsmError, match="no such folder, and not a hub id"):
            load_folder(name)[0]
    with pytest.raises(OsmError, match="no such folder, and it cannot be loaded from the hub"):
        load_folder("nobody/nothing")[0]


def test_a_pt_file_with_its_config_needs_nothing_else(built: tuple[OmniScientModel, Path], tmp_path: Path) -> None:
    model, _ = built
    document = {
        "model_state_dict": model.trainable_state_dict(),
        "config": checkpoint.config_document(model),
        "epoch": 3,
    }
    torch.save(document, tmp_path / "checkpoint_3.pt")
    loaded, _, rest = osm.load_model(tmp_path / "checkpoint_3.pt")
    assert torch.equal(answers(loaded), answers(model)) and rest["epoch"] == 3
    del document["config"]
    torch.save(document, tmp_path / "bare.pt")
    loaded, _, _ = osm.load_model(tmp_path / "bare.pt", config=str(tiny_model_yaml(tmp_path)))
    assert torch.equal(answers(loaded), answers(model))
    shutil.rmtree(model.config.llm.name)
    with pytest.raises(OsmError, match="weights of .* were not found"):
        osm.load_model(tmp_path / "checkpoint_3.pt")


@pytest.mark.parametrize(
    ("flag", "found"),
    [("backbone_output_stride", 14), ("backbone_output_channel", 32), ("maskqformer_channel", 24), ("llm_channel", 40)],
)
def test_widths_that_do_not_fit_name_the_flag(tmp_path: Path, flag: str, found: int) -> None:
    path = str(tiny_model_yaml(tmp_path))
    osm.create_model_and_transforms(path, **{flag: found})
    with pytest.raises(OsmError, match=f"--{flag} is 4096, but the base model's value is {found}"):
        osm.create_model_and_transforms(path, **{flag: 4096})
