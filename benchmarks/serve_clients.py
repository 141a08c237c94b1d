#!/usr/bin/env python3
"""Real clients against a running `osm serve`: the `openai` package, label-studio-sdk, and X-AnyLabeling's requests.

Needs an environment of its own, which needs neither torch nor this package:
pip install openai label-studio-sdk requests pillow numpy

    python3 benchmarks/serve_clients.py http://127.0.0.1:8000 PHOTO --box X,Y,W,H [--output clients.json]
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

CONFIG = """<View><Image name="image" value="$image"/><{tag} name="label" toName="image">
<Label value="cup"/><Label value="spoon"/><Label value="table"/></{tag}></View>"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--box", default="150,10,270,290")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    box = [int(side) for side in args.box.split(",")]
    photo = Image.open(args.photo).convert("RGB")
    found = {
        "openai": with_openai(args.address, photo, box),
        "label-studio-sdk": with_label_studio(args.address, photo, box),
        "X-AnyLabeling": as_xanylabeling(args.address, photo, box),
    }
    document = {"benchmark": "serve_clients", "photo": args.photo.name, **found}
    text = json.dumps(document, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


def with_openai(address: str, photo: Image.Image, box: list[int]) -> dict[str, Any]:
    """The name of the box's ellipse, at once and streamed."""
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    model = client.models.list().data[0].id
    image = photo.convert("RGBA")
    image.putalpha(Image.fromarray(ellipse(photo.size, box).astype(np.uint8) * 255))
    part = {"type": "image_url", "image_url": {"url": data_uri(image)}}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=16)
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content
    return {"version": openai.__version__, "name": streamed, "usage": whole.usage.model_dump(exclude_none=True)}


def with_label_studio(address: str, photo: Image.Image, box: list[int]) -> dict[str, Any]:
    """Predictions that the SDK validates against the labeling config, and masks that its converter decodes."""
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue

    found: dict[str, Any] = {"version": importlib.metadata.version("label-studio-sdk")}
    width, height = photo.size
    x, y, w, h = (100 * side for side in (box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    drawn = {"type": "rectanglelabels", "value": {"x": x, "y": y, "width": w, "height": h}}
    assert requests.get(f"{address}/health", timeout=30).json()["status"] == "UP"
    for tag in ("BrushLabels", "PolygonLabels", "RectangleLabels"):
        config = CONFIG.format(tag=tag)
        interface = LabelInterface(config)
        setup = {"project": "1.5", "schema": config, "hostname": "http://localhost:8080", "access_token": "x"}
        version = requests.post(f"{address}/setup", json=setup, timeout=30).json()["model_version"]
        task = {"id": 1, "data": {"image": data_uri(photo)}}
        counts = []
        for params in ({}, {"context": {"result": [drawn]}}):
            body = {"tasks": [task], "project": "1.5", "label_config": config, "params": params}
            reply = requests.post(f"{address}/predict", json=body, timeout=120).json()
            [prediction] = reply["results"]
            assert interface.validate_prediction(prediction), prediction
            PredictionValue(**prediction)
            counts.append(len(prediction["result"]))
            if tag == "BrushLabels":
                for row in prediction["result"]:
                    pixels = np.array(decode_rle(row["value"]["rle"])).reshape(height, width, 4)
                    assert 0 < (pixels[..., 3] > 0).sum() <= width * height
        found[tag] = {"model_version": version, "segments": counts[0], "for a rectangle": counts[1]}
    return found


def as_xanylabeling(address: str, photo: Image.Image, box: list[int]) -> dict[str, Any]:
    """The requests of X-AnyLabeling's remote model, with its headers and parameters."""
    headers = {"Content-Type": "application/json", "Token": ""}
    models = requests.get(f"{address}/v1/models", headers=headers, timeout=30).json()["data"]
    model = next(iter(models))
    base = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
    x, y, width, height = box
    marks = {
        "a point": [{"type": "point", "data": [x + width / 2, y + height / 2], "label": 1}],
        "a rectangle": [{"type": "rectangle", "data": [x, y, x + width, y + height]}],
    }
    found: dict[str, Any] = {"models": list(models)}
    for what, params in {"everything": {}, **{what: {"marks": mark} for what, mark in marks.items()}}.items():
        body = {"model": model, "image": data_uri(photo), "params": {**base, **params}}
        reply = requests.post(f"{address}/v1/predict", json=body, headers=headers, timeout=120)
        reply.raise_for_status()
        shapes = reply.json()["data"]["shapes"]
        for shape in shapes:  # what its client reads of each
            assert shape["label"] and shape["shape_type"] == "polygon" and 0 <= shape["score"] <= 1
            assert all(0 <= px <= photo.width and 0 <= py <= photo.height for px, py in shape["points"])
        found[what] = {"shapes": len(shapes), "first": shapes[0]["label"]}
    return found


def ellipse(size: tuple[int, int], box: list[int]) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return ((x - box[0] - box[2] / 2) / (box[2] / 2)) ** 2 + ((y - box[1] - box[3] / 2) / (box[3] / 2)) ** 2 <= 1


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
