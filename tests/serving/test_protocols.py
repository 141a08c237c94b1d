"""Other tools' protocols: OpenAI's own client, X-AnyLabeling's requests, Label Studio's ML backend."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_threads import RunningServer, as_base64, as_data_uri, block, drawn_picture, file_of, served

from osm.labeling.formats.label_format import MaskSource
from osm.labeling.formats.label_studio_json import LabelStudioJson
from osm.labeling.outlines import draw_centers
from osm.serving.engine import Engine
from osm.serving.url_fetch import UrlRules

CONFIG = """<View><Image name="photo" value="$picture"/>
<{tag} name="tag" toName="photo"><Label value="Cat"/><Label value="Guide dog" background="red"/></{tag}></View>"""


def rgba(number: int = 0) -> Image.Image:
    image = drawn_picture(number).convert("RGBA")
    image.putalpha(Image.fromarray(block().astype(np.uint8) * 255))
    return image


def chat(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


def picture_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_data_uri(image)}}


# -- OpenAI ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def test_chat(client: Any, engine: Engine) -> None:
    engine.recognizer.set_image(drawn_picture())
    expected = engine.recognizer.name([block()])[0][0]
    answer = client.chat.completions.create(
        model="tiny", messages=chat(picture_part(rgba())), max_tokens=16, temperature=0.2
    )
    (choice,) = answer.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and answer.object == "chat.completion" and answer.model == "tiny"
    assert answer.usage.completion_tokens == len(expected.token_probs) and answer.usage.prompt_tokens > 0
    assert answer.osm["prob"] == pytest.approx(expected.prob, abs=1e-4)
    assert answer.osm["ignored"] == ["max_tokens", "temperature", "text"]  # nothing is ignored silently


def test_stream(client: Any) -> None:
    arguments = {"model": "tiny", "messages": chat(picture_part(rgba())), "stream": True}
    whole = client.chat.completions.create(**{**arguments, "stream": False}).choices[0].message.content
    chunks = list(client.chat.completions.create(**arguments))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    chunks = list(client.chat.completions.create(**arguments, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0


def test_extensions(client: Any) -> None:
    more = {"mode": "any", "vocabulary": ["cat", "dog"]}
    answer = client.chat.completions.create(model="tiny", messages=chat(picture_part(rgba())), extra_body=more)
    assert answer.choices[0].message.content in ("cat", "dog")


def test_models(client: Any, server: RunningServer, engine: Engine) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.modes == list(engine.modes) and model.segmenter == "areas"
    assert client.models.retrieve("tiny").id == "tiny"
    assert server.send("/v1/models/none")[0] == 404


def test_chat_mistakes(client: Any) -> None:
    import openai

    plain, empty = drawn_picture(), rgba()
    empty.putalpha(0)
    for messages, sentence in (
        (chat(picture_part(plain)), r"messages\[0\].content\[0\].image_url: the image must have an alpha channel"),
        (chat(picture_part(empty)), "no region to name: the mask is empty"),
        (chat(), "0 parts of the type image_url"),
        (chat(picture_part(rgba()), picture_part(rgba())), "2 parts of the type image_url"),
        (chat({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}), "is not allowed"),
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=sentence):
            client.chat.completions.create(model="tiny", messages=messages)
    with pytest.raises(openai.NotFoundError, match="model 'gpt' is not one of: tiny"):
        client.chat.completions.create(model="gpt", messages=chat(picture_part(rgba())))
    with pytest.raises(openai.UnprocessableEntityError, match="n: "):
        client.chat.completions.create(model="tiny", messages=chat(picture_part(rgba())), n=2)


def test_the_path_without_v1(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": chat(picture_part(rgba()))}
    assert server.send("/chat/completions", body)[0] == 200


# -- X-AnyLabeling -----------------------------------------------------------------------------------------------------


def predict(server: RunningServer, **params: Any) -> dict[str, Any]:
    """As X-AnyLabeling's client sends it: these parameters always, and the header `Token`."""
    base = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
    body = {"model": "tiny", "image": as_data_uri(drawn_picture()), "params": {**base, **params}}
    status, document, _ = server.send("/v1/predict", body, {"Token": ""})
    assert status == 200 and document["success"] is True, document
    return document["data"]


def test_xanylabeling_models(server: RunningServer) -> None:
    status, document, _ = server.send("/v1/models", headers={"Token": ""})
    assert status == 200 and document["success"] and set(document["data"]) == {"tiny"}
    info = server.send("/v1/models/tiny/info")[1]["data"]
    assert info == document["data"]["tiny"] and info["batch_processing_mode"] == "default"
    assert {"name": "button_run", "value": None} in info["widgets"]


