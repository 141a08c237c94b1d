"""The server's own interface over real HTTP: regions in every form, lists, uploads, limits, exports."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server_threads import (
    POLYGONS,
    RunningServer,
    as_base64,
    as_data_uri,
    block,
    drawn_picture,
    file_of,
    rle_region,
    served,
)

from osm.io.segmentation import draw_segmentation
from osm.serving.downloads import DOWNLOADS
from osm.serving.engine import Engine
from osm.serving.http_images import ImageLimits
from osm.serving.jobs import answer_record
from osm.serving.services import ListLimits

PICTURE = as_base64(drawn_picture())


def name(server: RunningServer, *regions: Any, **more: Any) -> list[dict[str, Any]]:
    status, document, _ = server.send("/v1/name", {"image": PICTURE, "regions": list(regions), **more})
    assert status == 200, document
    assert document["model"] == "tiny" and (document["image"]["width"], document["image"]["height"]) == (64, 48)
    return document["regions"]


def test_forms_of_regions(server: RunningServer, engine: Engine) -> None:
    engine.recognizer.set_image(drawn_picture())
    png = as_base64(Image.fromarray(block()))
    counts = [8 * 48 + 10, 20]
    for _ in range(31):
        counts += [28, 20]
    plain = {"rle": {"size": [48, 64], "counts": counts}}
    found = name(server, rle_region(), {"polygons": POLYGONS}, {"png": png}, plain, masks=True)
    expected = answer_record(engine.recognizer.name([block()])[0][0])
    for region in found:
        (answer,) = region["answers"]
        assert answer["name"] == expected["name"] and answer["prob"] == pytest.approx(expected["prob"], abs=1e-6)
        assert region["area"] == 640 and region["bbox"] == [8, 10, 32, 20]
        assert (draw_segmentation(region["segmentation"], (48, 64)) == block()).all()
    box, point = name(server, {"box": [8, 10, 32, 20]}, {"point": [20, 20]})
    alone = engine.recognizer.name(boxes=[[8, 10, 32, 20]], points=[[20, 20]])
    assert [one["answers"][0].get("name", "") for one in (box, point)] == [one.text for (one,) in alone]
    assert "segmentation" not in box


def test_segments(server: RunningServer) -> None:
    box, point, points = name(
        server,
        {"box": [2, 2, 30, 30], "segment": True},
        {"point": [20, 20], "segment": True},
        {"points": [[20, 20], [60, 40]], "labels": [1, 0], "segment": True},
        masks=True,
    )
    assert box["area"] == 900 and point["area"] == points["area"] and point["score"] == 1.0
    body = {"image": PICTURE, "regions": [{"point": [20, 20], "segment": True}]}
    status, document, _ = server.send("/v1/segment", body)
    assert status == 200 and document["regions"][0]["segmentation"] == point["segmentation"]
    assert "answers" not in document["regions"][0]
    status, document, _ = server.send("/v1/name", {"image": PICTURE, "everything": True, "max_segments": 1})
    assert status == 200 and len(document["regions"]) == 1 and document["skipped_segments"] >= 1


def test_lists_modes_and_top(server: RunningServer, engine: Engine) -> None:
    engine.recognizer.set_image(drawn_picture())
    for method in ("constrained", "scored"):
        (region,) = name(server, rle_region(), vocabulary=["cat", "dog"], method=method, top_k=2, modes=["any"])
        (alone,) = engine.recognizer.name([block()], vocabulary=["cat", "dog"], method=method, top_k=2)
        assert [other["name"] for other in region["answers"][0]["top"]] == [other.text for other in alone[0].top]
        assert sum(other["prob"] for other in region["answers"][0]["top"]) == pytest.approx(1, abs=1e-4)
    classes = [{"names": ["cat", "kitten"], "id": 7}, {"names": ["dog"], "id": 9}]
    (region,) = name(server, rle_region(), vocabulary=classes)
    assert region["answers"][0]["class_id"] in (7, 9) and region["answers"][0]["name"] in ("cat", "dog")
    (region,) = name(server, rle_region(), modes=list(engine.modes))
    assert [answer["mode"] for answer in region["answers"]] == list(engine.modes)
    (region,) = name(server, rle_region(), vocabulary=["cat"], none_below=1.0, length_power=1, prior_weight=0.5)
    assert region["answers"][0]["name"] in ("cat", "none of these")


def test_pictures(server: RunningServer) -> None:
    """Base64, data URI, upload, and by id; equal pictures have one id."""
    uri = as_data_uri(drawn_picture())
    ids = set()
    for image in (PICTURE, uri, {"base64": PICTURE}, {"base64": uri}):
        status, document, _ = server.send("/v1/name", {"image": image, "regions": [rle_region()]})
        assert status == 200, document
        ids.add(document["image"]["id"])
    status, facts, _ = server.form("/v1/images", [("image", "a.png", file_of(drawn_picture()))])
    assert status == 200 and {facts["id"]} == ids and (facts["width"], facts["height"]) == (64, 48)
    status, document, _ = server.send("/v1/name", {"image": {"id": facts["id"]}, "regions": [rle_region()]})
    assert status == 200
    status, shown, headers = server.send(f"/v1/images/{facts['id']}")
    assert status == 200 and Image.open(io.BytesIO(shown)).size == (64, 48) and headers["content-type"] == "image/jpeg"
    assert "upload the image to /v1/images again" in server.message(
        "/v1/name", {"image": {"id": "0" * 64}, "regions": [rle_region()]}, 404
    )


def test_upright(server: RunningServer) -> None:
    """The server's sizes and coordinates are those of image viewers."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    drawn_picture().save(buffer, "JPEG", exif=exif)
    status, document, _ = server.form("/v1/images", [("image", "a.jpg", buffer.getvalue())])
    assert (document["width"], document["height"]) == (48, 64)
    body = {"image": as_base64(buffer.getvalue()), "regions": [{"box": [0, 50, 40, 14]}]}
    status, document, _ = server.send("/v1/name", body)
    assert status == 200 and (document["image"]["width"], document["image"]["height"]) == (48, 64)


