"""The command `osm scenes`, which draws synthetic scenes and writes them as datasets in COCO panoptic format.

Example: `osm scenes data --split train --sets scenes_fine --images 1000 --seed 1`.

A split consists of `<out>/<split>/images/*.jpg`, `panoptic/*.png`, and one JSON file per dataset. All datasets share
the images and masks of the split, but their JSON files contain different names. A segment's `names` field lists its
correct names in all datasets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command, write_failed
from osm.files import PartialFile, read_json, write_atomically
from osm.storage.output import check_here
from osm.synthetic.scenes.compose import draw_scene
from osm.synthetic.scenes.scene_names import (
    HELD_OUT_SEED,
    SETS,
    Pair,
    categories,
    category_ids,
    choose_pairs,
    name_in,
    stuff_name_in,
)
from osm.terminal import ProgressBar, console_command, echo, message_logger

logger = message_logger(__name__)

SUMMARY = "scenes.json"
MAX_SIZE, MIN_SIZE = 1120, 64
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class SceneOptions:
    """The options of `osm scenes`.

    Attributes:
        images: the number of scenes.
        size: the side of the square images, in pixels.
        seed: the random seed of the scenes.
        pairs: the attribute-object pairs that may occur: `seen`, `held_out` or `all`.
        held_out_seed: the random seed of the held-out pairs. osm-nano was pre-trained without the held-out pairs of
            seed 0.
        sets: the datasets for which a JSON file is written.
    """

    images: int = 1000
    size: int = 256
    seed: int = 0
    pairs: str = "seen"
    held_out_seed: int = HELD_OUT_SEED
    sets: tuple[str, ...] = SETS

    def __post_init__(self) -> None:
        if self.images < 1:
            raise OsmError(f"--images {self.images} must be 1 or more")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise OsmError(f"--size {self.size} is not between {MIN_SIZE} and {MAX_SIZE}")
        for flag in ("seed", "held_out_seed"):
            if getattr(self, flag) < 0:
                raise OsmError(f"--{flag} {getattr(self, flag)} must be 0 or more")
        if not self.sets:
            raise OsmError(f"--sets: no dataset given; expected one or more of {', '.join(SETS)}")
        for name in self.sets:
            category_ids(name)
        choose_pairs(self.pairs, self.held_out_seed)


def write_scenes(folder: str | Path, options: SceneOptions, workers: int | None = None) -> Path:
    """Write a split of scenes to a folder, or resume an interrupted run. A finished split is not changed.

    Args:
        folder: the output folder.
        options: the options of `osm scenes`.
        workers: the number of processes; None = the number of CPUs. It does not affect the output.

    Returns:
        the output folder.

    Raises:
        OsmError: the folder has scenes that were made with different options, or cannot be written.
    """
    folder = Path(folder)
    arguments = {**asdict(options), "sets": list(options.sets)}
    summary = folder / SUMMARY
    if summary.is_file():
        found = read_json(summary, "scenes")[0]
        changed = [key for key, value in arguments.items() if not isinstance(found, dict) or found.get(key) != value]
        if changed:
            raise OsmError(
                f"{folder} contains scenes drawn with a different value of {', '.join(changed)}; choose a "
                "different folder"
            )
        logger.info(f"{folder}: finished already, {options.images} scenes")
        return folder
    try:
        for name in ("images", "panoptic"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with closing(PartialFile(folder / "scenes.partial.jsonl", arguments)) as partial:
            _draw_missing(folder, options, partial, workers or os.cpu_count() or 1)
            records = list(partial.records())
        _remove_beyond(folder, options.images)
        for name in options.sets:
            write_atomically(folder / f"{name}.json", [json.dumps(_document(name, options, records))])
        write_atomically(summary, [json.dumps(arguments, indent=1) + "\n"])
    except OSError as error:
        raise write_failed(error, str(folder), "a writable folder with free disk space") from None
    (folder / "scenes.partial.jsonl").unlink()
    return folder


def _remove_beyond(folder: Path, images: int) -> None:
    """Remove files left behind by an unfinished run with a larger number of images."""
    for path in [*folder.glob("images/*.jpg"), *folder.glob("panoptic/*.png")]:
        if path.stem.isdecimal() and int(path.stem) >= images:
            path.unlink()


def _draw_missing(folder: Path, options: SceneOptions, partial: PartialFile, workers: int) -> None:
    jobs = [(str(folder), options, index) for index in range(partial.done, options.images)]
    with ProgressBar(folder, options.images, "scenes", partial.done) as progress:
        for record in _in_order(jobs, min(workers, len(jobs))):
            partial.append(record)
            progress.step()


def _in_order(jobs: Sequence[tuple[str, SceneOptions, int]], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(_draw_one, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw_one, jobs, chunksize=4)


def _draw_one(job: tuple[str, SceneOptions, int]) -> dict[str, Any]:
    """Draw and save a scene, and return its segments for the JSON files."""
    folder, options, index = job
    scene = draw_scene(options.size, choose_pairs(options.pairs, options.held_out_seed), options.seed, index)
    stem = f"{index:06d}"
    Image.fromarray(scene.image).save(Path(folder) / "images" / f"{stem}.jpg", quality=_JPEG_QUALITY)
    rgb = np.zeros((*scene.ids.shape, 3), np.uint8)
    rgb[..., 0] = scene.ids
    Image.fromarray(rgb).save(Path(folder) / "panoptic" / f"{stem}.png")
    segments = []
    for number, what in scene.segments.items():
        ys, xs = np.nonzero(scene.ids == number)
        if len(ys):
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            words = [what.attribute, what.thing] if isinstance(what, Pair) else [what]
            segments.append({"id": number, "words": words, "area": len(ys), "bbox": box})
    return {"scene": index, "segments": segments}


def _document(set_name: str, options: SceneOptions, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the contents of a dataset's COCO-panoptic JSON file."""
    images = [
        {"id": r["scene"], "file_name": f"{r['scene']:06d}.jpg", "width": options.size, "height": options.size}
        for r in records
    ]
    annotations = [
        {
            "image_id": r["scene"],
            "file_name": f"{r['scene']:06d}.png",
            "segments_info": [_segment(set_name, segment) for segment in r["segments"]],
        }
        for r in records
    ]
    return {"images": images, "annotations": annotations, "categories": categories(set_name)}


