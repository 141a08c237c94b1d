#!/usr/bin/env python3
"""Writes the tables of docs/serving.md from the measured figures in docs/benchmarks/serving.

python3 benchmarks/serve_tables.py docs/benchmarks/serving docs/serving.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from page_tables import read, table, write_tables

MODELS = ("osm_nano", "osm_small")
HEAD = (
    "| model | pictures | clients | requests/s | p50, ms | p95, ms | p99, ms | refused | memory, MiB |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)
BATCHING = (
    "| model | pictures | requests/s with batching | without | gain | p50 with, ms | p50 without, ms |\n"
    "|---|---|---|---|---|---|---|\n"
)
SOAK = ("cache, MiB", "memory after 1,000 requests, MiB", "after 4,000", "after 10,000")
SOAKED = {"128": "soak.json", "512 (default)": "soak_default.json"}  # the cache of each server


def tables(folder: Path) -> dict[str, str]:
    """The tables by their marks in the page."""
    load, batching = HEAD, BATCHING
    for model in MODELS:
        document = read(folder / f"load_{model}.json")
        load += "".join(load_row(model, row) for row in document["load"])
        batching += "".join(batching_row(model, row) for row in document["batching"])
    saturated = read(folder / "saturation.json")
    load += "".join(load_row("osm_nano", row | {"pictures": "shared, `--max_queue 32`"}) for row in saturated["load"])
    faults = read(folder / "faults.json")["faults"]
    rows = "".join(f"| {row['what']} | {row['happened']} |\n" for row in faults)
    return {
        "load": load,
        "batching": batching,
        "soak": table(SOAK, (soak_row(limit, read(folder / name)["soak"]) for limit, name in SOAKED.items())),
        "faults": f"| what is tried | what happens |\n|---|---|\n{rows}",
    }


def load_row(model: str, row: dict[str, Any]) -> str:
    latencies = " | ".join(f"{row[f'p{q}_ms']:,.0f}" for q in (50, 95, 99))
    facts = f"`{model}` | {row['pictures']} | {row['clients']} | {row['requests_per_second']:.2f} | {latencies}"
    return f"| {facts} | {row['refused']:,} | {row['resident_mib']:,.0f} |\n"


def soak_row(limit: str, points: list[dict[str, Any]]) -> tuple[str, ...]:
    found = {point["requests"]: point["resident_mib"] for point in points}
    return limit, *(f"{found[count]:,.0f}" for count in (1000, 4000, 10000))


def batching_row(model: str, row: dict[str, Any]) -> str:
    on, off = row["on"], row["off"]
    speeds = f"{on['requests_per_second']:.2f} | {off['requests_per_second']:.2f} | {row['gain']:.2f}"
    return f"| `{model}` | {row['pictures']} | {speeds} | {on['p50_ms']:,.0f} | {off['p50_ms']:,.0f} |\n"


if __name__ == "__main__":
    sys.exit(write_tables((__doc__ or "").splitlines()[0], tables))
