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
        "coco_results": f"{_HERE}.coco_labels:CocoResults",
        "csv": f"{_HERE}.csv_labels:CsvLabels",
        "cvat": f"{_HERE}.cvat_xml:CvatXml",
        "image_tables": f"{_HERE}.table_images:ImageTables",
        "label_studio": f"{_HERE}.label_studio_json:LabelStudioJson",
        "label_maps": f"{_HERE}.mask_images:LabelMapFiles",
        "labelme": f"{_HERE}.labelme_files:LabelMeFiles",
        "mask_folders": f"{_HERE}.mask_images:MaskFolders",
        "osprey": f"{_HERE}.osprey_lists:OspreyLists",
        "parquet": f"{_HERE}.parquet_table:ParquetTable",
        "sam": f"{_HERE}.coco_labels:SamMasks",
        "shards": f"{_HERE}.shard_samples:ShardSamples",
        "tags": f"{_HERE}.image_tags:ImageTags",
        "xanylabeling": f"{_HERE}.labelme_files:XAnyLabelingFiles",
        "yolo": f"{_HERE}.yolo_files:YoloFiles",
    },
    f"{_HERE}.label_format:LabelFormat",
)


def recognized(path: Path, alone: bool = False) -> type[LabelFormat]:
    """Return the format of a file or folder with masks, judging by its content.

    Args:
        alone: whether the folder contains both the images and their masks. Formats whose masks are images are then not
            considered.

    Raises:
        OsmError: no format, or more than one, recognizes it.
    """
    if not path.exists():
        raise OsmError(f"--masks {path}: no such file or folder")
    readers = [one for name in FORMATS.names() if (one := FORMATS.get(name)).reads]
    found = [one for one in readers if (one.found_alone or not alone) and one.recognizes(path)]
    if len(found) == 1:
        return found[0]
    if not found:
        if path.suffix.lower() == ".zip":
            raise OsmError(f"--masks {path}: is a zip archive; unpack it, and name the file or folder with the masks")
        names = ", ".join(one.name for one in readers)
        raise OsmError(f"--masks {path}: its format is not recognized; name it with --from ({names})")
    raise OsmError(
        f"--masks {path}: it may be {' or '.join(one.name for one in found)}; choose one of them with --from"
    )
