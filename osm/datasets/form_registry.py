"""The registry of annotation formats.

The dataset table looks up annotation formats in the registry `FORMS`. The registry stores import paths and imports each
form class lazily, on first use. Importing the classes eagerly would create an import cycle, because the classes in
`osm.forms` import the dataset table.
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
"""The subclasses of `osm.forms.base.Form`, by the name that a row has in its field `form`."""
register_form = FORMS.register
