"""Read masks that the user passes as arrays, tensors, RLEs, PIL images or files.

This module never guesses which pixels are inside a mask. If a mask is ambiguous, the error message asks the user how to
interpret it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from osm.errors import OsmError, SampleError, shown
from osm.files import check_regular_file
from osm.io.images import as_ids, decode, open_image, orientation, to_rgb, turned
from osm.io.segmentation import draw_segmentation, read_segmentation

Draw = Callable[[], np.ndarray]
_HALF = 127  # Gray levels above this value are inside the mask.
_DARK, _BRIGHT = 63, 224  # Gray levels <= _DARK count as black, and gray levels >= _BRIGHT count as white.
_LISTED = 8  # The maximum number of ids listed in an error message.
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")  # Gray levels in these lossy formats may be compression noise.
_MAX_NPY_HEADER = 10_000


@dataclass(frozen=True)
class _Words:
    """Advice given in error messages about ambiguous masks, worded for the Python API or the command line."""

    label: str
    logits: str
    threshold: str


_CALL = _Words("pass label_id=...", "pass logits=True", "pass mask > your threshold")
_FLAG = _Words("give --mask_id N", "save logits > 0", "save it in black and white")


def as_mask(
    value: Any, size_hw: tuple[int, int], where: str, *, logits: bool = False, label_id: int | None = None
) -> np.ndarray:
    """Convert a mask in any supported format to a bool array (H, W). See `mask_drawer` for the arguments and errors."""
    return mask_drawer(value, size_hw, where, logits=logits, label_id=label_id)()


def mask_drawer(
    value: Any, size_hw: tuple[int, int], where: str, *, logits: bool = False, label_id: int | None = None
) -> Draw:
    """Validate a mask in any supported format and return a function that draws it as a bool array (H, W).

    The mask is drawn only when the returned function is called, so hundreds of masks do not have to be in memory at
    once.

    Args:
        value: a numpy array or torch tensor of shape (H, W), (1, H, W) or (H, W, 1); a COCO RLE; SAM's {"segmentation":
            mask or RLE}; or a PIL image (see `read_mask_file`). The values of an array or tensor are bool, 0 and one
            other number, or numbers from 0 to 1 (values > 0.5 are inside).
        size_hw: the (height, width) of the image to which the mask belongs.
        where: the beginning of error messages.
        logits: whether an array or tensor holds logits, whose values > 0 are inside.
        label_id: the id whose pixels are inside, if an array or image is a label map. None if it is a mask.

    Raises:
        OsmError: the mask is ambiguous, cannot be read, or does not have the shape of its image.
    """
    if label_id is not None and (isinstance(label_id, bool) or not isinstance(label_id, (int, np.integer))):
        raise OsmError(f"label_id {shown(label_id)} is not an integer")
    if logits and label_id is not None:
        raise OsmError(f"logits=True cannot be combined with label_id={label_id}")
    if isinstance(value, Image.Image):
        mask = _of_image(value, size_hw, where, label_id, _CALL)
        return lambda: mask
    if isinstance(value, Mapping):
        return _of_mapping(value, size_hw, where, logits, label_id)
    array = _array(value, size_hw, where)
    rule = _rule(array, where, logits, label_id, _CALL)
    return lambda: rule(_array(value, size_hw, where))  # A tensor stays on its device until the mask is drawn.


def read_mask_file(path: Path, size_hw: tuple[int, int], where: str, label_id: int | None = None) -> np.ndarray:
    """Read a mask file as a bool array (H, W).

    The file is a `.npy` array or an image. Images are rotated upright according to their EXIF orientation. White pixels
    are inside the mask, black pixels are outside, and gray levels are thresholded at half brightness. If the image
    contains a single color on a black background, the pixels of that color are inside the mask. If the alpha channel is
    not constant, it is used as the mask. A palette is interpreted by its colors.

    Args:
        path: the path of the mask file.
        size_hw: the (height, width) of the image to which the mask belongs.
        where: the beginning of error messages.
        label_id: the id (or palette index) whose pixels are inside, if the file is a label map. None if the file is a
            mask.

    Raises:
        OsmError: the file cannot be read, is ambiguous, or does not have the size of its image.
    """
    if path.suffix.lower() == ".npy":
        return _of_npy(path, size_hw, where, label_id)
    try:
        return _of_image(open_image(path), size_hw, where, label_id, _FLAG)
    except OsmError as error:
        if str(error).startswith(where):
            raise
        raise OsmError(f"{where}: {error}") from None


# Arrays.


def _array(value: Any, size_hw: tuple[int, int], where: str) -> np.ndarray:
    """Convert an array or tensor to a NumPy array (H, W). The shape and dtype are checked before any data is copied."""
    torch: Any = sys.modules.get("torch")  # If torch has not been imported, the value cannot be a tensor.
    if torch is not None and isinstance(value, torch.Tensor):
        _check_shape(tuple(value.shape), value.dtype, size_hw, where)
        if value.device.type == "meta":
            raise OsmError(
                f"{where} is a tensor on the meta device, which has no values; use a tensor on a real device"
            )
        try:
            tensor = value.detach()
            tensor = (tensor if tensor.layout == torch.strided else tensor.to_dense()).cpu()
            known = (torch.float16, torch.float32, torch.float64)
            array = (tensor.float() if tensor.is_floating_point() and tensor.dtype not in known else tensor).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[:1]
            raise OsmError(
                f"{where}: cannot read a tensor with dtype {value.dtype} on device {value.device} "
                f"({reason[0] if reason else ''})"
            ) from None
    else:
        try:
            # In a NumPy masked array, the invalid elements count as outside the object's mask.
            array = value.filled(0) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
        except Exception as error:  # An object's `__array__` method may raise any exception.
            raise OsmError(
                f"{where} is a {type(value).__name__}, which cannot be converted to an array ({error}); expected an "
                "array, a tensor, a PIL image or an RLE"
            ) from None
        _check_shape(array.shape, array.dtype, size_hw, where)
    if array.dtype.kind not in "buif":
        height, width = size_hw
        raise OsmError(
            f"{where} has shape {array.shape} and dtype {array.dtype}: expected a binary mask (0 and 1) of shape "
            f"({height}, {width})"
        )
    return array.reshape(size_hw)


def _check_shape(shape: tuple[int, ...], dtype: Any, size_hw: tuple[int, int], where: str) -> None:
    height, width = size_hw
    one = (height, width)
    if shape in (one, (1, *one), (*one, 1), (1, 1, *one), (1, *one, 1)):
        return
    hint = ""
    if len(shape) in (3, 4) and shape[-2:] == one:
        hint = f"; it holds {np.prod(shape[:-2], dtype=int)} masks; pass a single mask"
    elif shape == (width, height):
        hint = "; its sides are exchanged: pass mask.T"
    elif len(shape) == 3 and shape[:2] == one:
        hint = f"; it has {shape[2]} channels; pass a single channel"
    raise OsmError(
        f"{where} has shape {shape} and dtype {dtype}: expected a binary mask (0 and 1) of shape ({height}, {width})"
        f"{hint}"
    )


def _rule(
    array: np.ndarray, where: str, logits: bool, label_id: int | None, words: _Words
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that converts the array to a bool mask (H, W). See `mask_drawer` for the rules."""
    if label_id is not None:
        _check_id(array, label_id, where)
        return lambda values: values == label_id
    if array.dtype == bool:
        return lambda values: values
    low, high = array.min().item(), array.max().item()  # NaN if a value is NaN.
    if low != low:
        raise OsmError(f"{where} contains NaN; expected a binary mask (0 and 1) or values from 0 to 1")
    if logits:
        if low >= 0 and high <= 1 and ((array > 0) & (array < 1)).any():
            raise OsmError(
                f"{where} has values from {low:g} to {high:g}: these are probabilities, not logits; omit logits=True"
            )
        return lambda values: values > 0
    if low < 0:
        if np.isin(array, (-1, 1)).all():
            raise OsmError(f"{where} has the values -1 and 1: does 1 mean inside the mask? If so, {words.logits}")
        raise OsmError(f"{where} has values from {low:g} to {high:g}: are these logits? {words.logits}")
    if array.dtype.kind == "f" and 0 < high <= 1 and not (low == high == 1):
        if (array > 0.5).all():
            raise OsmError(
                f"{where} has values from {low:g} to {high:g}, all above 0.5: the mask would cover the whole image; "
                f"{words.threshold}"
            )
        return lambda values: values > 0.5
    if array.dtype.kind == "f" and not (np.isfinite(high) and (array == np.floor(array)).all()):
        raise OsmError(
            f"{where} has values from {low:g} to {high:g}: are these logits? {words.logits}; if not, expected 0 to 1"
        )
    if low == high and high not in (0, 1, 255) and not (array.dtype.kind == "u" and high == np.iinfo(array.dtype).max):
        raise OsmError(f"{where} has the value {high:g} everywhere: is the whole image inside the mask? {words.label}")
    if not ((array == 0) | (array == high)).all():
        _ask_for_id(array, where, words)
    return lambda values: values != 0


