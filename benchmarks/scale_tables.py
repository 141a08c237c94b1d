#!/usr/bin/env python3
"""Writes the tables of docs/scaling.md from the figures in docs/benchmarks/scale.

python3 benchmarks/scale_tables.py docs/benchmarks/scale docs/scaling.md
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from page_tables import paragraph, read, table, write_tables

STEPS = ("read", "decode", "masks", "tower", "names", "write")


def tables(folder: Path) -> dict[str, str]:
    """The tables by their marks in the page."""
    ray = read(folder / "ray_osm_nano.json")
    costs = [read(folder / f"costs_{name}.json") for name in ("osm_nano", "osm_small")]
    simulation = read(folder / "simulation.json")
    simulated = simulation["cases"]
    return {
        "overhead": overhead(ray["overhead"], ray["pictures"]),
        "shares": shares(costs[1], ray["overhead"]),
        "simulated": compared(simulation["check"]),
        "runs": table(("run", "seconds", "rows", "rows twice", "equal to the local run"), runs(ray)),
        "memory": table(("process", "peak, MiB", "second quarter, MiB", "last quarter, MiB"), memory(ray)),
        "costs": table(
            ("model", *(f"{step}, ms" for step in STEPS), "picture, KB", "row, bytes"), map(cost_row, costs)
        ),
        "clusters": table(
            ("cluster", "times of the model", "pictures/s", "CPU", "GPU", "storage", "of the time fetching"),
            map(cluster_row, simulated),
        ),
        "plans": table(
            (
                "cluster",
                "pictures",
                "hours",
                "GPU hours",
                "core hours",
                "read, TB",
                "written, GB",
                "GET, HEAD",
                "PUT, LIST",
                "files",
                "node failures",
                "labeled again",
            ),
            plan_rows(simulated),
        ),
    }


def runs(ray: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    def row(title: str, run: dict[str, Any], key: str = "byte_identical") -> tuple[str, ...]:
        equal = {True: "yes", False: "no"}.get(run.get(key), "")
        return title, f"{run['seconds']:.0f}", f"{run['rows']:,}", str(run["twice"]), equal

    yield row("without Ray", ray["local"])
    for workers, run in ray["workers"].items():
        yield row(f"Ray, {workers} worker{'s' if workers != '1' else ''}", run)
    kills = ray["kills"]
    yield row(f"Ray, 2 workers, one killed after {kills['worker']['killed_after_parts']} parts", kills["worker"])
    yield row(f"driver killed after {kills['driver']['parts_when_killed']} parts, then resumed", kills["resumed"])
    yield row("`s3://` to `s3://`, 2 workers", ray["s3"]["whole"], "equal_rows")
    yield row("`s3://` to `s3://`, driver killed and resumed", ray["s3"]["resumed"], "equal_rows")


def memory(ray: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for title, run, kind in (
        ("`osm label` without Ray", ray["local"], "driver"),
        ("driver, Ray with 2 workers", ray["workers"]["2"], "driver"),
        ("worker, Ray with 2 workers", ray["workers"]["2"], "worker"),
        ("the larger of Ray's own processes", ray["workers"]["2"], "ray_services"),
    ):
        found = run["memory"][kind]
        yield (title, *(f"{found[name]:,}" for name in ("peak_mib", "second_quarter_mib", "last_quarter_mib")))


def overhead(found: dict[str, Any], pictures: int) -> str:
    """What Ray costs, from runs without and with it that took turns."""
    steady = found["ms_per_picture_between_parts"]
    pairs = [b - a for a, b in zip(steady["local"], steady["ray"], strict=True)]
    *first, last = (f"{one:.1f}" for one in pairs)
    return paragraph(
        f"Ray needs {found['median_extra_seconds']:.1f} s more (median of {len(pairs)} pairs), which is",
        f"{found['median_extra_ms_per_picture']:.1f} ms for each of the {pictures:,} pictures. Almost all of it is the",
        "start of Ray, and importing torch again in the worker. From the first to the last part, a picture takes",
        f"{statistics.median(steady['local']):.1f} ms without Ray, and",
        f"{found['median_extra_ms_per_picture_between_parts']:.1f} ms more with Ray (the pairs: {', '.join(first)} and",
        f"{last} ms).",
    )


def shares(costs: dict[str, Any], found: dict[str, Any]) -> str:
    """How much of a picture's time the model takes."""
    means = {step: costs["ms"][step]["mean"] for step in STEPS}
    total = sum(means.values())
    return paragraph(
        f"With `{costs['model']}`, {(means['tower'] + means['names']) / total:.0%} of the time is the model's, and",
        f"{means['tower'] / total:.0%} the tower's. Between two parts, Ray adds",
        f"{found['median_extra_ms_per_picture_between_parts']:.1f} ms to a picture. Decoding takes",
        f"{means['decode']:.1f} ms.",
    )


def compared(check: dict[str, Any]) -> str:
    """The simulation beside a measurement."""
    more = check["simulated_ms"] / check["measured_ms"] - 1
    return paragraph(
        f"The simulation of one process with `{check['model']}` gives {check['simulated_ms']:.1f} ms for a picture,",
        f"{more:.0%} more than the measured {check['measured_ms']:.1f} ms.",
    )


def cost_row(costs: dict[str, Any]) -> tuple[str, ...]:
    steps = (f"{costs['ms'][step]['mean']:.2f}" for step in STEPS)
    return f"`{costs['model']}`", *steps, f"{costs['image_bytes'] / 1000:.0f}", str(costs["row_bytes"])


def cluster_row(case: dict[str, Any]) -> tuple[str, ...]:
    used = case["utilization"]
    shares = (f"{used[name]:.0%}" if name in used else "" for name in ("cpu", "gpu", "storage"))
    kind = case["service"]["source"].partition(":")[0]
    return case["case"], kind, f"{case['images_per_second']:,.1f}", *shares, f"{case['share_of_time_fetching']:.1%}"


def plan_rows(cases: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for case in cases:
        if case["cluster"]["nodes"] < 8 or "storage of" in case["case"] or "with 8 cores" in case["case"]:
            continue
        for plan in case["plans"]:
            hours = (f"{plan['hours']:,.0f}", f"{plan['gpu_hours'] or 0:,}", f"{plan['core_hours']:,}")
            sizes = (f"{plan['read_tb']:,.1f}", f"{plan['written_gb']:,.0f}")
            requests = (f"{plan['get_and_head_requests']:,}", f"{plan['put_and_list_requests']:,}")
            more = (f"{plan['files']:,}", f"{plan['failures']:,.0f}", f"{plan['pictures_labeled_again']:,}")
            yield case["case"], f"{plan['pictures'] // 1_000_000:,} million", *hours, *sizes, *requests, *more


if __name__ == "__main__":
    sys.exit(write_tables((__doc__ or "").splitlines()[0], tables))
