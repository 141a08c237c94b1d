"""Open-ended visual recognition: name the object under a mask in an image, without a predefined list of classes.

>>> model, processor = osm.create_model_and_transforms("osm_small")
>>> recognizer = osm.load_recognizer("runs/osm_small/final")
>>> recognizer.set_image("street.jpg")
>>> recognizer.name(boxes=[[10, 20, 200, 100]], top_k=3)
>>> osm.label("photos", "labels", masks="instances.json", to=("coco", "yolo"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError, SampleError
from osm.quiet import quiet_lines

if TYPE_CHECKING:
    from osm.labeling.label_run import label
    from osm.models.factory import create_model_and_transforms, load_model
    from osm.models.osm import OmniScientModel
    from osm.recognition.answers import Recognition
    from osm.recognition.namer import Name, Namer, load_namer
    from osm.recognition.recognizer import Recognizer, load_recognizer

__version__ = "0.2.0"
__all__ = [
    "Name",
    "Namer",
    "OmniScientModel",
    "OsmError",
    "Recognition",
    "Recognizer",
    "SampleError",
    "create_model_and_transforms",
    "label",
    "load_model",
    "load_namer",
    "load_recognizer",
]

# Public names are imported lazily, because some of their modules import torch, which is slow.
# Converters and evaluation commands do not need torch, and start faster without it.
_HOMES = {
    "OmniScientModel": "osm.models.osm",
    "create_model_and_transforms": "osm.models.factory",
    "label": "osm.labeling.label_run",
    "load_model": "osm.models.factory",
    "Name": "osm.recognition.namer",
    "Namer": "osm.recognition.namer",
    "load_namer": "osm.recognition.namer",
    "Recognition": "osm.recognition.answers",
    "Recognizer": "osm.recognition.recognizer",
    "load_recognizer": "osm.recognition.recognizer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with quiet_lines():
            return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'osm' has no attribute {name!r}")
