"""An LLM spread over the memory of a machine and its disk says what it says in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_namer import built, picture, some_masks  # noqa: F401  (built is a fixture)
from test_recognizer import Built, close

import osm
from osm.errors import OsmError
from osm.labeling import name_cli as cli
from osm.recognition.placement import parse_max_memory, spread


@pytest.fixture
def folder(built: Built, tmp_path: Path) -> Path:  # noqa: F811
    built[0].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("method", ["free", "beam", "scored"])
def test_spread_over_memory_and_disk(folder: Path, tmp_path: Path, method: str) -> None:
    whole = osm.load_recognizer(folder, device="cpu")
    names = {"": "cpu", **dict.fromkeys(["model.layers.1", "lm_head"], "disk")}
    children = [name for name, _ in whole.model.llm.named_modules()]
    assert {"model.layers.1", "lm_head"} <= set(children)
    parts = {
        name: "disk" if name in names else "cpu"
        for name in ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
        + [n for n in children if n.startswith("model.layers.") and n.count(".") == 2]
    }
    spread_out = osm.load_recognizer(folder, device="cpu", device_map=parts, offload_folder=tmp_path / "disk")
    assert any(p.device.type == "meta" for p in spread_out.model.llm.parameters())  # it really is on the disk
    assert list((tmp_path / "disk").iterdir())
    options = {"free": {}, "beam": {"top_k": 3}, "scored": {"vocabulary": ["cat", "dog"], "method": "scored"}}[method]
    found = []
    for recognizer in (whole, spread_out):
        recognizer.set_image(picture(0))
        found.append(recognizer.name(some_masks(), modes=["coco", "any"], **options))
    close(*found)


def test_auto_fills_what_it_may_and_sends_the_rest_to_the_disk(folder: Path, tmp_path: Path) -> None:
    model, _, _ = osm.load_model(folder)
    size = sum(p.numel() * p.element_size() for p in model.llm.parameters())
    with pytest.raises(OsmError, match="'auto': .* offloaded to disk; give a folder with --offload_folder"):
        spread(model.llm, "auto", {"cpu": size // 2})
    again, _, _ = osm.load_model(folder)
    ids = torch.tensor([[3, 4, 5]])
    expected = again.llm(input_ids=ids).logits
    for room, on_disk in ((size // 2, "all"), (3 * size // 4, "some")):  # in one folder, one after the other
        model, _, _ = osm.load_model(folder)
        llm = spread(model.llm, "auto", {"cpu": room}, tmp_path / "disk")
        places = {p.device.type for p in llm.parameters()}
        assert places == ({"meta"} if on_disk == "all" else {"meta", "cpu"})
        torch.testing.assert_close(llm(input_ids=ids).logits, expected)
    (tmp_path / "file").touch()
    with pytest.raises(OsmError, match="--offload_folder .*file: "):
        spread(again.llm, "auto", {"cpu": size // 2}, tmp_path / "file")


def test_wrong_maps(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="--device_map 'everywhere' is not one of auto, balanced, sequential"):
        osm.load_recognizer(folder, device="cpu", device_map="everywhere")
    with pytest.raises(OsmError, match="--device_map "):
        osm.load_recognizer(folder, device="cpu", device_map={"model.layers.0": "cpu"})  # and the rest?
    assert parse_max_memory("0=20GiB, cpu=1.5TB") == {0: 20 * 2**30, "cpu": 1_500_000_000_000}
    assert parse_max_memory("0=7,1=20gb,cpu=1 TiB") == {0: 7, 1: 20_000_000_000, "cpu": 2**40}
    with pytest.raises(OsmError, match="--max_memory '0=1GB,0=2GB': 0 is given twice"):
        parse_max_memory("0=1GB,0=2GB")
    for wrong in ("20GiB", "gpu=1GB", "0=lots", "0=", ""):
        with pytest.raises(OsmError, match=r"--max_memory .*expected PLACE=SIZE, as in 0=20GiB,cpu=60GiB"):
            parse_max_memory(wrong)
    picture(0).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--checkpoint", str(folder), "--point", "3,3", "--offload_folder", "x"]
    assert cli.main(arguments) == 2
    assert "--offload_folder x has no effect without --device_map" in capsys.readouterr().err