def test_uploads(server: RunningServer) -> None:
    """A form with the picture, masks as files, and the rest as JSON."""
    parts = [("image", "a.png", file_of(drawn_picture())), ("mask", "m.png", file_of(Image.fromarray(block())))]
    request = json.dumps({"regions": [{"box": [1, 1, 9, 9]}], "top_k": 2}).encode()
    status, document, _ = server.form("/v1/name", [*parts, ("request", "", request)])
    assert status == 200 and len(document["regions"]) == 2, document
    (alone,) = name(server, rle_region(), top_k=2)
    assert document["regions"][0]["answers"][0]["name"] == alone["answers"][0]["name"]
    status, document, _ = server.form("/v1/name", [*parts, ("request", "", b'{"top_k": 0}')])
    assert status == 422 and document["error"]["param"] == "request.top_k"
    status, document, _ = server.form("/v1/name", [*parts, ("request", "", b"{")])
    assert status == 422 and document["error"]["message"].startswith("request is not JSON")
    status, document, _ = server.form("/v1/name", parts[1:])
    assert status == 422 and document["error"]["param"] == "image"


WRONG = [
    ({}, "image is missing"),
    ({"image": PICTURE}, "regions is empty"),
    ({"image": "%%%", "regions": [{"box": [1, 2, 3, 4]}]}, "image: '%%%'... is not base64"),
    ({"image": as_base64(b"no image"), "regions": [{"box": [1, 2, 3, 4]}]}, "image: not a readable JPEG"),
    ({"image": {"base64": "", "id": "a"}, "regions": []}, "image needs exactly one of base64, url, id"),
    ({"image": PICTURE, "regions": [{}]}, r"regions\[0\]: a region needs exactly one of rle, .* but has none"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3]}]}, r"regions\[0\].box: List should have at least 4 items"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, "x"]}]}, r"regions\[0\].box\[3\]: .* \(got 'x'\)"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 0, 4]}]}, "region 0: .* does not overlap the image"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 0, 4], "segment": True}]}, "region 0: .* has no area"),
    ({"image": PICTURE, "regions": [{"point": [64, 2]}]}, "region 0: .* outside of the image, which is 64 x 48"),
    ({"image": PICTURE, "regions": [{"point": [64, 2], "segment": True}]}, "region 0: .* outside the image"),
    ({"image": PICTURE, "regions": [{"points": [[4, 2]]}]}, r"regions\[0\]: points needs segment: true"),
    (
        {"image": PICTURE, "regions": [{"points": [[4, 2]], "labels": [0], "segment": True}]},
        "at least one 1, because a point inside",
    ),
    ({"image": PICTURE, "regions": [{"rle": {"size": [4, 4], "counts": [16]}}]}, "region 0: .*4"),
    ({"image": PICTURE, "regions": [{"polygons": [[1, 2, 3, 4]]}]}, "region 0: "),
    ({"image": PICTURE, "regions": [{"png": as_base64(file_of(Image.new("L", (9, 9))))}]}, "region 0.* 9"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "modes": ["colour"]}, "mode 'colour' is not one of"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "modes": []}, "modes: List should have at least 1 item"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "method": "scored"}, "method 'scored' needs a vocabulary"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "none_below": 0.5}, "none_below needs a vocabulary"),
    ({"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "topk": 3}, "topk: Extra inputs are not permitted"),
    ({"image": PICTURE, "everything": True, "regions": [{"box": [1, 2, 3, 4]}]}, "everything cannot be combined"),
    ({"image": "https://example.org/a.jpg", "regions": [{"box": [1, 2, 3, 4]}]}, "host 'example.org' is not allowed"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=[sentence[:30] for _, sentence in WRONG])
def test_what_is_wrong(server: RunningServer, body: Any, sentence: str) -> None:
    """The field, the value and what would be right."""
    import re

    message = server.message("/v1/name", body)
    assert re.search(sentence, message), message


def test_what_is_not_a_request(server: RunningServer) -> None:
    kind = {"Content-Type": "application/json"}
    assert "not JSON" in server.message("/v1/name", b"{", 400, headers=kind)
    assert "nest" in server.message("/v1/name", b'{"image":' + b"[" * 5000, 400, headers=kind)
    assert server.send("/v1/name", b"[1]", kind)[0] == 422
    assert server.send("/v1/none")[0] == 404 and server.send("/v1/name", method="GET")[0] == 405
    assert server.send("/v1/name", {}, method="DELETE")[0] == 405
    body = {"image": PICTURE, "regions": [{"box": [1, 2, 3, 4]}], "model": "tin"}
    assert "did you mean 'tiny'" in server.message("/v1/name", body, 404)


def test_limits(engine: Engine) -> None:
    """What is too much is refused before it is decoded."""
    images = ImageLimits(file_mb=0.01, megapixels=0.01, stored_mb=0.001)
    with served(engine, images=images, lists=ListLimits(regions=2, vocabulary=3, numbers=500)) as server:
        box = {"box": [1, 2, 3, 4]}
        wide = as_base64(Image.new("RGB", (101, 100)))
        assert "the image has 101 x 100 pixels; the maximum is 0.01 million" in server.message(
            "/v1/name", {"image": wide, "regions": [box]}, 413
        )
        noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
        heavy = file_of(Image.fromarray(noise))
        assert "--max_file_mb" in server.message("/v1/name", {"image": as_base64(heavy), "regions": [box]}, 413)
        status, document, _ = server.form("/v1/images", [("image", "a.png", heavy)])
        assert status == 413 and "--max_file_mb" in document["error"]["message"]
        assert "regions has 3 elements, but the maximum is 2" in server.message(
            "/v1/name", {"image": PICTURE, "regions": [box] * 3}, 413
        )
        classes = [{"names": ["a", "b"], "id": 1}, {"names": ["c", "d"], "id": 2}]
        assert "vocabulary has 4 names" in server.message(
            "/v1/name", {"image": PICTURE, "regions": [box], "vocabulary": classes}, 413
        )
        polygon = [[1, 1] * 400]
        assert "values" in server.message("/v1/name", {"image": PICTURE, "regions": [{"polygons": polygon}]}, 413)
        long = {"rle": {"size": [48, 64], "counts": "1" * 300}}
        assert "600 characters together" in server.message("/v1/name", {"image": PICTURE, "regions": [long] * 2}, 413)
        export = [{"segmentation": long["rle"], "name": "a"}] * 2
        body = {"format": "coco", "width": 64, "height": 48, "regions": export}
        assert "600 characters together" in server.message("/v1/export", body, 413)
        pixels = np.kron(np.arange(9).reshape(3, 3) * 28, np.ones((30, 30))).astype(np.uint8)
        status, document, _ = server.send("/v1/name", {"image": as_base64(Image.fromarray(pixels)), "everything": True})
        assert len(document["regions"]) == 2 and document["skipped_segments"] >= 1
        # The oldest uploads are forgotten.
        ids = [server.form("/v1/images", [("image", "a", file_of(drawn_picture(k)))])[1]["id"] for k in range(20)]
        stored = [one for one in ids if server.send(f"/v1/images/{one}")[0] == 200]
        assert stored == ids[-len(stored) :] and 1 <= len(stored) < 20


def test_exports(server: RunningServer, tmp_path: Path) -> None:
    regions = [{"segmentation": rle_region()["rle"], "name": "cat", "prob": 0.5, "unsure": True}]
    body = {"file_name": "../street.png", "width": 64, "height": 48, "regions": regions}
    assert set(server.send("/v1/formats")[1]) == set(DOWNLOADS)
    for form in DOWNLOADS:
        status, data, headers = server.send("/v1/export", {**body, "format": form})
        assert status == 200 and "attachment" in headers["content-disposition"], data
        if "zip" in headers["content-type"]:
            assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
        assert b"cat" in data or "zip" in headers["content-type"]
        assert server.send("/v1/export", {**body, "format": form})[1] == data
    _, data, _ = server.send("/v1/export", {**body, "format": "coco"})
    document = json.loads(data)
    assert document["images"][0]["file_name"] == "street.png" and document["annotations"][0]["area"] == 640
    assert "format 'doc' is not one of" in server.message("/v1/export", {**body, "format": "doc"})
    wrong = [{"segmentation": {"size": [4, 4], "counts": [16]}, "name": "cat"}]
    assert "regions[0].segmentation" in server.message("/v1/export", {**body, "format": "coco", "regions": wrong})
    wide = {**body, "format": "coco", "width": 100_000, "height": 100_000}
    assert "100000 x 100000" in server.message("/v1/export", wide, 413)


def test_samples_and_page(server: RunningServer) -> None:
    status, listed, _ = server.send("/v1/samples")
    assert status == 200 and len(listed) == 7
    status, data, _ = server.send(f"/v1/samples/{listed[1]['id']}?thumbnail=true")
    assert status == 200 and Image.open(io.BytesIO(data)).height <= 192
    assert server.send("/v1/samples/99")[0] == 404
    for path, kind in (("/", "text/html"), ("/page/page.js", "text/javascript"), ("/page/page.css", "text/css")):
        status, text, headers = server.send(path)
        assert status == 200 and headers["content-type"].startswith(kind)
        assert "script-src 'self'" in headers["content-security-policy"] and b"http" not in text.split(b"<body")[0]
    for path in ("/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/none.js"):
        assert server.send(path)[0] == 404


def test_health_and_metrics(server: RunningServer) -> None:
    status, document, _ = server.send("/health")
    assert status == 200 and document["status"] == "UP" and document["models_loaded"] == 1
    assert server.send("/ready")[1] == {"ready": True, "models": {"tiny": True}}
    name(server, rle_region())
    text = server.send("/metrics")[1].decode()
    assert 'osm_requests_total{route="/v1/name",status="200"}' in text
    assert 'osm_regions_total{model="tiny"}' in text and 'osm_worker_restarts{model="tiny"} 0.0' in text


def test_many_at_once(server: RunningServer, engine: Engine) -> None:
    """Answers of requests that share batches go to those who asked."""
    pictures = [drawn_picture(k) for k in range(4)]
    expected = []
    for picture in pictures:
        engine.recognizer.set_image(picture)
        expected.append(engine.recognizer.name([block()])[0][0])

    def ask(k: int) -> tuple[int, dict[str, Any]]:
        body = {"image": as_base64(pictures[k % 4]), "regions": [rle_region()]}
        return k, server.send("/v1/name", body)[1]["regions"][0]["answers"][0]

    with ThreadPoolExecutor(12) as pool:
        for k, answer in pool.map(ask, range(48)):
            assert answer["name"] == expected[k % 4].text
            assert answer["prob"] == pytest.approx(expected[k % 4].prob, abs=1e-4)
    assert max(server.worker.batches) > 1


def test_logs_hold_no_pictures(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "osm"):
        name(server, rle_region(), vocabulary=["secret thing"])
        server.send("/v1/none?token=secret")
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "POST /v1/name 200" in text and "secret" not in text and base64.b64encode(b"PNG")[:3].decode() not in text