def _ask_for_id(array: np.ndarray, where: str, words: _Words) -> NoReturn:
    ids = np.unique(array)
    ids = ids[ids != 0]
    if len(ids) > _LISTED and array.max() == 255:
        raise OsmError(
            f"{where} has {len(ids)} distinct values up to 255: is it a soft mask (if so, {words.threshold}) or a "
            f"label map (if so, {words.label})?"
        )
    raise OsmError(f"{where} holds the ids {_listed(ids)}: which id marks the object? {words.label}")


def _listed(ids: np.ndarray) -> str:
    return ", ".join(f"{number:g}" for number in ids[:_LISTED].tolist()) + (", ..." if len(ids) > _LISTED else "")


def _check_id(array: np.ndarray, label_id: int, where: str) -> None:
    if array.dtype == bool:
        raise OsmError(f"{where} is a boolean mask, which has no ids; omit the id {label_id}")
    if not (array == label_id).any():
        raise OsmError(f"{where} has no pixel with the id {label_id}; it contains {_listed(np.unique(array))}")


# RLEs and SAM's dicts.


def _of_mapping(
    value: Mapping[Any, Any], size_hw: tuple[int, int], where: str, logits: bool, label_id: int | None
) -> Draw:
    inner = value.get("segmentation")
    if "counts" not in value and inner is not None:
        if isinstance(inner, list):
            return _of_segmentation(inner, size_hw, where, label_id)
        if isinstance(inner, Mapping) and "counts" not in inner:  # Dicts could be nested infinitely.
            raise OsmError(f"{where}: its segmentation is a dict without the key counts; expected an RLE or a mask")
        return mask_drawer(inner, size_hw, where, logits=logits, label_id=label_id)
    if "counts" not in value and "size" not in value:
        raise OsmError(
            f"{where} is a dict with the keys {shown(sorted(map(str, value)))}; expected an RLE (keys size and counts) "
            "or the key 'segmentation'"
        )
    return _of_segmentation(value, size_hw, where, label_id)