def test_xanylabeling_marks(server: RunningServer) -> None:
    point = {"type": "point", "data": [20, 20], "label": 1}
    data = predict(server, marks=[point])
    assert data["replace"] is False and data["ignored"] == ["iou_threshold"]
    (shape,) = data["shapes"]
    assert shape["shape_type"] == "polygon" and 0 <= shape["score"] <= 1 and shape["group_id"] is None
    for key in ("label", "attributes", "description", "difficult", "flags"):
        assert key in shape
    outside = {"type": "point", "data": [60, 40], "label": 0}
    assert predict(server, marks=[point, outside])["shapes"] == data["shapes"]
    (shape,) = predict(server, marks=[{"type": "rectangle", "data": [40, 30, 8, 10]}])["shapes"]
    assert (draw_centers([shape["points"]], (48, 64)) == block()).all()


def test_xanylabeling_everything(server: RunningServer) -> None:
    data = predict(server, text_prompt="Cat.Guide  dog")
    assert data["replace"] is True and {shape["label"] for shape in data["shapes"]} <= {"Cat", "Guide  dog"}
    assert len(data["shapes"]) >= 2
    none = predict(server, conf_threshold=1.0)
    assert none["shapes"] == [] and "names are below conf_threshold" in none["description"]
    coarse, fine = (sum(len(s["points"]) for s in predict(server, epsilon_factor=e)["shapes"]) for e in (0.1, 0.0))
    assert coarse <= fine


def test_xanylabeling_mistakes(server: RunningServer) -> None:
    for params, sentence in (
        ({"marks": [{"type": "circle", "data": [1, 2]}]}, "params.marks[0] is neither a point"),
        ({"marks": [{"type": "point", "data": [1, 2], "label": 0}]}, "at least one point with the label 1"),
        ({"conf_threshold": 2}, "params.conf_threshold"),
        ({"marks": [{"type": "point", "data": [99, 2]}]}, "outside the image"),
    ):
        body = {"model": "tiny", "image": as_base64(drawn_picture()), "params": params}
        assert sentence in server.message("/v1/predict", body)
    assert "model 'x' is not one of" in server.message("/v1/predict", {"model": "x", "image": ""}, 404)


# -- Label Studio ------------------------------------------------------------------------------------------------------


def ask_backend(server: RunningServer, tag: str, **more: Any) -> list[dict[str, Any]]:
    task = {"id": 5, "data": {"picture": as_data_uri(drawn_picture())}}
    body = {"tasks": [task], "project": "3.123", "label_config": CONFIG.format(tag=tag), **more}
    status, document, _ = server.send("/predict", body)
    assert status == 200, document
    (prediction,) = document["results"]
    assert prediction["model_version"] == "tiny" and 0 <= prediction["score"] <= 1
    return prediction["result"]


def drawn(*rows: Any) -> dict[str, Any]:
    return {"params": {"context": {"result": list(rows)}}}


POINT = {"type": "keypointlabels", "value": {"x": 100 * 20 / 64, "y": 100 * 20 / 48, "width": 1}}


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels", "RectangleLabels"])
def test_label_studio(server: RunningServer, tag: str) -> None:
    (row, *_) = ask_backend(server, tag, **drawn(POINT))
    assert (row["from_name"], row["to_name"], row["type"]) == ("tag", "photo", tag.lower())
    assert (row["original_width"], row["original_height"]) == (64, 48)
    assert row["value"][tag.lower()][0] in ("Cat", "Guide dog")  # the labels of the project, as they are spelled there
    segments = ask_backend(server, tag)
    assert len({json.dumps(segment["value"]) for segment in segments}) == len(segments) > 1
    for segment in segments:  # what it sends can be read again
        (shape,) = LabelStudioJson.read_shapes(segment, MaskSource("", ""), (64, 48), "row")
        assert shape.area > 0


def test_label_studio_tools(server: RunningServer) -> None:
    """A rectangle is segmented, a brush stroke is named as it is."""
    rectangle = {
        "type": "rectanglelabels",
        "value": {"x": 12.5, "y": 25, "width": 50, "height": 50},
    }
    (row,) = ask_backend(server, "BrushLabels", **drawn(rectangle))
    (shape,) = LabelStudioJson.read_shapes(row, MaskSource("", ""), (64, 48), "row")
    assert shape.bounds == [8, 12, 32, 24] and shape.area == 32 * 24
    (again,) = ask_backend(server, "BrushLabels", **drawn(row))
    assert again["value"] == row["value"]
    task = {"id": 1, "data": {"picture": as_data_uri(drawn_picture())}}
    ellipse = {"type": "ellipselabels", "value": {"x": 5, "y": 5, "radiusX": 2, "radiusY": 2}}
    body = {"tasks": [task], "label_config": CONFIG.format(tag="BrushLabels"), **drawn(ellipse)}
    assert "context.result[0]: the type 'ellipselabels' is not supported" in server.message("/predict", body)
    negative = {**POINT, "is_positive": 0}
    assert "at least one positive key point" in server.message(
        "/predict",
        {
            "tasks": [{"id": 1, "data": {"picture": as_data_uri(drawn_picture())}}],
            "label_config": CONFIG.format(tag="BrushLabels"),
            **drawn(negative),
        },
    )


