"""The engine behind the server, the page and the notebook: it names the regions of several requests in one batch.

Images are encoded once: the encoded images are kept in a cache of bounded size, by the hash of their content.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from PIL import Image

from osm.errors import OsmError, SampleError, shown
from osm.io.any_mask import mask_drawer
from osm.io.images import as_rgb, decode, open_image, read_rgb
from osm.io.segmentation import draw_segmentation, encode_rle, read_segmentation, rle_area
from osm.labeling.naming import NamingRequest
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer
from osm.recognition.regions import Region, regions_of
from osm.recognition.segmenters.base import ScoredMask, Segmenter
from osm.recognition.vocabulary import Ranking
from osm.serving.jobs import (
    ALPHA_KEY,
    CACHE_BYTES,
    INTERNAL,
    MAX_SEGMENTS,
    EngineStats,
    JobAnswer,
    JobFailure,
    JobImage,
    JobResult,
    ModelInfo,
    NamingJob,
    NamingOptions,
    RegionAnswer,
    RegionPrompt,
    answer_record,
)
from osm.terminal import message_logger

if TYPE_CHECKING:
    from osm.recognition.encode import EncodedImage

logger = message_logger(__name__)

# How many images keep their segmentation: megabytes each, or tens of megabytes for images full of texture.
_SEGMENTED_IMAGES = 8


class ImageCache:
    """Encoded images by the hash of their content. The least recently used ones are dropped first.

    Args:
        max_bytes: the maximum memory of all encoded images. An image that is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: str) -> EncodedImage | None:
        """Return an image, and mark it as the most recently used one."""
        found = self._images.get(key)
        if found is not None:
            self._images.move_to_end(key)
        return found

    def put(self, key: str, image: EncodedImage) -> None:
        """Keep an image, and drop others until all fit in the memory limit."""
        if image.bytes > self.max_bytes or key in self._images:
            return
        self._images[key] = image
        self.bytes += image.bytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._images.popitem(last=False)[1].bytes


