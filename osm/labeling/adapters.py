"""Bridges to other libraries: supervision's Detections, autodistill's base models, and FiftyOne's datasets.

None of these libraries is required; each function says what it needs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from osm.errors import OsmError, shown
from osm.io.images import as_rgb
from osm.io.segmentation import encode_rle
from osm.labeling.formats import FORMATS
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape
from osm.recognition.answers import Recognition
from osm.recognition.flags import SHIPPED

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer
    from osm.recognition.segmenters.base import Segmenter


def to_detections(
    recognitions: Sequence[Recognition],
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    classes: Sequence[str] | None = None,
) -> Any:
    """Return named masks or boxes as `supervision.Detections`. Regions without a name are left out.

    Args:
        recognitions: the answers of one mode, one for each region, as `[one[0] for one in recognizer.name(...)]`.
        masks: the masks, each bool (H, W).
        boxes: the boxes (x, y, width, height), if there are no masks.
        classes: the names by their class ids; None = the names in the order of their first use.

    Returns:
        Detections with `xyxy`, `confidence`, `class_id`, `data["class_name"]`, and `mask` if masks are given.
        `confidence` is the calibrated probability if there is one.

    Raises:
        OsmError: supervision is not installed, the numbers of regions and answers differ, or `classes` lacks a name.
    """
    supervision = _supervision()
    regions: Sequence[Any] = list(masks if masks is not None else boxes if boxes is not None else ())
    if len(regions) != len(recognitions):
        raise OsmError(f"{len(recognitions)} recognitions, but {len(regions)} masks or boxes")
    kept = [k for k, one in enumerate(recognitions) if one.text and not one.skipped]
    names = [recognitions[k].text for k in kept]
    listed = list(dict.fromkeys(names)) if classes is None else list(classes)
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise OsmError(f"classes: has no {shown(unknown[0])}, which is the name of a region")
    if not kept:
        return supervision.Detections.empty()
    chosen = None
    if masks is not None:
        chosen = np.stack([np.asarray(masks[k], bool) for k in kept])
        xyxy = supervision.mask_to_xyxy(chosen).astype(np.float32)
    else:
        x, y, w, h = np.array([regions[k] for k in kept], np.float32).T
        xyxy = np.stack([x, y, x + w, y + h], 1)
    probs = [recognitions[k].likelihood for k in kept]
    return supervision.Detections(
        xyxy=xyxy,
        mask=chosen,
        confidence=np.array(probs, np.float32),
        class_id=np.array([listed.index(name) for name in names]),
        data={"class_name": np.array(names)},
    )


class AutodistillModel:
    """A base model with the methods of autodistill's `DetectionBaseModel`, without depending on autodistill.

    Args:
        ontology: the allowed names: a dict {prompt: class}, an autodistill ontology, or None for open-ended names.
        recognizer: names the masks; None = the model that ships with the package.
        segmenter: finds the masks; None = the segmenter that needs no checkpoint.
        mode: the mode in which the model answers.
    """

    def __init__(
        self,
        ontology: Any = None,
        recognizer: Recognizer | None = None,
        segmenter: Segmenter | None = None,
        mode: str = "any",
    ) -> None:
        from osm.recognition.recognizer import load_recognizer
        from osm.recognition.segmenters import load_segmenter

        self.set_ontology(ontology)
        self.recognizer = load_recognizer(SHIPPED) if recognizer is None else recognizer
        self.segmenter = load_segmenter(recognizer=self.recognizer) if segmenter is None else segmenter
        self.mode = mode

    def set_ontology(self, ontology: Any) -> None:
        """Change the allowed names."""
        self.ontology = ontology
        pairs = ontology.items() if isinstance(ontology, Mapping) else getattr(ontology, "promptMap", ())
        self._classes = {str(prompt): str(name) for prompt, name in pairs}
        if ontology is not None and not self._classes:
            raise OsmError(f"ontology {shown(ontology)}: expected a dict {{prompt: class}}, or an autodistill ontology")

    def predict(self, input: str | Path | np.ndarray | Image.Image) -> Any:
        """Find and name the objects of an image, and return them as `supervision.Detections`.

        Args:
            input: a path, a PIL image, or an array whose channels are BGR, as OpenCV reads it.
        """
        image = as_rgb(input[..., ::-1].copy() if isinstance(input, np.ndarray) and input.ndim == 3 else input)
        self.segmenter.set_image(image)
        masks = [segment.mask for segment in self.segmenter.everything()]
        if not masks:
            return _supervision().Detections.empty()
        self.recognizer.set_image(image)
        answers = self.recognizer.name(masks, modes=[self.mode], vocabulary=list(self._classes) or None)
        named = [replace(one[0], text=self._classes.get(one[0].text, one[0].text)) for one in answers]
        classes = list(dict.fromkeys(self._classes.values())) or None
        return to_detections(named, np.stack(masks), classes=classes)

    def label(self, input_folder: str, extension: str = ".jpg", output_folder: str | None = None) -> Any:
        """Label the images of a folder, and write a YOLO dataset (`images/`, `labels/`, `data.yaml`).

        Returns:
            a `supervision.DetectionDataset` of the written files.
        """
        supervision = _supervision()
        folder, out = Path(input_folder), Path(output_folder or f"{input_folder}_labeled")
        files = sorted(folder.glob(f"*{extension}"))
        if not files:
            raise OsmError(f"{folder}: no file ends with {extension!r}")
        (out / "images").mkdir(parents=True, exist_ok=True)
        names: dict[str, int] = {}
        images = []
        for number, file in enumerate(files):
            found = self.predict(str(file))
            shapes = []
            for k in range(len(found)):
                name = str(found.data["class_name"][k])
                names.setdefault(name, len(names) + 1)
                shapes.append(LabelShape(encode_rle(found.mask[k]), name=name, prob=float(found.confidence[k])))
            images.append(LabeledImage(number, file.name, str(file), as_rgb(file).size, tuple(shapes)))
            shutil.copyfile(file, out / "images" / file.name)
        classes = list(dict.fromkeys(self._classes.values())) or list(names)
        labels = LabeledImages(images, {name: k for k, name in enumerate(classes, 1)}, "osm")
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            FORMATS.get("yolo").write(labels, Path(temporary))
            shutil.copytree(Path(temporary) / "yolo", out, dirs_exist_ok=True)
        return supervision.DetectionDataset.from_yolo(
            str(out / "images"), str(out / "labels"), str(out / "data.yaml"), force_masks=True
        )


def label_fiftyone(samples: Iterable[Any], recognizer: Recognizer, field: str, to_field: str, mode: str = "any") -> int:
    """Name the detections of FiftyOne samples, by their instance masks or else by their boxes.

    Args:
        samples: a FiftyOne dataset or view.
        recognizer: names the objects.
        field: the field with `fiftyone.Detections`.
        to_field: the field of the named copies, which may be the same one.
        mode: the mode in which the model answers.

    Returns:
        the number of named detections.
    """
    count = 0
    for sample in samples:
        detections = sample[field]
        rows = list(detections.detections) if detections is not None else []
        if not rows:
            continue
        image = as_rgb(sample.filepath)
        width, height = image.size
        recognizer.set_image(image)
        named = detections.copy()
        for row in named.detections:
            x, y, w, h = (value * side for value, side in zip(row.bounding_box, (width, height) * 2, strict=True))
            if row.mask is not None:
                mask = np.zeros((height, width), bool)
                patch = np.asarray(row.mask) > 0
                left, top = round(x), round(y)
                part = mask[top : top + patch.shape[0], left : left + patch.shape[1]]
                part[:] = patch[: part.shape[0], : part.shape[1]]
                [[answer]] = recognizer.name([mask], modes=[mode])
            else:
                [[answer]] = recognizer.name(boxes=[[x, y, w, h]], modes=[mode])
            if answer.text and not answer.skipped:
                row.label, row.confidence = answer.text, answer.likelihood
                count += 1
        sample[to_field] = named
        sample.save()
    return count


def _supervision() -> Any:
    try:
        import supervision
    except ImportError:
        raise OsmError("this needs the package supervision: pip install supervision") from None
    return supervision
