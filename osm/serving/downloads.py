"""The named regions of a picture as a file to download, in the formats of annotation tools."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape
from osm.labeling.labeler import answered
from osm.serving.engine import DemoPicture
from osm.serving.page_files import safe_name

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
_TIME = (2020, 1, 1, 0, 0, 0)  # equal downloads are equal files


def write_download(picture: DemoPicture, form: str, folder: Path) -> Path:
    """Write the named regions of a picture to a folder, and return the file.

    A format that consists of several files is written as a ZIP file.
    """
    if form == JSON:
        path = folder / "names.json"
        path.write_text(json.dumps(picture.document(), indent=1), encoding="utf-8")
        return path
    title = safe_name(picture.title)
    name = title if Path(title).suffix else f"{title}.jpg"
    named = (answered(LabelShape(one.rle), one.answer) for one in picture.named)
    shapes = tuple(shape for shape in named if shape.name)
    names = dict.fromkeys(shape.name for shape in shapes)
    image = LabeledImage(0, name, name, picture.image.size, shapes)
    labels = LabeledImages([image], {one: number for number, one in enumerate(names, 1)}, "osm demo")
    with TemporaryDirectory(dir=folder) as temporary:
        FORMATS.get(form).write(labels, Path(temporary))
        files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
        if len(files) == 1:
            return files[0].replace(folder / files[0].name)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                entry = zipfile.ZipInfo(file.relative_to(temporary).as_posix(), _TIME)
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
        path = folder / f"{form}.zip"
        path.write_bytes(buffer.getvalue())
        return path