@dataclass(frozen=True)
class NamedRegion:
    """A region of an image and its name.

    Attributes:
        selected_by: description of the user's selection, such as "point 80, 60".
        rle: the mask as a compressed COCO RLE, in which `counts` is a string.
        area: area of the mask in pixels.
        answer: the name and its probability.
    """

    selected_by: str
    rle: dict[str, Any]
    area: int
    answer: Recognition

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool (H, W)."""
        return draw_segmentation(self.rle, tuple(self.rle["size"]))


@dataclass(eq=False)  # images are compared by identity
class DemoPicture:
    """An RGB image in a notebook, and the regions named in the image.

    `DemoPicture` objects are compared by identity, so two images with equal pixels are not equal.
    """

    image: Image.Image
    title: str = "picture"
    named: list[NamedRegion] = field(default_factory=list)
    key: str = field(default_factory=lambda: uuid4().hex)

    def document(self) -> dict[str, Any]:
        """Return a JSON object with the masks (as COCO RLEs), names and probabilities of all named regions."""
        regions = [
            {"chosen_by": one.selected_by, "segmentation": one.rle, "area": one.area, **answer_record(one.answer)}
            for one in self.named
        ]
        return {"image": self.title, "width": self.image.width, "height": self.image.height, "regions": regions}


@dataclass
class _Work:
    """A job in progress: its encoded image, its regions, and why it failed."""

    job: NamingJob
    encoded: EncodedImage | None = None
    regions: list[Region] = field(default_factory=list)
    rles: list[dict[str, Any] | None] = field(default_factory=list)  # of the masks that the segmenter made
    scores: list[float | None] = field(default_factory=list)
    skipped: int = 0
    failure: JobFailure | None = None

    def fail(self, error: Exception) -> None:
        if is_fatal(error):
            raise error
        if isinstance(error, OsmError):
            self.failure = JobFailure(str(error))
        else:
            logger.error(f"a job failed: {type(error).__name__}: {error}")
            self.failure = JobFailure(f"naming failed ({type(error).__name__})", INTERNAL)


def is_fatal(error: Exception) -> bool:
    """Return whether a device has failed for good, so that only a new process can go on.

    After an error such as a failed assertion in a kernel, every later call of the CUDA context fails as well.
    """
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


class Engine:
    """Names regions of images. The engine is thread-safe.

    Args:
        recognizer: names the masks.
        segmenter: generates masks from points and boxes. None: only masks and boxes can be named.
        cache_bytes: size limit of the cache of encoded images.
    """

    def __init__(
        self, recognizer: Recognizer, segmenter: Segmenter | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.recognizer, self.segmenter = recognizer, segmenter
        self.modes: tuple[str, ...] = tuple(recognizer.modes)
        self.cache = ImageCache(cache_bytes)
        self._lock = threading.Lock()
        self._segmented = ""  # the key of the image that is set in the segmenter
        self._states: OrderedDict[str, Any] = OrderedDict()  # the segmenter's states for the last images
        self._hits = self._misses = 0

    @property
    def stats(self) -> EngineStats:
        """The counts since the start, and the memory of the cache."""
        return EngineStats(self._hits, self._misses, len(self.cache), self.cache.bytes)

    def info(self, checkpoint: str) -> ModelInfo:
        """Describe the loaded model."""
        model, processor = self.recognizer.model, self.recognizer.processor
        return ModelInfo(
            checkpoint,
            self.modes,
            self.segmenter.name if self.segmenter is not None else "",
            model.calibration is not None,
            self.recognizer.decoder.max_new_tokens,
            model.bridge.prefix_length + processor.prompts([processor.naming_prompt()]).input_ids.shape[1],
        )

    # -- several jobs --------------------------------------------------------------------------------------------------

    def run(self, jobs: Sequence[NamingJob]) -> list[JobResult]:
        """Name the regions of several jobs together, and return one result per job.

        All images that are not cached are encoded together. Regions whose naming options are equal are named together.
        A job that fails does not affect the others.
        """
        with self._lock:
            works = [_Work(job) for job in jobs]
            pictures = _Pictures()
            self._encode(works, pictures)
            for work in works:
                self._find_regions(work, pictures)
            groups: dict[NamingOptions, list[_Work]] = {}
            for work in works:
                if work.failure is None and work.job.options is not None and work.regions:
                    groups.setdefault(work.job.options, []).append(work)
            names: dict[int, list[list[Recognition]]] = {}
            for options, group in groups.items():
                names |= self._name(group, options)
            return [_result(work, pictures, names.get(id(work))) for work in works]

    def _encode(self, works: Sequence[_Work], pictures: _Pictures) -> None:
        """Encode the images that will be named and are not cached."""
        missing: dict[str, list[_Work]] = {}
        for work in works:
            if work.job.options is None:
                continue
            key = work.job.image.key
            work.encoded = self.cache.get(key)
            if work.encoded is not None:
                self._hits += 1
            else:
                self._misses += key not in missing
                self._hits += key in missing
                missing.setdefault(key, []).append(work)
        for start in range(0, len(missing), self.recognizer.images_at_once):
            part = list(missing)[start : start + self.recognizer.images_at_once]
            self._encode_some({key: missing[key] for key in part}, pictures)

    def _encode_some(self, missing: dict[str, list[_Work]], pictures: _Pictures) -> None:
        """Decode and encode a few images together."""
        readable: dict[str, Image.Image] = {}
        for key, waiting in missing.items():
            try:
                readable[key] = pictures.rgb(waiting[0].job.image)
            except Exception as error:
                for work in waiting:
                    work.fail(error)
        try:
            found = self.recognizer.encode_images(list(readable.values()))
        except Exception as error:
            for key in readable:
                for work in missing[key]:
                    work.fail(error)
            return
        for key, encoded in zip(readable, found, strict=True):
            self.cache.put(key, encoded)
            for work in missing[key]:
                work.encoded = encoded
            if not any(work.job.needs_pixels for work in missing[key]):
                pictures.forget(key)  # the decoded images of a large batch would take gigabytes

    def _find_regions(self, work: _Work, pictures: _Pictures) -> None:
        if work.failure is None:
            try:
                self._add_regions(work, pictures)
            except Exception as error:
                work.fail(error)

    def _add_regions(self, work: _Work, pictures: _Pictures) -> None:
        job = work.job
        if job.everything:
            segments, count = self._ready(job.image, pictures).largest(job.everything)
            if not count:
                raise OsmError("the segmenter found no objects in this image: point at an object, or paint over it")
            for segment in segments:
                _add(work, segment)
            work.skipped = count - len(work.regions)
            return
        size = work.encoded.size if work.encoded is not None else pictures.rgb(job.image).size
        for k, prompt in enumerate(job.regions):
            where = f"region {k}"
            if prompt.segment and prompt.kind == "box":
                _check_box(prompt.value, size, where)
                _add(work, self._ready(job.image, pictures).in_box(prompt.value))
            elif prompt.segment and prompt.kind == "points":
                for x, y in prompt.value:
                    _check_inside(x, y, size, where)
                _add(work, self._ready(job.image, pictures).at_points(prompt.value, prompt.inside or None))
            else:
                work.regions.append(_region(prompt, job.image, size, where, pictures))
                work.rles.append(None)
                work.scores.append(None)

    def _ready(self, image: JobImage, pictures: _Pictures) -> Segmenter:
        if self.segmenter is None:
            raise OsmError("no segmenter is loaded: give the mask of the object instead of a point")
        if self._segmented == image.key:
            return self.segmenter
        self._segmented = ""  # because `set_image` may fail
        if image.key in self._states:  # several users of the page take turns
            self._states.move_to_end(image.key)
            self.segmenter.restore(self._states[image.key])
        else:
            self.segmenter.set_image(pictures.rgb(image))
            state = self.segmenter.state()
            if state is not None:
                self._states[image.key] = state
            if len(self._states) > _SEGMENTED_IMAGES:
                self._states.popitem(last=False)
        self._segmented = image.key
        return self.segmenter

    def _name(self, works: Sequence[_Work], options: NamingOptions) -> dict[int, list[list[Recognition]]]:
        """Name the regions of jobs with equal options. Return the names by the identity of the job in progress."""
        by_image: dict[str, list[_Work]] = {}
        for work in works:
            by_image.setdefault(work.job.image.key, []).append(work)
        images = [of_image[0].encoded for of_image in by_image.values()]
        regions = [[region for work in of_image for region in work.regions] for of_image in by_image.values()]
        try:
            found = self.recognizer.name_encoded(
                [image for image in images if image is not None],
                regions,
                modes=options.modes,
                top_k=options.top_k,
                vocabulary=list(options.vocabulary) or None,
                method=options.method,
                ranking=Ranking(length_power=options.length_power, prior_weight=options.prior_weight),
                none_below=options.none_below,
            )
        except Exception as error:
            return self._name_apart(works, options, error)
        names = {}
        for of_image, answers in zip(by_image.values(), found, strict=True):
            rest = iter(answers)
            for work in of_image:
                names[id(work)] = [next(rest) for _ in work.regions]
        return names

    def _name_apart(
        self, works: Sequence[_Work], options: NamingOptions, error: Exception
    ) -> dict[int, list[list[Recognition]]]:
        """Name jobs one by one after they failed together, so that only the faulty ones fail."""
        if len(works) == 1:
            works[0].fail(error)
            return {}
        names: dict[int, list[list[Recognition]]] = {}
        for work in works:
            names |= self._name([work], options)
        return names

    # -- one region of a picture in a notebook -------------------------------------------------------------------------

    def point(self, picture: DemoPicture, x: float, y: float, request: NamingRequest) -> NamedRegion:
        """Name the object at (x, y) in pixels.

        Raises:
            OsmError: the point is outside the image, or the request is invalid.
        """
        return self._one(picture, f"point {x:g}, {y:g}", RegionPrompt("points", [(x, y)], segment=True), request)

    def box(self, picture: DemoPicture, box: Sequence[float], request: NamingRequest) -> NamedRegion:
        """Name the object in a box, given as (x, y, width, height) in pixels.

        Raises:
            OsmError: the box has no area or starts outside the image, or the request is invalid.
        """
        title = "box " + ", ".join(f"{side:g}" for side in box)
        return self._one(picture, title, RegionPrompt("box", tuple(box), segment=True), request)

    def painted(self, picture: DemoPicture, mask: np.ndarray, request: NamingRequest) -> NamedRegion:
        """Name the object under a mask, given as a bool array (H, W) of the same size as the image.

        Raises:
            OsmError: the mask is empty, the mask's size differs from the image's, or the request is invalid.
        """
        if not mask.any():
            raise OsmError("nothing is painted: paint over the object to name")
        return self._one(picture, "painted", RegionPrompt("mask", mask), request)

    def everything(
        self, picture: DemoPicture, request: NamingRequest, max_segments: int = MAX_SEGMENTS
    ) -> tuple[list[NamedRegion], int]:
        """Segment the image and name the largest segments.

        Args:
            max_segments: maximum number of segments to name.

        Returns:
            The named segments in descending order of area, and the number of smaller segments that were skipped.

        Raises:
            OsmError: the segmenter found nothing, or the request is invalid.
        """
        answer = self._answered(picture, (), max_segments, request)
        found = [_named(f"segment {k}", region) for k, region in enumerate(answer.regions, 1)]
        return found, answer.skipped_segments

    def _one(self, picture: DemoPicture, title: str, prompt: RegionPrompt, request: NamingRequest) -> NamedRegion:
        return _named(title, self._answered(picture, (prompt,), 0, request).regions[0])

    def _answered(
        self, picture: DemoPicture, prompts: tuple[RegionPrompt, ...], everything: int, request: NamingRequest
    ) -> JobAnswer:
        image = JobImage(picture.key, picture.image)
        result = self.run([NamingJob(image, prompts, everything, options_of(request), masks=True)])[0]
        if isinstance(result, JobFailure):
            raise OsmError(result.message)
        return result


class _Pictures:
    """The decoded images of one batch, so that an image is decoded at most once."""

    def __init__(self) -> None:
        self._rgb: dict[str, Image.Image] = {}
        self._alpha: dict[str, np.ndarray] = {}

    def rgb(self, image: JobImage) -> Image.Image:
        """Return the image as RGB, upright. The colors of transparent pixels are kept if they are the mask."""
        if image.key not in self._rgb:
            if not isinstance(image.source, bytes):
                self._rgb[image.key] = as_rgb(image.source)
            elif image.key.startswith(ALPHA_KEY):
                rgba = decode(open_image(image.source), "RGBA")
                self._rgb[image.key] = rgba.convert("RGB")
                self._alpha[image.key] = np.asarray(rgba)[..., 3] > 0
            else:
                self._rgb[image.key] = read_rgb(image.source, upright=True)
        return self._rgb[image.key]

    def forget(self, key: str) -> None:
        """Release the pixels of an image."""
        self._rgb.pop(key, None)

    def alpha(self, image: JobImage) -> np.ndarray:
        """Return where the alpha channel of an image is over 0, bool (H, W)."""
        self.rgb(image)
        return self._alpha[image.key]


def _add(work: _Work, segment: ScoredMask) -> None:
    rle = encode_rle(segment.mask)  # because many masks of a large image would take too much memory
    work.regions.append(Region(lambda: draw_segmentation(rle, tuple(rle["size"]))))
    work.rles.append(rle)
    work.scores.append(segment.score)


def _region(prompt: RegionPrompt, image: JobImage, size: tuple[int, int], where: str, pictures: _Pictures) -> Region:
    """Return the region of a prompt that needs no segmenter.

    Raises:
        OsmError: the region is invalid. The message begins with `where`.
    """
    value = prompt.value
    if prompt.kind == "box":
        return _renamed(lambda: regions_of(size, boxes=[value])[0], "box 0", where)
    if prompt.kind == "points":
        if len(value) > 1 or False in prompt.inside:
            raise OsmError(f"{where}: several points select a segment; set segment to true, or give one point")
        return _renamed(lambda: regions_of(size, points=[value[0]])[0], "point 0", where)
    if prompt.kind == "alpha":
        mask = pictures.alpha(image)
        return Region(lambda: mask)
    if prompt.kind == "mask":
        return Region(mask_drawer(value, size[::-1], where))
    if prompt.kind == "png":
        try:
            mask = mask_drawer(open_image(value), size[::-1], where)()
        except SampleError as error:
            raise OsmError(f"{where}: the mask is not a readable image ({error})") from None
        rle = encode_rle(mask)  # because hundreds of masks of a large image would take too much memory
        return Region(lambda: draw_segmentation(rle, size[::-1]))
    segmentation = read_segmentation(value, size[::-1], where).value
    return Region(lambda: draw_segmentation(segmentation, size[::-1]))


def _renamed(function: Callable[[], Region], name: str, where: str) -> Region:
    try:
        return function()
    except OsmError as error:
        raise OsmError(where + str(error).removeprefix(name)) from None


def _result(work: _Work, pictures: _Pictures, names: list[list[Recognition]] | None) -> JobResult:
    if work.failure is None:
        try:
            return _answer(work, pictures, names)
        except Exception as error:
            work.fail(error)
    assert work.failure is not None
    return work.failure


def _answer(work: _Work, pictures: _Pictures, names: list[list[Recognition]] | None) -> JobAnswer:
    size = work.encoded.size if work.encoded is not None else pictures.rgb(work.job.image).size
    found = []
    for k, region in enumerate(work.regions):
        of_region = tuple(names[k]) if names is not None else ()
        rle, area = None, None
        if work.job.masks:
            rle = work.rles[k] or encode_rle(region.mask)
            area = rle_area(rle)
        found.append(RegionAnswer(of_region, rle, area, work.scores[k]))
    return JobAnswer(size, tuple(found), work.skipped)


def options_of(request: NamingRequest) -> NamingOptions:
    """Convert the options of a notebook to those of a job."""
    return NamingOptions(
        (request.mode,),
        request.top_k,
        request.vocabulary,
        request.method,
        request.ranking.length_power,
        request.ranking.prior_weight,
        request.none_below,
    )


def _named(title: str, region: RegionAnswer) -> NamedRegion:
    assert region.rle is not None and region.area is not None
    return NamedRegion(title, dict(region.rle), region.area, region.names[0])


def _check_inside(x: float, y: float, size: tuple[int, int], where: str) -> None:
    if not (0 <= x < size[0] and 0 <= y < size[1]):  # this also rejects NaN
        raise OsmError(f"{where}: point {x:g}, {y:g} is outside the image, which has {size[0]} x {size[1]} pixels")


def _check_box(box: Sequence[float], size: tuple[int, int], where: str) -> None:
    x, y, width, height = box
    if not all(map(math.isfinite, box)):
        raise OsmError(f"{where}: box {shown(list(box))} contains NaN or infinite values; expected finite numbers")
    if width <= 0 or height <= 0:
        raise OsmError(f"{where}: box {shown(list(box))} has no area: its width and height must be positive")
    _check_inside(x, y, size, where)


def load_engine(
    checkpoint: str,
    segmenter: str = "auto",
    sam_checkpoint: str | None = None,
    *,
    device: str = "auto",
    config: str | None = None,
    settings: Sequence[str] = (),
    cache_bytes: int = CACHE_BYTES,
) -> Engine:
    """Load a trained model and a segmenter.

    Args:
        checkpoint: a folder, a hub id, a `.pt` file, or the name of a model that is included in the package.
        segmenter: name of the segmenter; see `osm.recognition.segmenters.load_segmenter`. `none` loads no segmenter.
        sam_checkpoint: checkpoint of the segmenter; see `osm.recognition.segmenters.load_segmenter`.
        device: device of the model and the segmenter.
        config: the model config, for a checkpoint that does not contain one.
        settings: changes of single config values, as given to `--set`.
        cache_bytes: size limit of the cache of encoded images.
    """
    from osm.recognition.recognizer import load_recognizer
    from osm.recognition.segmenters import load_segmenter

    recognizer = load_recognizer(checkpoint, config=config, settings=settings, device=device)
    if segmenter == "none":
        return Engine(recognizer, None, cache_bytes)
    found = load_segmenter(segmenter, sam_checkpoint, recognizer=recognizer, device=device)
    return Engine(recognizer, found, cache_bytes)
