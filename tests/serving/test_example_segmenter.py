"""A segmenter of another package makes the masks of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_packages import install_example
from server_threads import as_base64, drawn_picture, served

from osm.errors import OsmError
from osm.listing import main
from osm.recognition.recognizer import load_recognizer
from osm.recognition.segmenters import SEGMENTERS, load_segmenter, register_segmenter
from osm.serving.engine import load_engine


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install_example("segmenter", tmp_path))


@pytest.mark.usefixtures("installed")
def test_the_server_asks_it(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segmenters", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["tiles"] == {
        "name": "tiles",
        "origin": "osm-example-segmenter",
        "about": "Cuts an image into a grid of square tiles.",
    }
    engine = load_engine(checkpoint, "tiles", device="cpu")
    with served(engine) as server:
        body = {"image": as_base64(drawn_picture()), "everything": True, "max_segments": 3, "masks": True}
        status, document, _ = server.send("/v1/name", body)
        assert status == 200 and len(document["regions"]) == 3, document
        assert server.send("/v1/models")[1]["data"][0]["segmenter"] == engine.segmenter.name == "tiles"


@pytest.mark.usefixtures("installed")
def test_names_and_paths(checkpoint: Path) -> None:
    recognizer = load_recognizer(checkpoint, device="cpu")
    one = load_segmenter("osm_example_segmenter:TileSegmenter", recognizer=recognizer, tiles=2)
    assert type(one) is SEGMENTERS.get("tiles") and one.tiles == 2
    with pytest.raises(OsmError, match="--segmenter tiles does not take a checkpoint, but x.pth was given"):
        load_segmenter("tiles", "x.pth")
    with pytest.raises(OsmError, match="segmenter 'osm.errors:OsmError': expected a subclass of .*base.Segmenter"):
        load_segmenter("osm.errors:OsmError")
    with pytest.raises(OsmError, match="segmenter 'sam': .*name"):
        register_segmenter("sam")(type(one))