def test_label_studio_setup(server: RunningServer) -> None:
    body = {"project": "7.1", "schema": CONFIG.format(tag="RectangleLabels"), "hostname": "", "access_token": ""}
    status, document, _ = server.send("/setup", {**body, "extra_params": '{"max_segments": 1}'})
    assert status == 200 and document == {"model_version": "tiny"}
    assert len(ask_backend(server, "RectangleLabels", project="7.1", label_config="")) == 1
    assert server.send("/webhook", {"action": "ANNOTATION_CREATED"})[1]["status"] == "ignored"
    assert server.send("/health")[1]["model_class"] == "OmniScientModel"
    for extra, sentence in (
        ('{"mode": "colour"}', "extra_params.mode 'colour' is not one of"),
        ('{"max_segments": 0}', "max_segments"),
        ("[", "extra_params is not JSON"),
        ("[1]", "extra_params is not an object"),
    ):
        assert sentence in server.message("/setup", {**body, "extra_params": extra})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("<View>", "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "has a document type declaration"),
        (
            '<View><Image name="i" value="$p"/></View>',
            "needs a BrushLabels, PolygonLabels, RectangleLabels tag for an <Image>",
        ),
        ("x" * (1 << 20) + "x", "characters, but the maximum is"),
    ],
)
def test_label_studio_configs(server: RunningServer, config: str, sentence: str) -> None:
    task = {"id": 1, "data": {"p": ""}}
    assert sentence in server.message("/predict", {"tasks": [task], "label_config": config})
    assert sentence in server.message("/setup", {"project": 1, "schema": config})


class Studio(BaseHTTPRequestHandler):
    """A stand-in for the part of Label Studio that serves uploaded pictures to those with a token."""

    tokens: list[str | None] = []

    def do_GET(self) -> None:
        Studio.tokens.append(self.headers.get("Authorization"))
        self.send_response(200 if self.path == "/data/upload/1/a.png" else 404)
        self.end_headers()
        self.wfile.write(file_of(drawn_picture()))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def studio() -> Iterator[int]:
    site = ThreadingHTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site.server_port
    site.shutdown()


def test_one_bad_task_does_not_lose_the_others(server: RunningServer) -> None:
    good, bad = (
        {"id": 1, "data": {"picture": as_data_uri(drawn_picture())}},
        {"id": "\ud800", "data": {"picture": "no"}},
    )
    body = {"tasks": [good, bad, good], "label_config": CONFIG.format(tag="RectangleLabels")}
    status, document, _ = server.send("/predict", body)
    first, second, third = document["results"]
    assert status == 200 and first["result"] and third["result"] and second["result"] == []
    assert second["error"].startswith("task ") and "not base64" in second["error"]
    assert "not base64" in server.message("/predict", {**body, "tasks": [bad]})


def test_hostnames(server: RunningServer) -> None:
    for hostname in ("http://[", "studio", "file:///etc"):
        body = {"project": 1, "schema": CONFIG.format(tag="RectangleLabels"), "hostname": hostname}
        assert "hostname" in server.message("/setup", body)


def test_the_servers_own_token_stays_with_its_studio(
    engine: Engine, studio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request cannot send it to another host that is allowed as well."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "own-secret")
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://studio.internal")
    config, host = CONFIG.format(tag="RectangleLabels"), f"http://127.0.0.1:{studio}"
    task = {"tasks": [{"id": 9, "data": {"picture": f"{host}/data/upload/1/a.png"}}], "project": "1"}
    with served(engine, urls=UrlRules((), (f"127.0.0.1:{studio}",))) as server:
        server.send("/setup", {"project": "1", "schema": config, "hostname": host, "access_token": "theirs"})
        Studio.tokens.clear()
        assert server.send("/predict", task)[0] == 200 and Studio.tokens == [None]
        monkeypatch.setenv("LABEL_STUDIO_URL", host)
        assert server.send("/predict", task)[0] == 200 and Studio.tokens == [None, "Token own-secret"]


def test_label_studio_pictures(engine: Engine, studio: int) -> None:
    """A relative address is read from Label Studio, with its token, if the flag allows the host."""
    host = f"http://127.0.0.1:{studio}"
    config = CONFIG.format(tag="RectangleLabels")
    body = {"project": "1", "schema": config, "hostname": host, "access_token": "secret"}
    task = {"tasks": [{"id": 9, "data": {"picture": "/data/upload/1/a.png"}}], "project": "1"}
    with served(engine, urls=UrlRules((), (f"127.0.0.1:{studio}",))) as server:
        assert "task 9: data.picture is relative" in server.message("/predict", {**task, "label_config": config})
        assert server.send("/setup", body)[0] == 200
        Studio.tokens.clear()
        assert server.send("/predict", task)[0] == 200 and Studio.tokens == ["Token secret"]
    with served(engine) as server:
        server.send("/setup", body)
        message = server.message("/predict", task)
        assert message.startswith("task 9: data.picture: the host '127.0.0.1' is not allowed")
