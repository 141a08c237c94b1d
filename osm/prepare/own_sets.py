"""The sets that can be converted, by the name given to `osm prepare`: a row of the dataset table, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osm.datasets.table import BUILTIN, Dataset
from osm.forms import FORMS, Form, form_class
from osm.forms.instances import OpenImages
from osm.forms.maps import PascalParts

_ROWS = {row.name: row for row in BUILTIN}


@dataclass(frozen=True)
class Convertible:
    """A set, or (under a form's name) anybody's set of that form.

    Attributes:
        row: how its files are named and read. what: it is, for the help.
        form: the class that reads it; None = that of the row.
        defaults: its arguments unless they are given.
        fine: reasons, besides the form's, for which a file may give no sample without anything being wrong.
        of_coco: it may be COCO's: images of LVIS val can be left out.
    """

    row: Dataset
    what: str
    reads: type[Form] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fine: frozenset[str] = frozenset()
    of_coco: bool = False

    @property
    def form(self) -> type[Form]:
        return self.reads or form_class(self.row.form)


def _own(form: str, **more: Any) -> Convertible:
    row = Dataset(form, form, form_class(form).what, "")
    return Convertible(row, form_class(form).what, **more)


def convertible(name: str) -> Convertible:
    """Return the set called `name`, or any set of a form that was added to `osm.forms.FORMS`.

    Raises:
        OsmError: There is no such set and no such form.
    """
    return SETS[name] if name in SETS else _own(name)


def is_added_form(name: str) -> bool:
    """Return whether `name` is a registered or installed form, or the path of a class (`module:Class`)."""
    return ":" in name or (name in FORMS and FORMS.origin(name) != "built in")


SETS = {
    "coco": Convertible(_ROWS["coco"], "COCO panoptic", of_coco=True),
    "ade20k": Convertible(_ROWS["ade20k"], "ADE20K panoptic", of_coco=True),
    "cityscapes": Convertible(_ROWS["cityscapes"], "Cityscapes panoptic"),
    "lvis": Convertible(_ROWS["lvis"], "LVIS v1"),
    # Not all images of the release can still be had.
    "v3det": Convertible(_ROWS["v3det"], "V3Det", fine=frozenset({"image_missing"})),
    "a847": Convertible(_ROWS["a847"], "A-847 (ADE20K full)", defaults={"labels": "a847"}),
    "pc459": Convertible(_ROWS["pc459"], "PC-459 (Pascal Context full)", defaults={"labels": "pc459"}),
    "partimagenet": Convertible(_ROWS["partimagenet"], "PartImageNet"),
    "pascal_part": Convertible(_ROWS["pascal_part"], "Pascal-Part", PascalParts),
    "visual_genome": Convertible(_ROWS["visual_genome"], "Visual Genome: its region descriptions, or its objects"),
    # Both are often fetched in part.
    "objects365": Convertible(_ROWS["objects365"], "Objects365", fine=frozenset({"image_missing"})),
    "openimages": Convertible(_ROWS["openimages"], "Open Images", OpenImages, fine=frozenset({"image_missing"})),
    "paco": Convertible(_ROWS["paco"], "PACO: objects and their parts"),
    "coco_panoptic": _own("coco_panoptic", of_coco=True),
    "coco_instances": _own("coco_instances", of_coco=True),
    "boxes": _own("boxes"),
    "semantic": _own("semantic"),
    "regions": _own("regions"),
}
