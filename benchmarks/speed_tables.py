#!/usr/bin/env python3
"""Writes the speed figures of the documentation from the measured values in docs/benchmarks.

python3 benchmarks/speed_tables.py docs/benchmarks docs

Each block lies between `<!-- mark -->` and `<!-- end of mark -->` in its page. The raw values are the JSON documents
that the benchmarks print. `benchmarks/all.sh` runs these benchmarks again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from page_tables import paragraph, read, table, write_pages

FORMS = {"coco": "COCO form", "lvis": "LVIS form", "a847": "semantic"}
STEP_PARTS = {
    "tower": ("tower",),
    "bridge": ("bridge",),
    "LLM": ("llm",),
    "backward": ("backward",),
    "clip, AdamW": ("optimizer",),
    "pixels, masks, other": ("pixels", "masks", "copy", "other"),
}
# These parts of a step are left out when the tokens of the tower come from the feature cache.
CACHED = ("pixels", "tower")
START = {
    "python": "Python",
    "imports": "importing torch and the recognizer",
    "model": "importing timm and transformers, loading the model",
    "image": "encoding the image",
    "name": "naming the box",
}
ONLY_FULL = ("before training", "wrong masks", "grey images")
WAYS = {"everything": "all segments", "segmented and encoded": "all segments and encoding for naming"}
WAYS |= {"point": "the mask of a click", "box": "the mask of a box", "box, GrabCut": "the mask of a box by GrabCut"}


def training(figures: Path) -> dict[str, str]:
    """The blocks of docs/training.md."""
    loader = read(figures / "loader" / "loader.json")
    head = ("images", "shards", "this project", "with Pillow alone", "a loop like the published loader", "ratio")
    more = ("a loop with one polygon mask per sample", "ratio", "decode / resize / mask in this project, ms")
    parts = ("masks per image", "names/s", "step, s", "slowest step, s", *STEP_PARTS, "names/s without the tower")
    cpu = {path: read(path) for path in sorted((figures / "train_step").glob("*_cpu.json"))}
    gpu = read(figures / "train_step" / "osm_flamingo_h200.json")
    columns = ("masks per image", "compiled", "names/s", "MFU", "names/s at the GPU's peak", "peak memory, GiB")
    return {
        "loader": table((*head, *more), loader_rows(loader["cases"])),
        "shard_reading": reading(read(figures / "loader" / "reading.json")),
        "train_step": table(
            ("model", *parts), (row for path, document in cpu.items() for row in cpu_steps(title(path), document))
        )
        + "\n"
        + paragraph(*(settings(title(path), document) for path, document in cpu.items())),
        "train_step_gpu": table(columns, map(gpu_step, gpu["cases"])),
    }


def title(path: Path) -> str:
    """The model of a file, as in `osm_small_cpu.json`, or `osm_small_cached_cpu.json` for a run with the cache."""
    name = path.stem.removesuffix("_cpu")
    model = f"`{name.removesuffix('_cached')}`"
    return f"{model} with `--feature_cache`" if name.endswith("_cached") else model


def loader_rows(cases: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """One row for each size and form, with its layouts beside each other."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["size"], case["set"]), []).append(case)
    for (size, name), layouts in groups.items():
        # The layout of the package webdataset is the one that the page calls plain.
        named = [case["layout"].replace("webdataset", "plain") for case in layouts]

        def both(kind: str, loop: str, digits: int, layouts: list[dict[str, Any]] = layouts) -> str:
            return " / ".join(f"{case[kind][loop]:.{digits}f}" for case in layouts if loop in case[kind])

        rates = tuple(both("samples_per_second", loop, 0) for loop in ("ours", "ours_with_pillow", "published"))
        one_mask = (both("samples_per_second", "published_with_one_mask", 0),)
        one_mask += (both("times_faster", "published_with_one_mask", 1),)
        stages = " / ".join(f"{layouts[0]['ms']['ours'][stage]:.1f}" for stage in ("decode", "resize", "mask"))
        shards = f"{FORMS.get(name, name)}, {' / '.join(named)}"
        faster = both("times_faster", "published", 1)
        yield size.replace("x", " x "), shards, *rates, faster, *one_mask, f"{stages} ({named[0]})"


