"""The trained model that comes with the package: it loads without a network, by its name, and names a photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from frozen_parts import needs_frozen
from PIL import Image

import osm
from osm.cli import main
from osm.models.fast_llama import fast_llama
from osm.models.packed_linear import is_packing_right

FOLDER = Path(osm.__file__).parent / "weights" / "osm_small"


def test_it_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 24e6
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert all(word in card for word in ("CamVid", "COCO", "Clothing", "license"))


@pytest.mark.slow
@needs_frozen
def test_its_llm_takes_the_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # If its check does not allow for the rounding of a CPU, the model is slower there, with one line in the log.
    if not is_packing_right():
        pytest.skip("this PyTorch has no packed products")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fast_llama(osm.load_recognizer("osm_small").model.llm) is not None


@pytest.mark.slow
@needs_frozen
def test_it_names_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)  # not found because the checkout is the working folder
    Image.fromarray(skimage.data.coffee()).save("coffee.png")
    mask = np.zeros((400, 600), np.uint8)
    ys, xs = np.ogrid[:400, :600]
    mask[((ys - 150) / 130) ** 2 + ((xs - 290) / 110) ** 2 <= 1] = 255
    Image.fromarray(mask).save("cup.png")
    arguments = ["coffee.png", "--checkpoint", "osm_small", "--mask", "cup.png", "--mode", "coco", "--top_k", "3"]
    assert main(["name", *arguments]) == 0
    said = capsys.readouterr().out
    assert "cup" in said or "bowl" in said, said
