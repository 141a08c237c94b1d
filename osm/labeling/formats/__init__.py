"""The annotation formats that `osm label` reads and writes."""

from __future__ import annotations

from pathlib import Path

from osm.errors import OsmError
from osm.labeling.formats.label_format import LabelFormat
from osm.registry import Registry

_HERE = "osm.labeling.formats"
FORMATS: Registry[type[LabelFormat]] = Registry(
    "label format",
    "osm.label_formats",
    {
        "coco": f"{_HERE}.coco_labels:CocoLabels",
        "coco_panoptic": f"{_HERE}.panoptic_labels:PanopticLabels",
        "coco_polygons": f"{_HERE}.coco_labels:CocoPolygonLabels",
        "csv": f"{_HERE}.csv_labels:CsvLabels",
        "cvat": f"{_HERE}.cvat_xml:CvatXml",
        "label_studio": f"{_HERE}.label_studio_json:LabelStudioJson",
        "labelme": f"{_HERE}.labelme_files:LabelMeFiles",
        "sam": f"{_HERE}.coco_labels:SamMasks",
        "xanylabeling": f"{_HERE}.labelme_files:XAnyLabelingFiles",
        "yolo": f"{_HERE}.yolo_files:YoloFiles",
    },
    f"{_HERE}.label_format:LabelFormat",
)


def recognized(path: Path) -> type[LabelFormat]:
    """Return the format of a file or folder with masks, judging by its content.

    Raises:
        OsmError: no format, or more than one, recognizes it.
    """
    if not path.exists():
        raise OsmError(f"--masks {path}: no such file or folder")
    found = [one for name in FORMATS.names() if (one := FORMATS.get(name)).reads and one.recognizes(path)]
    if len(found) == 1:
        return found[0]
    names = [name for name in FORMATS.names() if FORMATS.get(name).reads]
    if not found:
        raise OsmError(f"--masks {path}: its format is not recognized; name it with --from ({', '.join(names)})")
    raise OsmError(
        f"--masks {path}: it may be {' or '.join(one.name for one in found)}; choose one of them with --from"
    )
