"""What a shard's sample shows: its image, and the segments that may be asked about, in any view of it.

One class a form of the dataset table, for the plain layout and the published one alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from osm.data.datasets import Rules
from osm.data.labels import LabelSet
from osm.data.segments.annotations import BoxScene, InstanceScene
from osm.data.segments.maps import PanopticScene, PartScene, SemanticScene
from osm.data.segments.scene import MIN_PIXELS, Scene, Segment
from osm.data.views import View
from osm.documents import parse_json
from osm.errors import SampleError

# Values of a json member, each of which takes up to a hundred bytes: images in it are one string each.
MAX_VALUES = 5_000_000
FORM_READERS: dict[str, type[Scene]] = {
    "coco_panoptic": PanopticScene,
    "coco_instances": InstanceScene,
    "boxes": BoxScene,
    "semantic": SemanticScene,
    "parts": PartScene,
}


def read_scene(form: str, members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Scene:
    """Reads a sample's members, of either layout, in one of the forms of the dataset table.

    Args:
        labels, rules: `label_set` and `rules` of the set's row.

    Raises:
        SampleError: what is wrong with it.
    """
    if "json" not in members:
        raise SampleError("missing_member", "the sample has no .json member")
    values = sum(members["json"].count(mark) for mark in b",:[{")
    if values > MAX_VALUES:
        raise SampleError("bad_json", f"the .json member: about {values} values, over {MAX_VALUES}")
    try:
        document = parse_json(members["json"], nesting=None)
    except ValueError as error:
        raise SampleError("bad_json", f"the .json member: {error}") from None
    if not isinstance(document, dict):
        raise SampleError("bad_json", "the .json member is no object")
    return FORM_READERS[form](members, document, labels, Rules() if rules is None else rules)


__all__ = ["FORM_READERS", "MIN_PIXELS", "Scene", "Segment", "View", "read_scene"]