def _segment(set_name: str, segment: dict[str, Any]) -> dict[str, Any]:
    words = segment["words"]
    names = [name_in(s, Pair(*words)) if len(words) == 2 else stuff_name_in(s, words[0]) for s in SETS]
    own = names[SETS.index(set_name)]
    return {
        "id": segment["id"],
        "category_id": category_ids(set_name)[own],
        "area": segment["area"],
        "bbox": segment["bbox"],
        "iscrowd": 0,
        "names": list(dict.fromkeys(names)),
    }


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm scenes`."""
    defaults = SceneOptions()
    out = CommandParser(
        prog="osm scenes",
        allow_abbrev=False,
        description="Draws scenes with panoptic masks and names, from a random seed.",
    )
    out.add_argument("out", type=Path, help="folder; a split goes to <out>/<split>")
    out.add_argument("--split", default="train", help="name of the folder of this split [train]")
    out.add_argument("--images", type=int, default=defaults.images, help="number of images [%(default)s]")
    out.add_argument("--size", type=int, default=defaults.size, help=f"pixels, {MIN_SIZE}..{MAX_SIZE} [%(default)s]")
    out.add_argument("--seed", type=int, default=defaults.seed, help="random seed [%(default)s]")
    out.add_argument(
        "--pairs", default=defaults.pairs, help="attribute-thing pairs: seen, held_out or all [%(default)s]"
    )
    out.add_argument(
        "--held_out_seed",
        type=int,
        default=defaults.held_out_seed,
        help="random seed of the held-out pairs [%(default)s]",
    )
    out.add_argument("--sets", default=",".join(SETS), help="comma-separated [%(default)s]")
    out.add_argument("--num_workers", type=int, help="processes (default: CPUs); no effect on the output")
    return out


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm scenes` and return the exit code."""
    args = parser().parse_args(argv)
    return run_command(_write, args)


def _write(args: argparse.Namespace) -> None:
    check_here(args.out, "out")
    if not args.split or Path(args.split).name != args.split or args.split in (".", ".."):
        raise OsmError(f"--split {args.split!r} must be a single folder name")
    if args.num_workers is not None and args.num_workers < 1:
        raise OsmError(f"--num_workers {args.num_workers} must be 1 or more")
    sets = tuple(dict.fromkeys(name.strip() for name in args.sets.split(",") if name.strip()))
    options = SceneOptions(args.images, args.size, args.seed, args.pairs, args.held_out_seed, sets)
    echo(write_scenes(args.out / args.split, options, args.num_workers))
