"""Where an LLM lies that does not fit one device: its layers spread over GPUs, the CPU's memory and the disk."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.errors import OsmError, shown

if TYPE_CHECKING:  # slow to import, and the command lines need no more than the flags
    from torch import nn

DEVICE_MAPS = ("auto", "balanced", "sequential")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B|B)?", re.IGNORECASE)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `load_recognizer` that say where a large LLM lies, and what naming takes."""
    group = parser.add_argument_group("memory and speed")
    group.add_argument("--max_batch_tokens", type=int, help="LLM positions decoded together [what the memory holds]")
    group.add_argument("--compiled", action="store_true", default=None, help="compiled decoding steps, for GPUs")
    group.add_argument("--tf32", action="store_true", default=None, help="float32 products in TF32, on GPUs")
    group.add_argument("--device_map", help=f"an LLM too large for one device: {', '.join(DEVICE_MAPS)}")
    group.add_argument("--max_memory", metavar="0=20GiB,cpu=60GiB", help="that --device_map may take")
    group.add_argument("--offload_folder", metavar="DIR", help="for what --device_map puts on the disk")


def from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Of these flags those that were given, as arguments of `load_recognizer`.

    Raises:
        OsmError: one that means nothing without --device_map.
    """
    names = ("max_batch_tokens", "compiled", "tf32", "device_map", "max_memory", "offload_folder")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in ("max_memory", "offload_folder"):
        if name in given and "device_map" not in given:
            raise OsmError(f"--{name} {given[name]}: only --device_map spreads the LLM; give --device_map auto as well")
    if "max_memory" in given:
        given["max_memory"] = parse_max_memory(given["max_memory"])
    return given


def parse_max_memory(text: str) -> dict[int | str, int]:
    """`0=20GiB,cpu=60GiB` in bytes.

    Raises:
        OsmError: a place that is neither a GPU's number nor `cpu`, one that is given twice, or no size.
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
    """A size as accelerate takes it: of texts it knows fewer, and takes those in small letters for bits."""
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
    """Spreads an LLM over devices with accelerate; its inputs and outputs stay where the caller has them.

    Args:
        device_map: `auto` and `balanced` share the layers out evenly over the GPUs, `sequential` fills one after the
            other; what does not fit goes to the CPU's memory, then to the disk, and is brought to a GPU when its turn
            comes. Or a mapping, module name -> device.
        max_memory: of each GPU (its number) and of the CPU (`cpu`); all there is by default.
        offload_folder: for what goes to the disk; removed when the program ends.

    Raises:
        OsmError: a map of another name, or one that does not cover the LLM, or no folder for what goes to the disk.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = getattr(llm, "_no_split_modules", None) or []
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAPS:
            raise OsmError(f"--device_map {device_map!r} is not one of {', '.join(DEVICE_MAPS)}")
        limits = {place: _bytes(place, size) for place, size in max_memory.items()} if max_memory else None
        if device_map != "sequential":
            limits = get_balanced_memory(llm, max_memory=limits, no_split_module_classes=list(whole))
        placed = infer_auto_device_map(llm, max_memory=limits, no_split_module_classes=list(whole))
    else:
        placed = dict(device_map)
    if placed.get("") == "disk":  # accelerate takes the whole of it by the names of its parts alone
        placed = {name: "disk" for name, _ in llm.named_children()}
    # A module without weights (rotary positions) has nothing to be put on the disk.
    kept = list(llm.state_dict())
    for name, place in placed.items():
        if place == "disk" and not any(f"{key}.".startswith(f"{name}.") for key in kept):
            placed[name] = "cpu"
    if "disk" in placed.values() and offload_folder is None:
        raise OsmError(
            f"--device_map {shown(device_map)}: {list(placed.values()).count('disk')} parts of the LLM go to the disk; "
            "say where with --offload_folder, or give it more memory with --max_memory"
        )
    folder = None
    if "disk" in placed.values():
        try:
            Path(str(offload_folder)).mkdir(parents=True, exist_ok=True)
            # One of its own: accelerate would take what an older model left there for this one's weights.
            folder = tempfile.TemporaryDirectory(prefix="llm_", dir=offload_folder)
        except OSError as error:
            raise OsmError(
                f"--offload_folder {offload_folder}: {error.strerror}; a folder to write to is needed"
            ) from None
    try:
        spread_out = dispatch_model(llm, placed, offload_dir=folder and folder.name)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise OsmError(f"--device_map {shown(device_map)}: {error}") from None
    spread_out.offload_folder = folder  # removed together with the model
    return spread_out
