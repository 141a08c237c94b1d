"""Distributes an LLM over several GPUs, CPU memory and disk if it does not fit on one device."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError, not_one_of, shown

if TYPE_CHECKING:  # torch is slow to import, and command lines need only the flags of this module
    from torch import nn

DEVICE_MAPS = ("auto", "balanced", "sequential")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", re.IGNORECASE)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add command-line flags for the arguments of `load_recognizer` that affect memory, speed and LLM placement."""
    group = parser.add_argument_group("memory and speed")
    group.add_argument("--max_batch_tokens", type=int, help="LLM positions decoded together [what the memory holds]")
    group.add_argument("--compiled", action="store_true", default=None, help="compiled decoding steps, for GPUs")
    group.add_argument("--tf32", action="store_true", default=None, help="float32 products in TF32, on GPUs")
    group.add_argument("--device_map", help=f"an LLM too large for one device: {', '.join(DEVICE_MAPS)}")
    group.add_argument("--max_memory", metavar="0=20GiB,cpu=60GiB", help="that --device_map may take")
    group.add_argument("--offload_folder", metavar="DIR", help="for what --device_map puts on the disk")


def from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Convert the flags added by `add_flags` to `load_recognizer` arguments, omitting flags that were not given.

    Raises:
        OsmError: --max_memory or --offload_folder is given without --device_map.
    """
    names = ("max_batch_tokens", "compiled", "tf32", "device_map", "max_memory", "offload_folder")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in ("max_memory", "offload_folder"):
        if name in given and "device_map" not in given:
            raise OsmError(f"--{name} {given[name]} has no effect without --device_map; give --device_map auto as well")
    if "max_memory" in given:
        given["max_memory"] = parse_max_memory(given["max_memory"])
    return given


def parse_max_memory(text: str) -> dict[int | str, int]:
    """Parse the value of `--max_memory`, such as `0=20GiB,cpu=60GiB`, into a dict that maps devices to bytes.

    Raises:
        OsmError: a device is neither a GPU number nor `cpu`, a device is given twice, or a size is invalid.
    """
    found: dict[int | str, int] = {}
    for entry in text.split(","):
        place, equals, size = (part.strip() for part in entry.partition("="))
        if not equals or not (place == "cpu" or place.isdecimal()):
            raise _no_size(entry.strip())
        key = place if place == "cpu" else int(place)
        if key in found:
            raise OsmError(f"--max_memory {text!r}: {place} is given twice")
        found[key] = _bytes(key, size)
    return found


def _bytes(place: int | str, size: int | str) -> int:
    """Convert a size such as `20GiB` to bytes.

    Accelerate's own parser is not used, because it interprets a lowercase unit such as `gb` as gigabits.
    """
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if not match:
        raise _no_size(f"{place}={size}")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" KMGT".index(unit.upper()) if unit else 0))


def _no_size(found: str) -> OsmError:
    return OsmError(f"--max_memory {found!r}: expected PLACE=SIZE, as in 0=20GiB,cpu=60GiB")


def spread(
    llm: nn.Module,
    device_map: str | Mapping[str, Any],
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
) -> nn.Module:
    """Distribute an LLM across devices with accelerate. The LLM's inputs and outputs can stay on the caller's device.

    Args:
        llm: the LLM, whose modules are moved.
        device_map: `auto` and `balanced` distribute the layers evenly over the GPUs, `sequential` fills one GPU after
            the other. Layers that do not fit on the GPUs are stored in CPU memory, then on disk, and are copied to a
            GPU when they run. Alternatively, a mapping from module names to devices.
        max_memory: memory limit of each GPU (by its number) and of the CPU (`cpu`). None: all available memory.
        offload_folder: folder in which layers are stored on disk. They are removed when the program ends.

    Raises:
        OsmError: the device map is unknown or does not cover the LLM, or layers must be stored on disk but
            `offload_folder` is None.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = getattr(llm, "_no_split_modules", None) or []
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAPS:
            raise not_one_of("--device_map", device_map, DEVICE_MAPS)
        limits = {place: _bytes(place, size) for place, size in max_memory.items()} if max_memory else None
        if device_map != "sequential":
            limits = get_balanced_memory(llm, max_memory=limits, no_split_module_classes=list(whole))
        placed = infer_auto_device_map(llm, max_memory=limits, no_split_module_classes=list(whole))
    else:
        placed = dict(device_map)
    if placed.get("") == "disk":  # accelerate requires the names of the submodules
        placed = {name: "disk" for name, _ in llm.named_children()}
    # A module without weights (such as rotary position embeddings) cannot be offloaded to disk.
    kept = list(llm.state_dict())
    for name, place in placed.items():
        if place == "disk" and not any(f"{key}.".startswith(f"{name}.") for key in kept):
            placed[name] = "cpu"
    if "disk" in placed.values() and offload_folder is None:
        raise OsmError(
            f"--device_map {shown(device_map)}: {list(placed.values()).count('disk')} modules of the LLM must be "
            "offloaded to disk; give a folder with --offload_folder, or allow more memory with --max_memory"
        )
    folder = None
    if "disk" in placed.values():
        try:
            Path(str(offload_folder)).mkdir(parents=True, exist_ok=True)
            # Each model is offloaded to a new subfolder; otherwise, accelerate would load the files of an older model.
            folder = tempfile.TemporaryDirectory(prefix="llm_", dir=offload_folder)
        except OSError as error:
            raise OsmError(f"--offload_folder {offload_folder}: {error.strerror}; expected a writable folder") from None
    try:
        spread_out = dispatch_model(llm, placed, offload_dir=folder and folder.name)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise OsmError(f"--device_map {shown(device_map)}: {error}") from None
    spread_out.offload_folder = folder  # the temporary folder is removed together with the model
    return spread_out
