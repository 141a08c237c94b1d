"""The registry of annotation forms.

The dataset table checks its rows against this registry, and the classes that it names are downstream, in `osm.forms`.
The registry holds their import paths and imports a class when it is first used.
"""

from __future__ import annotations

from typing import Any

from osm.registry import Registry

FORMS: Registry[Any] = Registry(
    "form",
    "osm.forms",
    {
        "coco_panoptic": "osm.forms.coco_panoptic:Panoptic",
        "coco_instances": "osm.forms.instances:Instances",
        "boxes": "osm.forms.instances:Boxes",
        "semantic": "osm.forms.maps:Semantic",
        "parts": "osm.forms.maps:Parts",
        "regions": "osm.forms.region_phrases:Regions",
    },
    "osm.forms.base:Form",
)
"""Classes derived from `osm.forms.base.Form`, by the value of a row's `form`."""
register_form = FORMS.register
