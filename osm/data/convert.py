"""Converts COCO-panoptic and COCO-instances sets to WebDataset shards.

Every sample is checked before it is written: a fault is cheaper to see here than in the middle of a training run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.data.coco_samples import SEED, Built, Item, Source, build, plan
from osm.data.shard_writer import LAYOUTS, SUMMARY, ShardWriter, write_json
from osm.errors import OsmError

CATEGORIES = "categories.json"
_AHEAD = 4  # samples a worker may be ahead of the writer: bounds the memory


class BadSamplesError(OsmError):
    """The run went to its end and wrote its summary, but too many samples were bad."""


@dataclass(frozen=True)
class Options:
    """What both converters take.

    Attributes:
        filter_lvis_val: leave out the COCO train images that are in LVIS val; other sets are not touched.
        num_workers: processes; None for min(8, CPUs). The shards do not depend on it.
        max_bad_samples: the share of bad samples the run may leave out and still succeed. Above 0 one bad sample is
            always allowed, so that a set of ten images does not fail for one; 0 allows none.
    """

    output_dir: str | Path
    layout: str = "webdataset"
    filter_lvis_val: bool = True
    num_files_per_shard: int = 1000
    num_workers: int | None = None
    max_bad_samples: float = 0.01

    def check(self) -> None:
        if self.layout not in LAYOUTS:
            raise OsmError(f"--format {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        if self.num_files_per_shard < 1:
            raise OsmError(f"--num_files_per_shard {self.num_files_per_shard} has to be 1 or more")
        if self.num_workers is not None and self.num_workers < 1:
            raise OsmError(f"--num_workers {self.num_workers} has to be 1 or more")
        if not 0 <= self.max_bad_samples <= 1:
            raise OsmError(f"--max_bad_samples {self.max_bad_samples} is a share: 0 to 1")


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it even where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def leave() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def _build_all(items: Sequence[Item], layout: str, workers: int) -> Iterator[Built]:
    """The samples in the order of the items."""
    if workers == 1 or len(items) < 2:
        yield from (build(item, layout) for item in items)
        return
    waiting: deque[Future[Built]] = deque()
    with ProcessPoolExecutor(min(workers, len(items)), initializer=_start_worker) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(build, item, layout))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise OsmError("a worker process was killed (out of memory?): run again with fewer --num_workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Progress:
    """A line on stderr, once a second and at the end."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.before = total, done, done
        self.began = self.shown = time.monotonic()

    def step(self) -> None:
        self.done += 1
        if time.monotonic() - self.shown >= 1:
            self.show()

    def show(self, end: str = "") -> None:
        self.shown = time.monotonic()
        rate = (self.done - self.before) / max(self.shown - self.began, 1e-6)
        left = round((self.total - self.done) / rate) if rate else 0
        text = (
            f"{self.done}/{self.total} samples, {rate:.1f}/s, ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )
        live = sys.stderr.isatty()
        print(f"\r{text:<60}" if live else text, end=end if live else "\n", file=sys.stderr, flush=True)


def _too_bad(bad: int, written: int, share: float, first: str) -> str:
    """Why the run has failed, or an empty string."""
    allowed = max(1, int(share * (bad + written))) if share > 0 else 0
    if bad > allowed:
        return f"{bad} of {bad + written} samples are bad, --max_bad_samples {share:g} allows {allowed}; {first}"
    return "" if written else "no sample was written"


def _say(kind: str, message: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # of the progress line
    print(f"{clear}{kind}: {message}", file=sys.stderr)


def _fill(writer: ShardWriter, items: Sequence[Item], workers: int) -> None:
    """Writes what is not written yet."""
    start = writer.next_item
    if start:
        _say("resuming", f"{len(writer.sizes)} whole shards in {writer.output_dir} ({start} of {len(items)} samples)")
    progress = _Progress(len(items), start)
    for index, built in enumerate(_build_all(items[start:], writer.arguments["layout"], workers), start):
        if built.reason and writer.leave_out(index, built.reason, built.message):
            _say(f"left out ({built.reason})", built.message)
        for reason, message, count in built.warnings:
            if writer.warn(reason, message, count):
                _say(f"warning ({reason})", message)
        if not built.reason:
            writer.write(index, items[index].key, built.members)
        progress.step()
    progress.show(end="\n")


def _convert(
    form: str, json_file: str | Path, image_dir: str | Path, ann_dir: str | Path | None, options: Options
) -> dict[str, Any]:
    options.check()
    folders = {"image_dir": image_dir, **({} if ann_dir is None else {"ann_dir": ann_dir})}
    for flag, folder in folders.items():
        if not Path(folder).is_dir():
            raise OsmError(f"--{flag} {folder}: there is no such folder")
    source = Source(json_file)
    items, left_out = plan(source, image_dir, ann_dir, options.filter_lvis_val)
    arguments = {
        "form": form,
        "json_file": str(Path(json_file).resolve()),
        "json_sha256": source.sha256,
        **{flag: str(Path(folder).resolve()) for flag, folder in folders.items()},
        "filter_lvis_val": options.filter_lvis_val,
        "seed": SEED,
    }
    with ShardWriter(options.output_dir, options.layout, options.num_files_per_shard, arguments) as writer:

        def verdict() -> str:
            first = next((m for reason in writer.tally.left_out for m in writer.tally.examples[reason]), "")
            bad = sum(writer.tally.left_out.values())
            return _too_bad(bad, writer.tally.written, options.max_bad_samples, f"the first: {first}")

        if writer.finished and verdict():
            writer.start_over()  # the bad files may have been mended since
        write_json(writer.output_dir / CATEGORIES, {"categories": source.document["categories"]})
        _fill(writer, items, options.num_workers or min(8, os.cpu_count() or 1))
        summary = writer.finish(left_out)
        failed = verdict()
    _say("written", f"{summary['written']} samples in {summary['shards']} shards to {options.output_dir}")
    for kind in ("left_out", "warnings"):
        if summary[kind]:
            counts = ", ".join(f"{reason} {count}" for reason, count in summary[kind].items())
            _say(kind.replace("_", " "), counts)
    if failed:
        raise BadSamplesError(f"{failed} (all counts: {Path(options.output_dir) / SUMMARY})")
    return summary


def convert_coco_panoptic(
    json_file: str | Path, image_dir: str | Path, ann_dir: str | Path, options: Options
) -> dict[str, Any]:
    """Converts a set in COCO-panoptic form.

    Args:
        ann_dir: the folder of the panoptic PNGs.

    Returns:
        The summary, as it is in `summary.json`.

    Raises:
        OsmError: an argument or the json is wrong, or the folder holds other shards.
        BadSamplesError: more bad samples than `options.max_bad_samples` allows, or none that is good.
    """
    return _convert("coco_panoptic", json_file, image_dir, ann_dir, options)


def convert_coco_instances(json_file: str | Path, image_dir: str | Path, options: Options) -> dict[str, Any]:
    """Converts a set in COCO-instances form; returns and raises what `convert_coco_panoptic` does."""
    return _convert("coco_instances", json_file, image_dir, None, options)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def _parser(form: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Converts a set in {form} form to WebDataset shards.")
    panoptic, defaults = form == "coco_panoptic", Options("")
    ann_dir_help = "folder of the panoptic PNGs" if panoptic else "accepted, not used"
    parser.add_argument("--output_dir", required=True, help="folder for the shards")
    parser.add_argument("--ann_dir", required=panoptic, help=ann_dir_help)
    parser.add_argument("--image_dir", required=True, help="folder of the images")
    parser.add_argument("--json_file", required=True, help=f"the {form} json")
    parser.add_argument(
        "--filter_lvis_val",
        type=_true_or_false,
        default=defaults.filter_lvis_val,
        metavar="True|False",
        help="leave out the COCO train images that are in LVIS val; other sets are not touched (default True)",
    )
    parser.add_argument("--num_files_per_shard", type=int, default=defaults.num_files_per_shard, help="default 1000")
    parser.add_argument("--format", choices=LAYOUTS, default=defaults.layout, help="default webdataset")
    parser.add_argument("--num_workers", type=int, help="processes (default: min(8, CPUs)); no effect on the shards")
    parser.add_argument(
        "--max_bad_samples",
        type=float,
        default=defaults.max_bad_samples,
        help="share of bad samples from which the run fails (default 0.01; above 0, one is always allowed)",
    )
    return parser


def main(form: str, arguments: Sequence[str] | None = None) -> int:
    """The command line of `form`; returns the exit code: 1 for too many bad samples, 2 for a mistake in the call."""
    args = _parser(form).parse_args(arguments)
    options = Options(
        output_dir=args.output_dir,
        layout=args.format,
        filter_lvis_val=args.filter_lvis_val,
        num_files_per_shard=args.num_files_per_shard,
        num_workers=args.num_workers,
        max_bad_samples=args.max_bad_samples,
    )
    try:
        if form == "coco_panoptic":
            convert_coco_panoptic(args.json_file, args.image_dir, args.ann_dir, options)
        else:
            convert_coco_instances(args.json_file, args.image_dir, options)
    except (OsmError, OSError) as error:
        _say("error", " ".join(str(error).split()))
        return 1 if isinstance(error, BadSamplesError) else 2
    except KeyboardInterrupt:
        _say("stopped", "the same command goes on after the last whole shard")
        return 130
    return 0