def _of_segmentation(segmentation: Any, size_hw: tuple[int, int], where: str, label_id: int | None) -> Draw:
    if label_id is not None:
        raise OsmError(f"{where} is given as an RLE or as polygons, which have no ids; omit the id {label_id}")
    value = read_segmentation(segmentation, size_hw, where).value
    return lambda: draw_segmentation(value, size_hw)


# Images.


def _check_size(size: tuple[int, int], size_hw: tuple[int, int], where: str) -> None:
    if size != size_hw[::-1]:
        turn = ": rotated by 90 degrees, perhaps because the EXIF orientation was ignored" if size == size_hw else ""
        raise OsmError(f"{where} is {size[0]} x {size[1]}, its image {size_hw[1]} x {size_hw[0]}{turn}")


def _of_image(
    image: Image.Image,
    size_hw: tuple[int, int],
    where: str,
    label_id: int | None,
    words: _Words,
) -> np.ndarray:
    """Return the mask in an opened or decoded image, after rotating the image upright. See `read_mask_file`."""
    turn = orientation(image)
    _check_size(image.size[::-1] if turn > 4 else image.size, size_hw, where)
    lossy = image.format in _LOSSY
    if label_id is not None:
        ids = _ids(image, turn, where)
        _check_id(ids, label_id, where)
        return ids == label_id
    image = turned(decode(image), turn)
    if image.mode == "1":
        return np.asarray(image)
    if image.mode == "F":
        array = np.asarray(image)
        return _rule(array, where, False, None, words)(array)
    if image.mode.startswith("I"):
        return _of_deep(np.asarray(image), where, words)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert(image.mode.upper()) if image.mode.endswith("a") else image).convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        most = int(alpha.max())
        plain = bool(((alpha == 0) | (alpha == most)).all()) and bool((alpha == 0).any())  # a faint overlay
        seen = alpha > (most // 2 if plain else _HALF)
        if not most:
            raise OsmError(f"{where} is fully transparent; expected a black-and-white mask")
        if not seen.any():
            raise OsmError(
                f"{where} is mostly transparent (maximum alpha {most} of 255); expected a black-and-white mask"
            )
        if not seen.all():
            bright = np.asarray(rgba)[..., :3].max(-1)[seen] > _HALF
            if bright.any() and not bright.all():
                raise OsmError(
                    f"{where} varies in both alpha and brightness: which of the two is the mask? Save only that one"
                )
            return seen
        image = rgba.convert("RGB")
    if image.mode == "L":
        return _of_grey(np.asarray(image), where, words, lossy)
    return _of_colors(np.asarray(to_rgb(image)), where, words, lossy)


def _ids(image: Image.Image, turn: int, where: str) -> np.ndarray:
    if image.mode == "F":
        return np.asarray(turned(decode(image), turn))
    try:
        ids = as_ids(image)
    except SampleError as error:
        raise OsmError(f"{where}: {error}") from None
    return ids if turn == 1 else np.asarray(turned(Image.fromarray(ids.astype(np.int32)), turn))


def _of_colors(rgb: np.ndarray, where: str, words: _Words, lossy: bool) -> np.ndarray:
    """Return the mask (H, W) in an RGB image (H, W, 3): its white pixels, or the pixels of its only color on black."""
    value = rgb.max(-1)
    if ((value - rgb.min(-1)) > 40).mean() <= 0.01:  # The image is gray except for JPEG noise.
        return _of_grey(value, where, words, lossy)
    drawn = value > 0
    colors = rgb[drawn]
    if not drawn.all() and (colors == colors[0]).all():
        return drawn
    inside = value > _HALF
    dim = ((value > _DARK) & ~inside).mean()
    if inside.all() or not inside.any() or dim > 0.05 or not _one_color(rgb[inside]):
        raise OsmError(f"{where} has several colors: which color marks the object? Save its pixels in white on black")
    return inside


def _one_color(colors: np.ndarray) -> bool:
    """Return whether nearly all colors (N, 3) are close to the most frequent one."""
    codes = (colors >> 5).astype(np.int32) @ np.array([64, 8, 1], np.int32)
    commonest = np.median(colors[codes == np.bincount(codes).argmax()], axis=0).astype(np.int16)
    return bool((np.abs(colors.astype(np.int16) - commonest).max(-1) > 48).mean() <= 0.02)


def _of_deep(values: np.ndarray, where: str, words: _Words) -> np.ndarray:
    """Return the mask in a 16-bit or 32-bit image that contains either gray levels or only 0 and one other value."""
    low, high = int(values.min()), int(values.max())
    plain = bool(((values == 0) | (values == high)).all())
    if low < 0 or plain:
        return _rule(values, where, False, None, words)(values)
    if high <= 255:
        return _of_grey(values.astype(np.uint8), where, words, False)
    if not _BRIGHT << 8 <= high < 1 << 16 or ((values > 0) & (values < 256)).any():
        _ask_for_id(values, where, words)
    return _of_grey((values >> 8).astype(np.uint8), where, words, False)


def _of_grey(grey: np.ndarray, where: str, words: _Words, lossy: bool) -> np.ndarray:
    """Convert a mostly black-and-white grayscale image, uint8 (H, W), to a bool mask (H, W)."""
    counts = np.bincount(grey.reshape(-1), minlength=256)
    found = np.flatnonzero(counts)
    low, high = int(found[0]), int(found[-1])
    if len(found) == 1 and low not in (0, 1, 255):
        raise OsmError(
            f"{where} has the value {low} everywhere: is the whole image inside the mask? If so, make it white (255)"
        )
    if len(found) == 1 or (len(found) == 2 and low == 0):
        return grey != 0
    if low > _HALF:
        raise OsmError(
            f"{where} is bright everywhere (values from {low} to {high}); expected white inside the mask and black "
            "outside"
        )
    if low > _DARK or high < _BRIGHT:
        _ask_for_id(grey, where, words)
    between = counts[_DARK + 1 : _BRIGHT]
    if not lossy and len(found) > 2:
        few = len(found) <= _LISTED and between.max() > 0.1 * counts[1:].sum()  # areas of gray, not soft edges
        above = found[found > _HALF]
        # Values such as 0, 1, 2 and 255 indicate a label map, in which 255 is the ignore label.
        # Unlike a label map, a mask with soft edges contains several bright values.
        ids = low == 0 and len(above) == 1 and found[found <= _HALF][-1] <= _DARK
        if few or ids:
            _ask_for_id(grey, where, words)
    if between.sum() > 0.5 * grey.size:
        raise OsmError(f"{where} is mostly gray; is it a mask? Expected white inside the mask and black outside")
    return grey > _HALF


# Arrays in files.


def _of_npy(path: Path, size_hw: tuple[int, int], where: str, label_id: int | None) -> np.ndarray:
    """Return the mask in a .npy file.

    The file's header is checked before memory is allocated, and pickled data is never loaded.
    """
    check_regular_file(path, where)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"version {version}")
            shape, _, dtype = read_header[version](file, max_header_size=_MAX_NPY_HEADER)
            if dtype.kind not in "buif":
                raise OsmError(f"{where} has dtype {dtype}; expected a numeric array")
            _check_shape(shape, dtype, size_hw, where)
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False).reshape(size_hw)
    except OsmError:
        raise
    except FileNotFoundError:
        raise OsmError(f"{where}: there is no such file") from None
    except Exception as error:  # Corrupt data can make NumPy raise any exception.
        raise OsmError(f"{where}: not a readable .npy file ({error})") from None
    return _rule(array, where, False, label_id, _FLAG)(array)
