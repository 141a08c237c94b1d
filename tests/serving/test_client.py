"""The Python client against a real server."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from server_threads import POLYGONS, RunningServer, block, drawn_picture, file_of, served

from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.serving.app import AccessRules
from osm.serving.client import OsmClient, ServerError
from osm.serving.engine import Engine
from osm.serving.guard import GuardLimits


def test_names(server: RunningServer, engine: Engine, tmp_path: Path) -> None:
    client = OsmClient(server.address + "/")
    file = tmp_path / "a.png"
    file.write_bytes(file_of(drawn_picture()))
    engine.recognizer.set_image(drawn_picture())
    expected = engine.recognizer.name([block()], boxes=[[8, 10, 32, 20]], top_k=2)
    for image in (file, str(file), drawn_picture(), np.asarray(drawn_picture()), file.read_bytes()):
        for mask in (block(), encode_rle(block()), POLYGONS):
            found = client.name(image, [mask], boxes=[[8, 10, 32, 20]], top_k=2)
            assert [one.text for (one,) in found] == [one.text for (one,) in expected]
            assert found[0][0].prob == pytest.approx(expected[0][0].prob, abs=1e-4)
            assert [other.text for other in found[0][0].top] == [other.text for other in expected[0][0].top]
    (only,) = client.name(file, points=[[20, 20]], segment=True, vocabulary=["cat", "dog"], method="scored")
    assert only[0].text in ("cat", "dog")
    assert [model["id"] for model in client.models()] == ["tiny"]


def test_everything(server: RunningServer) -> None:
    found = OsmClient(server.address, model="tiny").everything(drawn_picture(), max_segments=2)
    assert len(found) == 2 and found[0].names[0].mode == "any" and found[0].rle["size"] == [48, 64]


def test_errors(server: RunningServer) -> None:
    client = OsmClient(server.address)
    with pytest.raises(ServerError, match=r"region 0: .*outside") as refused:
        client.name(drawn_picture(), points=[[99, 99]])
    assert (refused.value.status, refused.value.code) == (422, "invalid_request")
    with pytest.raises(ServerError, match="model 'other' is not one of"):
        OsmClient(server.address, model="other").name(drawn_picture(), points=[[9, 9]])
    with pytest.raises(ServerError, match="cannot be reached"):
        OsmClient("http://127.0.0.1:1").models()
    with pytest.raises(OsmError, match="image none.png: cannot be read"):
        client.name("none.png", points=[[1, 1]])
    with pytest.raises(OsmError, match="image is a int"):
        client.name(7, points=[[1, 1]])  # type: ignore[arg-type]


def test_key_and_retries(engine: Engine) -> None:
    """A refusal with Retry-After is tried again, as often as allowed."""
    with served(engine, AccessRules(limits=GuardLimits(requests_per_minute=60), api_key="long-enough-key")) as server:
        with pytest.raises(ServerError, match="an API key is needed"):
            OsmClient(server.address).name(drawn_picture(), [block()])
        client = OsmClient(server.address, "long-enough-key")
        server.guard._rate._buckets["127.0.0.1"] = (0.0, time.monotonic())
        assert client.name(drawn_picture(), [block()])[0][0].text is not None
        server.guard._rate._buckets["127.0.0.1"] = (0.0, time.monotonic())
        with pytest.raises(ServerError) as refused:
            OsmClient(server.address, "long-enough-key", retries=0).name(drawn_picture(), [block()])
        assert refused.value.status == 429
