"""A labeling run that writes parts: plans the partitions, labels those that are left, and counts their rows."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout

from osm.errors import RunStopped
from osm.labeling.corrections import Corrections
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_journal import FOLDER, SETTINGS, check_settings, settings_text
from osm.labeling.label_options import PARTS, LabelOptions
from osm.labeling.label_output import LabelSummary, write_labels
from osm.labeling.label_processes import AGAIN, for_process, run_processes
from osm.labeling.parts.part_journal import PartJournal
from osm.labeling.parts.part_labeler import PartitionResult, PartLabeler, done_counts, result_of
from osm.labeling.parts.part_rows import PartCounts
from osm.labeling.parts.part_store import PartStore
from osm.labeling.parts.partitions import LabelPartition, PartitionPlan, plan_partitions
from osm.quiet import quiet_command
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

MAX_STOPS = 10
"""A run ends if so many partitions in a row fail because a disk or server does."""
_THREADS = 32  # that read the counts of complete partitions


def planned(options: LabelOptions) -> str:
    """Return what a run would label, in one line."""
    options.check()
    plan = plan_partitions(options)
    images = f"{plan.images} images" if plan.images is not None else "the images in them"
    return f"{len(plan.partitions)} partitions, {images}, to {', '.join(options.formats)}: {options.destination}"


def label_parts(options: LabelOptions) -> tuple[LabelSummary, float]:
    """Label images part by part, and write the other formats once all parts are complete.

    Partitions that an earlier run has completed are not labeled again, nor are the complete parts of other partitions.

    Returns:
        what the parts hold, or what was written in the other formats, and the number of images per second, or 0 if a
        part had been labeled before.

    Raises:
        OsmError: an option or a file is invalid, or the folder has labels that were made with other options.
        RunStopped: partitions were not finished.
    """
    options.check()
    plan = plan_partitions(options)
    options.check_same(plan.reader, plan.masks)
    corrections = Corrections.read(options.corrections, "--corrections") if options.corrections is not None else None
    store = PartStore(options.destination)
    _prepare(store, options, plan)
    if corrections is not None:
        PartJournal(options.out).correct(corrections)
    if plan.left_out:
        logger.info(f"{plan.left_out} images with masks are not in the list of images, and are left out")
    share, shares = options.shares()
    own = plan.partitions[share::shares]
    parts = store.names(PARTS)
    before = _done(store, own, parts)
    complete = {number: counts for number, counts in before.items() if not counts.failed}
    left = [partition for partition in own if partition.number not in complete]
    if len(left) < len(own):
        logger.info(f"{len(own) - len(left)} of {len(own)} partitions are complete, and are not labeled again")
    fresh = len(left) == len(own) and not parts
    started = time.monotonic()
    errors = _label(options, plan, left) if left else {}
    seconds = time.monotonic() - started
    done = {**complete, **_done(store, left, store.names(PARTS))}
    unfinished = [one for one in own if one.number not in done or one.number in errors]
    if unfinished:
        first = unfinished[0].number
        reason = errors.get(first, "see the messages of its process")
        raise RunStopped(f"{len(unfinished)} of {len(own)} partitions were not finished; the first: {reason}; {AGAIN}")
    total = PartCounts()
    for counts in done.values():
        total.add(counts)
    speed = (total.images + total.failed) / seconds if fresh and seconds else 0.0
    if [name for name in options.formats if name != PARTS]:
        target = options.target(plan.reader, plan.masks)
        return write_labels(PartJournal(options.out), options.rules, options.out, target), speed
    return _summary(total), speed


def _prepare(store: PartStore, options: LabelOptions, plan: PartitionPlan) -> None:
    """Remove what killed runs left, and check that the folder has no labels that were made with other options."""
    if options.overwrite:
        store.clear(FOLDER)  # first: a partition without its parts must not count as complete
        store.clear(PARTS)
    for folder in (FOLDER, f"{FOLDER}/attempts", f"{FOLDER}/done", PARTS):
        store.remove_abandoned(folder)
    settings = {
        **options.settings(plan.identity),
        "part_images": options.part_images,
        "listed by workers": plan.images is None,
    }
    name = f"{FOLDER}/{SETTINGS}"
    if not check_settings(store.read(name), settings, options.destination):
        store.write(name, settings_text(settings).encode())


def _done(store: PartStore, partitions: Iterable[LabelPartition], parts: list[str]) -> dict[int, PartCounts]:
    """Return the counts of those of the given partitions that are complete, keyed by partition number.

    A partition is complete if it says so, and none of its `parts`, which are the names of all files, is missing.
    """
    files = Counter(name.rpartition("-")[0] for name in parts)
    names = set(store.names(f"{FOLDER}/done"))
    there = [one for one in partitions if one.done_name.rpartition("/")[2] in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda one: done_counts(store, one.done_name), there)
        found = list(zip(there, counts, strict=True))
    return {one.number: value for one, value in found if files[_stem(one)] == value.parts}


def _stem(partition: LabelPartition) -> str:
    return partition.part_name(0).rpartition("/")[2].rpartition("-")[0]


def _label(options: LabelOptions, plan: PartitionPlan, left: list[LabelPartition]) -> dict[int, str]:
    """Label partitions with the chosen engine, and return why some were not finished, by their numbers."""
    if options.engine == "ray":
        from osm.labeling.parts.ray_engine import label_with_ray

        with redirect_stdout(sys.stderr):  # Ray prints messages to standard output, which is for results
            return consume(label_with_ray(options, plan.reader, left), len(left))
    count = min(options.processes, len(left))
    if count == 1:
        return consume(label_here(for_process(options, 0, 1), plan.reader, left), len(left))
    run_processes(_work, [(options, plan.reader, left[k::count], k, count) for k in range(count)])
    return {}


@quiet_command
def _work(
    options: LabelOptions, reader: type[LabelFormat] | None, left: list[LabelPartition], process: int, count: int
) -> int:
    results = label_here(for_process(options, process, count), reader, left)
    consume(results, len(left), shown=process == 0)
    return 0


def label_here(
    options: LabelOptions, reader: type[LabelFormat] | None, left: list[LabelPartition]
) -> Iterator[PartitionResult]:
    """Label partitions in this process."""
    labeler = PartLabeler(options, reader)
    labeler.load_model()  # a model that cannot be loaded ends the run here
    for partition in left:
        yield result_of(labeler, partition)


def consume(results: Iterable[PartitionResult], total: int, shown: bool = True) -> dict[int, str]:
    """Report the results of partitions as they come, and return the errors by the numbers of the partitions.

    Args:
        results: what became of the partitions.
        total: the number of partitions.
        shown: whether the progress is shown.

    Raises:
        RunStopped: a disk or server failed for `MAX_STOPS` partitions in a row.
    """
    errors: dict[int, str] = {}
    stops = 0
    with ProgressBar("labeling", total, "partitions", enabled=shown) as progress:
        for result in results:
            progress.step()
            stops = stops + 1 if result.stopped else 0
            if result.error:
                errors[result.number] = result.error
                logger.warning(f"partition {result.number}: not finished ({result.error})")
            if stops >= MAX_STOPS:
                raise RunStopped(f"{stops} partitions in a row failed; the last: {result.error}; {AGAIN}")
    return errors


def _summary(counts: PartCounts) -> LabelSummary:
    summary = LabelSummary(images=counts.images, masks=counts.named, left_out=Counter(counts.left_out))
    summary.unsure, summary.failed = counts.unsure, dict(counts.failures)
    summary.more_failed = counts.failed - len(counts.failures)
    return summary
