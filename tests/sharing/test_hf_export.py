"""Exports for transformers: loaded in a fresh process and from a hub, the names are the same to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from tiny import tiny_model_section

from osm.config import from_dict
from osm.models.factory import build
from osm.models.model_config import ModelConfig
from osm.recognition.recognizer import load_recognizer
from osm.sharing.export_cli import export_main

PROGRAM = """
import json, sys
from transformers import AutoModel, AutoProcessor
from PIL import Image
import numpy as np
place, image = sys.argv[1:]
model = AutoModel.from_pretrained(place, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
photo = Image.open(image).convert("RGB")
mask = np.zeros((photo.height, photo.width), bool)
mask[4:24, 4:34] = True
answers = model.name(image, [mask], boxes=[[20, 10, 20, 20]], modes=["any", "coco"], top_k=2)
names = [[[answer.text, answer.prob, list(answer.token_probs)] for answer in row] for row in answers]
inputs = processor([photo], [[mask]])
ids = model.generate(**inputs, max_new_tokens=12)
((greedy,),) = model.name(image, [mask])
print(json.dumps({"names": names, "generated": processor.batch_decode(ids), "greedy": greedy.text}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model with random trained weights."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model, _ = build(from_dict(ModelConfig, tiny_model_section(folder), "model").with_modes(["coco"]))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder / "final")
    return folder / "final"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    assert export_main([str(trained), str(out), "--format", "hf"]) == 0
    return out


def fresh(place: str, photo: Path, **environment: str) -> dict[str, Any]:
    """Name regions of a photo in a fresh process, by transformers alone."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, place, str(photo)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "Do you wish to run" not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def expected(place: Path, photo: Path) -> list[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recognizer = load_recognizer(place)
        recognizer.set_image(photo)
        mask = np.zeros((40, 60), bool)
        mask[4:24, 4:34] = True
        answers = recognizer.name([mask], boxes=[[20, 10, 20, 20]], modes=["any", "coco"], top_k=2)
    finally:
        torch.set_num_threads(threads)
    return [[[answer.text, answer.prob, list(answer.token_probs)] for answer in row] for row in answers]


def test_a_fresh_process_gives_the_same_names(trained: Path, exported: Path, photo: Path, tmp_path: Path) -> None:
    found = fresh(str(exported), photo, HF_HOME=str(tmp_path))
    wanted = expected(trained, photo)
    assert found["names"] == wanted == expected(exported, photo)
    assert found["generated"] == [found["greedy"]]  # the processor makes the same inputs


def test_the_folder_has_a_card_and_three_lines_of_code(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_osm.py", "processor_config.json"} <= names
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: osm\n") and "| bridge | maskqformer" in card and "any, coco" not in card
    code = [
        line for line in (exported / "modeling_osm.py").read_text().splitlines() if line.startswith(("import", "from"))
    ]
    assert code == ["from osm.sharing.hf_model import HfOsmConfig, HfOsmModel, HfOsmProcessor"]
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in exported.rglob("*"))


def test_a_hub_takes_it_and_gives_it_back(trained: Path, photo: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_x"}
        environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
        command = ["export", trained, tmp_path / "out", "--format", "hf", "--push_to_hub", "me/tiny", "--private"]
        done = subprocess.run(
            [sys.executable, "-m", "osm", *map(str, command)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert f"uploaded: {hub.url}/me/tiny/commit/" in done.stdout and hub.private == {"me/tiny"}
        files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert set(hub.files["me/tiny"]) == files
        found = fresh("me/tiny", photo, **environment)
        assert found["names"] == expected(trained, photo)
        program = "import sys, osm; print(osm.load_recognizer('me/tiny').model.config.modes)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "'coco'" in done.stdout, done.stderr


def test_mistakes(trained: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (
        (["out.pt", "--format", "hf"], "--format hf: out.pt must be a local folder"),
        (["s3://a/b", "--format", "hf"], "--format hf: s3://a/b must be a local folder"),
        (["out", "--push_to_hub", "me/x"], "--push_to_hub and --private need --format hf"),
        (["out", "--format", "hf", "--private"], "--private has no effect without --push_to_hub"),
        (["out", "--format", "hf", "--with_optimizer"], "--with_optimizer cannot be combined with --format hf"),
    ):
        assert export_main([str(trained), *flags]) == 2
        assert said in capsys.readouterr().err
    assert export_main([str(trained), str(exported), "--format", "hf"]) == 2
    assert "--force" in capsys.readouterr().err


def test_options_that_would_be_ignored_are_refused(exported: Path, tmp_path: Path) -> None:
    from osm.errors import OsmError
    from osm.sharing.hf_model import HfOsmModel, HfOsmProcessor

    with pytest.raises(OsmError, match="from_pretrained: device_map is not supported"):
        HfOsmModel.from_pretrained(exported, device_map="auto")
    with pytest.raises(OsmError, match="from_pretrained: use_fast is not supported"):
        HfOsmProcessor.from_pretrained(exported, use_fast=False)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "processor_config.json").write_text("{}")
    with pytest.raises(OsmError, match="processor_config.json: lacks context_enlarge_ratio"):
        HfOsmProcessor.from_pretrained(broken)
    with pytest.raises(OsmError, match="no such folder"):
        HfOsmProcessor.from_pretrained(tmp_path / "none")
    processor = HfOsmProcessor.from_pretrained(exported)
    photo = Image.new("RGB", (30, 20))
    with pytest.raises(OsmError, match="there are 1 images, but 2 lists of masks"):
        processor([photo], [[], []])
    with pytest.raises(OsmError, match="there are no masks"):
        processor([photo], [[]])