def reading(found: dict[str, Any]) -> str:
    """What each sample stream reads of its shards."""

    def megabytes(name: str) -> str:
        values = [value / 1e6 for value in found["bytes_of_each_lane"][name]]
        return f"{min(values):.1f} to {max(values):.1f} MB"

    wall, read_files = found["speed"]["wall"], found["bytes_of_each_lane"]
    lanes = len(read_files["files"])
    # An older checkout has no index. It is measured only if one is given.
    before = ""
    if "files, before" in read_files:
        before = f"Without an index, each of the streams read {megabytes('files, before')} per pass over the samples. "
    return paragraph(
        f"The benchmark used {lanes} sample streams, and shards totaling {found['bytes_of_all_shards'] / 1e6:.1f} MB.",
        f"{before}With an index, each of the streams read {megabytes('files')} per pass, including the library files",
        "that its process loaded.",
        "With `--shard_cache`, a server on the loopback interface sent only",
        f"{found['bytes_sent_to_all_lanes']['cache'] / 1e6:.1f} MB in total to all streams. Reading a sample from the",
        f"shard cache took {wall['cached_over_local']:.2f} times as long as reading it from local shards (median of",
        f"{found['rounds']} alternating runs, quartiles {wall['quartiles'][0]:.2f} and {wall['quartiles'][1]:.2f}).",
    )


