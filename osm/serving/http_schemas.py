"""The JSON bodies of the server's own interface. Unknown fields are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from osm.recognition.flags import METHODS
from osm.serving.jobs import MAX_SEGMENTS, NamingOptions, RegionPrompt

MAX_TOP_K = 20
_MAX_CLASS_NAMES = 50
Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Method = Literal["constrained", "scored", "mapped"]
assert Method.__args__ == METHODS  # type: ignore[attr-defined]


class StrictModel(BaseModel):
    """A JSON object that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid")


class ImageInput(StrictModel):
    """An image. Exactly one field is given."""

    base64: str | None = Field(None, description="the file as base64, with or without 'data:image/png;base64,'")
    url: str | None = Field(None, max_length=4096, description="a URL of a host that --allow_url_host allows")
    id: str | None = Field(None, max_length=64, description="the `id` of an image that was sent to /v1/images")

    @model_validator(mode="after")
    def _one(self) -> ImageInput:
        _check_one(self, ("base64", "url", "id"), "an image")
        return self


class CocoRle(StrictModel):
    """A COCO RLE, compressed (a text) or not (a list of runs)."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="[height, width]")]
    counts: str | list[int]


class RegionInput(StrictModel):
    """A region. Exactly one of the fields other than `labels` and `segment` is given."""

    rle: CocoRle | None = None
    polygons: list[list[Number]] | None = Field(None, min_length=1, description="lists [x, y, x, y, ...] in pixels")
    png: str | None = Field(None, description="a mask image as base64: white or opaque pixels are inside")
    box: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = Field(
        None, description="[x, y, width, height] in pixels"
    )
    point: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = Field(None, description="[x, y]")
    points: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] | None = Field(
        None, min_length=1, max_length=64, description="several points [x, y] of one object; needs `segment`"
    )
    labels: list[Literal[0, 1]] | None = Field(None, description="for each of `points`, 1 inside or 0 outside")
    segment: bool = Field(False, description="let the segmenter make the mask of a box, a point or points")

    @model_validator(mode="after")
    def _one(self) -> RegionInput:
        _check_one(self, ("rle", "polygons", "png", "box", "point", "points"), "a region")
        if self.labels is not None and (self.points is None or len(self.labels) != len(self.points)):
            raise ValueError("labels must have one value per point")
        if self.points is not None and not self.segment:
            raise ValueError("points needs segment: true")
        if self.labels is not None and 1 not in self.labels:
            raise ValueError("labels needs at least one 1, because a point inside the object is needed")
        return self

    def prompt(self, png: bytes | None) -> RegionPrompt:
        """Return the region of a job. `png` is the decoded field of that name."""
        if self.rle is not None:
            return RegionPrompt("rle", {"size": self.rle.size, "counts": self.rle.counts})
        if self.polygons is not None:
            return RegionPrompt("polygons", self.polygons)
        if png is not None:
            return RegionPrompt("png", png)
        if self.box is not None:
            return RegionPrompt("box", tuple(self.box), segment=self.segment)
        points = [self.point] if self.point is not None else self.points or []
        inside = tuple(label == 1 for label in self.labels or ())
        return RegionPrompt("points", tuple((x, y) for x, y in points), inside, self.segment)


class VocabularyClass(StrictModel):
    """A class with several names. The answer gives its first name and its id."""

    names: Annotated[list[Name], Field(min_length=1, max_length=_MAX_CLASS_NAMES)]
    id: int


class RegionsBody(StrictModel):
    """What the requests for names and for masks have in common."""

    model: str | None = Field(None, description="the name of the model; only needed if the server has several")
    image: str | ImageInput | None = Field(
        None, description="base64, a data URI, an allowed URL, or an object; not needed if the image is uploaded"
    )
    regions: list[RegionInput] = Field(default_factory=list)
    everything: bool = Field(False, description="all segments that the segmenter finds, instead of `regions`")
    max_segments: int = Field(
        MAX_SEGMENTS, ge=1, le=200, description="maximum number of segments for `everything`, the largest first"
    )

    @model_validator(mode="after")
    def _regions_or_everything(self) -> RegionsBody:
        if self.everything and self.regions:
            raise ValueError("everything cannot be combined with regions")
        return self


class SegmentBody(RegionsBody):
    """A request for masks without names."""


class NameBody(RegionsBody):
    """A request for names."""

    modes: list[str] = Field(default_factory=lambda: ["any"], min_length=1, max_length=16)
    top_k: int = Field(1, ge=1, le=MAX_TOP_K)
    vocabulary: list[Name | VocabularyClass] = Field(
        default_factory=list, description="the allowed names; if empty, any name"
    )
    method: Method = Field("constrained", description="how the vocabulary is applied")
    length_power: float = Field(0.0, ge=0, le=2)
    prior_weight: float = Field(0.0, ge=0, le=2)
    none_below: float = Field(0.0, ge=0, le=1)
    masks: bool = Field(False, description="also return the masks as COCO RLEs")

    @model_validator(mode="after")
    def _needs_vocabulary(self) -> NameBody:
        given = [name for name in ("length_power", "prior_weight", "none_below") if getattr(self, name)]
        if given and (not self.vocabulary or self.method == "mapped"):
            raise ValueError(f"{given[0]} needs a vocabulary and the method constrained or scored")
        if not self.vocabulary and self.method != "constrained":
            raise ValueError(f"method {self.method!r} needs a vocabulary")
        return self

    def options(self) -> NamingOptions:
        """Return the naming options of a job."""
        from osm.datasets.labels import LabelClass

        vocabulary = tuple(
            entry if isinstance(entry, str) else LabelClass(entry.id, tuple(entry.names)) for entry in self.vocabulary
        )
        return NamingOptions(
            tuple(dict.fromkeys(self.modes)),
            self.top_k,
            vocabulary,
            self.method,
            self.length_power,
            self.prior_weight,
            self.none_below,
        )


class ImageFacts(StrictModel):
    """The image of an answer: the hash of its file, and its size after rotation by its EXIF orientation."""

    id: str
    width: int
    height: int


class CandidateName(StrictModel):
    """A candidate name with its probability, or with its cosine for the method `mapped`."""

    name: str
    prob: float | None = None
    cosine: float | None = None


class NamedAs(StrictModel):
    """The name of a region in one mode, or the reason why it has none."""

    mode: str
    name: str | None = None
    prob: float | None = None
    calibrated_prob: float | None = Field(None, description="the estimated probability that the name is correct")
    unsure: bool | None = Field(None, description="whether calibrated_prob is below the model's threshold")
    class_id: int | None = None
    said: str | None = Field(None, description="the freely generated name, if `name` was mapped from it")
    skipped: str | None = None
    top: list[CandidateName] | None = None


class NamedRegionOut(StrictModel):
    """The answer for a region: one name per mode, and the mask if it was requested."""

    answers: list[NamedAs] | None = None
    segmentation: CocoRle | None = None
    area: int | None = None
    bbox: list[float] | None = Field(None, description="[x, y, width, height]")
    score: float | None = Field(None, description="the segmenter's confidence")


class NameResponse(StrictModel):
    """The answer of /v1/name and /v1/segment."""

    model: str
    image: ImageFacts
    regions: list[NamedRegionOut]
    skipped_segments: int | None = Field(None, description="of `everything`, how many smaller segments are left out")


class ExportRegion(StrictModel):
    """A named region to write in the format of an annotation tool."""

    segmentation: CocoRle
    name: str = Field(max_length=500)
    prob: float = Field(1.0, ge=0, le=1)
    unsure: bool = False


class ExportBody(StrictModel):
    """A request for a label file."""

    format: str
    file_name: str = Field("image.jpg", max_length=200)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    regions: list[ExportRegion]


class ErrorFacts(BaseModel):
    """What went wrong: a word for programs, and a sentence."""

    code: str
    message: str
    type: str
    param: str | None = None
    details: Any = None


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or more."""

    success: Literal[False] = False
    error: ErrorFacts


def _check_one(model: BaseModel, names: tuple[str, ...], what: str) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"{what} needs exactly one of {', '.join(names)}, but has {found}")
