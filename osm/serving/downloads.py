"""The named regions of an image as a file to download, in the formats of annotation tools."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from osm.errors import SampleError
from osm.io.paths import safe_file_name
from osm.io.segmentation import decode_segmentation, encode_rle
from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape

if TYPE_CHECKING:
    from osm.serving.http_schemas import ExportBody

JSON = "json"
# The formats of the page, with the titles that it shows.
DOWNLOADS = {
    JSON: "JSON of this page",
    "coco": "COCO (RLE)",
    "coco_polygons": "COCO (polygons)",
    "yolo": "YOLO segmentation",
    "labelme": "LabelMe",
    "xanylabeling": "X-AnyLabeling",
    "cvat": "CVAT for images 1.1",
    "label_studio": "Label Studio",
    "csv": "CSV table",
}
_TIME = (2020, 1, 1, 0, 0, 0)  # a fixed time, so that equal contents give equal ZIP files


def label_download(body: ExportBody) -> tuple[str, bytes]:
    """Write named regions in a format, and return the file's name and content.

    A format that consists of several files is written as a ZIP file.

    Raises:
        OsmError: a mask is invalid.
    """
    title = safe_file_name(body.file_name) or "image"
    if body.format == JSON:
        document = {"image": title, "width": body.width, "height": body.height}
        document["regions"] = [region.model_dump() for region in body.regions]
        return "names.json", json.dumps(document, indent=1, ensure_ascii=False).encode()
    name = title if Path(title).suffix else f"{title}.jpg"
    size = (body.width, body.height)
    shapes = []
    for k, region in enumerate(body.regions):
        rle = region.segmentation.model_dump()
        try:
            mask = decode_segmentation(rle, size[::-1], f"regions[{k}].segmentation")
        except SampleError as error:
            raise error from None
        prob = round(region.prob, 6)
        shapes.append(LabelShape(encode_rle(mask), id=k + 1, name=region.name, prob=prob, unsure=region.unsure))
    named = tuple(shape for shape in shapes if shape.name)
    names = dict.fromkeys(shape.name for shape in named)
    image = LabeledImage(0, name, name, size, named)
    labels = LabeledImages([image], {one: number for number, one in enumerate(names, 1)}, "osm serve")
    with TemporaryDirectory() as folder:
        FORMATS.get(body.format).write(labels, Path(folder))
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        if len(files) == 1:
            return files[0].name, files[0].read_bytes()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _TIME)
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        return f"{body.format}.zip", buffer.getvalue()
