"""Golden shards: what the converters write for all nine sets in both layouts, and what the readers make of it.

`sources.tar.gz` holds a few images of every set in the files of its own release; `sources.json` holds the converter's
arguments.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.data.shards import RawSample, read_shard
from osm.datasets.table import BUILTIN, Dataset
from osm.errors import SampleError
from osm.forms import read_sample
from osm.io.views import View
from osm.prepare.convert import main as convert

HERE = Path(__file__).resolve().parent
LAYOUTS = ("webdataset", "published")


def write_sources(folder: Path) -> None:
    """Makes `sources.tar.gz` and `sources.json` (once; they are inputs, not results)."""
    from source_sets import MAKERS

    arguments = {}
    for name, make in MAKERS.items():
        made = make(folder / name, 4)
        made.arguments(folder / "unused")  # writes the json file
        arguments[name] = {flag: str(path.relative_to(folder)) for flag, path in made.paths.items()}
    with tarfile.open(HERE / "sources.tar.gz", "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False)
    (HERE / "sources.json").write_text(json.dumps(arguments, indent=1) + "\n")


def convert_sources(folder: Path) -> dict[str, Path]:
    """Converts every set in both layouts; returns `<set>.<layout>` -> the folder with its shards."""
    with tarfile.open(HERE / "sources.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    written = {}
    for name, paths in json.loads((HERE / "sources.json").read_text()).items():
        given = [word for flag, path in paths.items() for word in (f"--{flag}", str(folder / path))]
        for layout in LAYOUTS:
            out = folder / f"out.{name}.{layout}"
            fixed = ["--output_dir", str(out), "--num_workers", "1", "--num_files_per_shard", "3", "--format", layout]
            assert convert(name, [*fixed, *given]) == 0
            written[f"{name}.{layout}"] = out
    return written


def record_conversion(folder: Path) -> dict[str, dict[str, str]]:
    """Returns the members of every set and layout, in the order of the shards, each with a digest of its content."""
    found: dict[str, dict[str, str]] = {}
    for name, out in convert_sources(folder).items():
        found[name] = {}
        for shard in sorted(out.glob("*.tar")):
            with tarfile.open(shard) as tar:
                for info in tar:
                    data = tar.extractfile(info).read()  # type: ignore[union-attr]
                    found[name][f"{shard.name}/{info.name}"] = _digest(info.name, data)
    return found


def _digest(name: str, data: bytes) -> str:
    if name.endswith(("part.png", "whole.png")):  # drawn by the converter: the compressed bytes depend on zlib
        data = np.asarray(Image.open(io.BytesIO(data))).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def record_reading() -> dict[str, list[dict[str, Any]]]:
    """Returns what the readers find in the stored shards: keys, names of the segments, and a digest of their masks."""
    table = {row.name: row for row in BUILTIN}
    found = {}
    for path in sorted((HERE / "shards").glob("*.tar")):
        row = table[path.name.split(".")[0]]
        found[path.name] = [_sample(row, raw) for raw in read_shard(str(path))]
    return found


def _sample(row: Dataset, raw: RawSample | SampleError) -> dict[str, Any]:
    assert isinstance(raw, RawSample), raw
    scene = read_sample(row.form, raw.members, row.label_set, row.rules)
    whole = View(scene.width, scene.height, 0, 0, scene.width, scene.height, False)
    rng = np.random.default_rng(0)
    segments = [
        {
            "name": scene.target(segment, rng),
            "class": segment.category_id,
            "pixels": int(segment.mask.sum()),
            "mask": hashlib.sha256(np.packbits(segment.mask).tobytes()).hexdigest()[:12],
        }
        for segment in scene.pick(whole, 100, rng, fixed_view=True)
    ]
    return {"key": raw.key, "size": [scene.width, scene.height], "segments": segments}