def cpu_steps(model: str, document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for case in document["cases"]:
        seconds, shares, rows = case["part_seconds"], case["shares"], case["names_per_step"]
        without = rows / (case["step_seconds"] - sum(seconds.get(part, 0.0) for part in CACHED))
        times = (
            f"{case['names_per_second']:.1f}",
            f"{case['step_seconds']:.1f}",
            f"{case['step_seconds_seen'][1]:.1f}",
        )
        percent = (f"{sum(shares.get(part, 0.0) for part in of_it):.0%}" for of_it in STEP_PARTS.values())
        yield model, str(case["masks_per_image"]), *times, *percent, f"{without:.1f}"


def settings(model: str, document: dict[str, Any]) -> str:
    """How the steps of a model were measured."""
    threads = f"{document['threads']} thread{'s' if document['threads'] > 1 else ''}"
    return (
        f"{model}: {document['precision']}, {document['images_per_step']} images per step, {threads}, best of "
        f"{document['rounds']} rounds, torch {document['torch'].partition('+')[0]}."
    )


def gpu_step(case: dict[str, Any]) -> tuple[str, ...]:
    compiled = {"on": "yes", "off": "no"}[case["compile"]]
    speed = f"{case['names_per_second']:.1f}"
    peak = f"{case['floor']['names_per_second']:.0f}"
    return str(case["masks_per_image"]), compiled, speed, f"{case['mfu']:.0%}", peak, f"{case['peak_memory_gib']:.1f}"


def recognition(figures: Path) -> dict[str, str]:
    """The blocks of docs/recognition.md."""
    random = "random weights: published Q-Former at 1120, 135M-class LLM, a tower without cost"
    found = {random: read(figures / "recognition" / "random_cpu.json")}
    for path in sorted((figures / "recognition").glob("*_cpu.json")):
        if path.stem != "random_cpu":
            found[f"{title(path)} with an untrained bridge"] = read(path)
    floor = ("model", "masks", "TFLOP", "at the speed of a large matrix product, s", "measured, s", "share")
    many = ("model", "masks", "seconds", "names/s", "memory of 32 masks, GiB", "more with all masks, GiB")
    return {
        "speed": table(("model", "masks", "here", "published procedure", "speedup"), speed_rows(found)),
        "floor": table(floor, (floor_row(model, document) for model, document in found.items())),
        "many": table(many, (many_row(model, one["many"]) for model, one in found.items() if "many" in one)),
        "start": table(("part", "median, s", "lowest to highest, s"), start_rows(figures)),
        "trained": table(
            ("masks", "names/s", "of the previous version", "without the faster layers", "share"),
            trained_rows(read(figures / "recognition" / "checkpoint_speed.json")),
        ),
    }


def trained_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for case in found["cases"]:
        speeds = (f"{case['names_per_second'][key]:.1f}" for key in ("now", "earlier", "slow"))
        yield str(case["masks"]), *speeds, f"{case['share_of_plain_peak']['now']:.0%}"


def speed_rows(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for model, document in found.items():
        for number, case in enumerate(document["cases"]):
            rates = case["names_per_second"]
            speeds = (f"{rates['ours']:.2f}", f"{rates['published']:.2f}", f"{case['times_faster']:.1f}")
            yield "" if number else model, str(case["masks"]), *speeds


def floor_row(model: str, document: dict[str, Any]) -> tuple[str, ...]:
    floor = document["floor"]
    measured = next(case["seconds"]["ours"] for case in document["cases"] if case["masks"] == floor["masks"])
    seconds = max(floor["floor_seconds"].values())
    share = f"{floor['share_reached']:.0%}"
    return model, str(floor["masks"]), f"{floor['gflop'] / 1000:.2f}", f"{seconds:.1f}", f"{measured:.1f}", share


def many_row(model: str, many: dict[str, Any]) -> tuple[str, ...]:
    memory = (f"{many['gib'][name]:.1f}" for name in ("with_32_masks", "more_with_all"))
    return model, str(many["masks"]), f"{many['seconds']:.0f}", f"{many['names_per_second']:.1f}", *memory


def start_rows(figures: Path) -> Iterator[tuple[str, ...]]:
    seconds = read(figures / "startup" / "loading.json")["seconds"]["here"]
    named = {f"part: {part}": title for part, title in START.items()}
    named |= {"osm name --box": "`osm name` in total, including startup and exit"}
    for key, part in named.items():
        values = seconds[key]
        yield part, f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"


BRIDGES = {"osm_small_queries_cpu": "osm-small-queries", "osm_flamingo_small": "osm-flamingo-small"}
"""The names in docs/benchmarks/recognition of the models whose bridges docs/results.md compares."""


def results(figures: Path) -> dict[str, str]:
    """The blocks of docs/results.md."""
    queries, flamingo = (logged(figures / name / "log.jsonl") for name in ("osm_small", "osm_flamingo_small"))
    document = read(figures / "vocabularies" / "osm_small_queries.json")
    head = ("dataset", "names in the list", "way", "own mode Acc", "`any` Acc", "own NIV", "seconds")
    return {
        "training_time": paragraph(
            f"Training took {queries['steps']} steps and {queries['seconds'] / 3600:.2f} hours, with",
            f"{queries['names']:,} (mask, name) examples in total.",
        ),
        "training_times": paragraph(
            f"In training, osm-small-queries took {queries['seconds'] / queries['names']:.3f} s per name, and",
            f"osm-flamingo-small {flamingo['seconds'] / flamingo['names']:.3f} s.",
        ),
        "lists": table(head, list_rows(document["cases"])),
        "bridges": table(("names/s, 2 modes of one image", *BRIDGES.values()), bridge_rows(figures)),
    }


def bridge_rows(figures: Path) -> Iterator[tuple[str, ...]]:
    found = [read(figures / "recognition" / f"{name}.json")["cases"] for name in BRIDGES]
    for masks in (8, 32):
        rates = [next(one for one in cases if one["masks"] == masks)["names_per_second"]["ours"] for cases in found]
        yield f"{masks} masks", *(f"{rate:.1f}" for rate in rates)


def logged(path: Path) -> dict[str, Any]:
    """The steps, names and seconds of a training run, from the speed of each part of its log."""
    seconds, names, steps = 0.0, 0, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "names_per_second" in record:
            seconds += (record["names"] - names) / record["names_per_second"]
            names, steps = record["names"], record["step"]
    return {"steps": steps, "names": names, "seconds": seconds}


def list_rows(cases: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    last = ""
    for case in cases:
        name = (case["set"], str(case["list"])) if case["set"] != last else ("", "")
        last = case["set"]
        own = case["not_in_vocabulary"]["own"]
        rates = (f"{100 * case['accuracy']['own']:.1f}", f"{100 * case['accuracy']['any']:.1f}")
        yield *name, case["way"], *rates, f"{100 * own:.1f}" if own else "0", f"{case['seconds']:.0f}"


def quickstart(figures: Path) -> dict[str, str]:
    """The blocks of docs/quickstart.md."""
    seconds = read(figures / "osm_nano" / "stages_42.json")["seconds"]
    before = read(figures / "osm_nano_queries" / "stages_42.json")
    rows = [(name + (" (only with `--full`)" if name in ONLY_FULL else ""), took) for name, took in seconds.items()]
    always = sum(took for name, took in seconds.items() if name not in ONLY_FULL)
    rows += [("all without `--full`", always), ("all", sum(seconds.values()))]
    return {
        "stages": table(("stage", "seconds (seed 42)"), ((name, f"{took:.0f}") for name, took in rows)),
        "queries_time": paragraph(
            f"It was trained for {before['options']['epochs']} epochs, which took {before['seconds']['training']:.0f}",
            "seconds.",
        ),
    }


def flamingo(figures: Path) -> dict[str, str]:
    """The blocks of docs/flamingo.md."""
    runs = ("osm_flamingo_nano/stages_42", "osm_flamingo_nano/stages_43", "osm_nano_queries/stages_42")
    first, second, queries = (f"{read(figures / f'{run}.json')['seconds']['training']:.0f}" for run in runs)
    return {
        "training_times": paragraph(
            f"The two training runs of `osm_flamingo_nano` took {first} and {second} seconds, and training",
            f"`osm_nano_queries` with seed 42 took {queries} seconds.",
        )
    }


def labeling(figures: Path) -> dict[str, str]:
    """The blocks of docs/labeling.md."""
    found = [read(figures / "labeling" / f"{name}.json") for name in ("osm_nano", "osm_small")]
    of_each = ("{}, s", "masks/s", "memory, MiB")
    head = ("model", "photos", "masks", *(part.format("`osm label`") for part in of_each))
    head += ("images/s while naming", *(part.format("`generate_pred.py`") for part in of_each))
    head += ("equal after two kills",)
    return {"series": table(head, map(series_row, found))}


def series_row(run: dict[str, Any]) -> tuple[str, ...]:
    label, generate = (
        (f"{command['seconds']:.0f}", f"{command['masks_per_second']:.0f}", f"{command['peak_mib']:,}")
        for command in (run["label"], run["generate"])
    )
    # `osm label` prints its own speed, which excludes loading, tracing and writing.
    naming = run["label"]["said"].rpartition("(")[2].removesuffix(" images/s)")
    equal = "yes" if run["byte_identical"] else "no"
    return f"`{run['model']}`", f"{run['pictures']:,}", f"{run['masks']:,}", *label, naming, *generate, equal


def demos(figures: Path) -> dict[str, str]:
    """The blocks of docs/demos.md."""
    seconds = read(figures / "segmenters" / "embedded_coco_panoptic.json")["now"]["median_seconds"]
    rows = ((WAYS[name], f"{1000 * took:,.0f}") for name, took in seconds.items())
    return {"segmenting": table(("step", "median, ms"), rows)}


def finetuning(figures: Path) -> dict[str, str]:
    """The blocks of docs/finetuning.md."""
    found = read(figures / "finetune" / "finetune.json")
    stages = found["stages"]["seconds"]
    return {
        "duration": paragraph(
            f"On {found['cores']} CPU cores, the command took {found['minutes']:.1f} minutes, of which training took",
            f"{stages['training'] / 60:.1f}.",
        )
    }


def long_runs(figures: Path) -> dict[str, str]:
    """The blocks of docs/long_runs.md."""
    smoke = read(figures / "gpu_smoke" / "h200.json")
    memory = read(figures / "reliability" / "fsdp_memory.json")
    one, first, second = (memory[name]["peak"] / 1024 for name in ("one.0", "two.0", "two.1"))
    return {
        "gpu_smoke": paragraph(
            f"All {len(smoke['cases'])} cases of `scripts/gpu_smoke.py` passed on an {smoke['device']} in",
            f"{smoke['seconds'] / 60:.1f} minutes ([values](benchmarks/gpu_smoke/h200.json)).",
        ),
        "fsdp_memory": paragraph(
            f"Without FSDP, a single process peaked at {one:.1f} GiB of memory. With `--fsdp` on two processes, the",
            f"process that reads the model files peaked at {first:.1f} GiB, and the second one at {second:.1f} GiB,",
            f"which is {memory['share_of_peak']:.0%} of the peak without FSDP. Python and its libraries account for",
            f"{memory['two.1']['imports'] / 1024:.1f} GiB of the second process's {second:.1f} GiB.",
        ),
    }


def experiments(figures: Path) -> dict[str, str]:
    """The blocks of docs/experiments.md."""
    naming, packed = (read(figures / "recognition" / f"fast_paired{which}.json")["models"] for which in ("", "_amd"))
    training = read(figures / "train_step" / "packed.json")
    head = ("model", "masks", "names/s before", "after", "gain", "other names", "largest difference of a probability")
    peaks = ("share of a large matrix product's speed before", "after")
    steps = ("masks per image", "names/s with the published prompts", "before", "after", "gain", "gain in total")
    return {
        "fast_naming": table((*head, *peaks), paired_rows(naming)),
        "packed_naming": table((*head, *peaks), paired_rows(packed)),
        "once_per_image": table(
            ("work done once per image", "seconds before", "after", "gain"),
            once_rows(read(figures / "recognition" / "once_per_image.json")),
        ),
        "zoom_windows": table(
            ("masks", "part", "seconds before", "after", "gain"),
            zoom_rows(read(figures / "recognition" / "zoom_windows.json")),
        ),
        "packed_training": table(
            steps,
            (
                (
                    str(case["masks_per_image"]),
                    *(f"{case['names_per_second'][key]:.1f}" for key in ("published_prompts", "before", "after")),
                    *(f"{case[key]:.2f}" for key in ("gain", "gain_in_total")),
                )
                for case in training["cases"]
            ),
        ),
    }


def once_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for case in (*found["mean"], *found["decoding"]):
        if "model" in case:
            what = f"the mean of the tokens, `{case['model']}`, bridge alone, {case['batches']} batches"
        else:
            namer = "no model" if case["namer"] == "none" else f"`{case['namer']}`"
            size = f"{case['photos']} photos of {case['megapixels']:.0f} megapixels"
            what = f"decoding, {namer}, {size} with {case['masks_per_photo']} masks each"
        seconds = (f"{case['median_seconds'][key]:.3f}" for key in ("before", "after"))
        yield what, *seconds, f"{case['gain']:.2f}"


def zoom_rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    titles = {"resizing": "resizing", "tower": "the tower on the windows", "naming": "naming in two modes, in total"}
    for case in found["cases"]:
        for number, (part, title) in enumerate(titles.items()):
            taken = case["parts"][part]
            seconds = (f"{taken['median_seconds'][key]:.3f}" for key in ("before", "after"))
            yield "" if number else str(case["masks"]), title, *seconds, f"{taken['gain']:.2f}"


def paired_rows(naming: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for model, cases in naming.items():
        for number, case in enumerate(cases):
            rates, shares = case["names_per_second"], case["share_of_plain_peak"]
            yield (
                "" if number else model if model == "random" else f"`{model}`",
                str(case["masks"]),
                *(f"{rates[key]:.2f}" for key in ("before", "after")),
                f"{case['gain']:.2f}",
                str(case["other_names"]),
                f"{case['probabilities_apart']:.0e}",
                *(f"{shares[key]:.0%}" for key in ("before", "after")),
            )


PAGES: dict[str, Callable[[Path], dict[str, str]]] = {
    "training.md": training,
    "recognition.md": recognition,
    "results.md": results,
    "quickstart.md": quickstart,
    "flamingo.md": flamingo,
    "labeling.md": labeling,
    "demos.md": demos,
    "finetuning.md": finetuning,
    "long_runs.md": long_runs,
    "experiments.md": experiments,
}
"""The pages in docs/, and the function that makes the blocks of each."""


if __name__ == "__main__":
    sys.exit(write_pages((__doc__ or "").splitlines()[0], PAGES))
