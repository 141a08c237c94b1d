#!/usr/bin/env python3
"""Plans the published training and the nine recipes with `osm plan`, and writes the tables of the docs.

python3 benchmarks/plan_tables.py            # plans everything (a few minutes), and writes the tables
python3 benchmarks/plan_tables.py --tables   # writes the tables from the JSON files alone
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "benchmarks" / "plan"
RECIPES_PAGE, CHECK_PAGE = "docs/recipes.md", "docs/planning.md"
# Batch size, images per epoch, and number of shards in the published commands.
SIX = {
    "coco": (8, 100_000, 107),
    "lvis": (16, 200_000, 100),
    "a847": (4, 50_000, 26),
    "pc459": (2, 25_000, 5),
    "ade20k": (4, 50_000, 21),
    "cityscapes": (2, 25_000, 3),
}
NINE = {**SIX, "v3det": (16, 200_000, 184), "partimagenet": (4, 50_000, 21), "pascal_part": (2, 25_000, 9)}
TRAINING = "--dataset_resampled --workers 4 --num_epochs 10 --precision amp_bfloat16 --gradient_accumulation_steps 4"
MACHINES = {
    "8 x 80 GB": "--gpus 8 --gpu A100",
    "8 x 40 GB": "--gpus 8 --gpu A100 --gpu_memory 40",
    "4 x 24 GB": "--gpus 4 --gpu RTX4090",
}
RECIPE_MACHINES = {"24gb": "--gpu RTX4090", "80gb": "--gpu A100", "8x80gb": "--gpus 8 --gpu A100"}
TOWERS = ("siglip2", "dinov3", "pe")


def mix(sets: dict[str, tuple[int, int, int]]) -> str:
    """Return the flags of a training mix. The shards need not exist."""
    flags = [
        f"--batch_size_{name} {size} --train_num_samples_{name} {count} "
        f"--{name}_shards '{name}/{{0..{shards - 1}}}.tar'"
        for name, (size, count, shards) in sets.items()
    ]
    return " ".join(flags)


def commands() -> dict[str, str]:
    """Return the arguments of `osm plan` for each row of the tables."""
    found = {}
    for title, sets in (("six datasets", SIX), ("nine datasets", NINE)):
        for machine, flags in MACHINES.items():
            found[f"{title}, {machine}"] = f"osm {flags} --hours 48 {TRAINING} {mix(sets)}"
    for tower in TOWERS:
        for size, flags in RECIPE_MACHINES.items():
            found[f"osm_{tower}_{size}"] = f"osm_{tower}_{size} {flags}"
    return found


def plan(arguments: str) -> dict[str, Any]:
    """Run `osm plan` and return its JSON document, with the command and the seconds that it took."""
    command = [sys.executable, "-m", "osm", "plan", *shlex.split(arguments), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"osm plan {arguments}\n{done.stderr}")
    return {
        "command": f"osm plan {arguments}",
        "seconds": round(time.perf_counter() - started, 1),
        **json.loads(done.stdout),
    }


def stored_tables() -> dict[str, dict[str, list[str]]]:
    """Return the lines of each table from the JSON files: page -> name of its place on the page -> lines."""
    plans = json.loads((FIGURES / "plans.json").read_text(encoding="utf-8"))
    check = json.loads((FIGURES / "cpu.json").read_text(encoding="utf-8"))
    tables = {
        "published": published_table(plans),
        "datasets": datasets_table(plans["nine datasets, 8 x 80 GB"]["training"]),
        "recipes": recipes_table(plans),
    }
    return {RECIPES_PAGE: tables, CHECK_PAGE: {"check": check_table(check)}}


def check_table(found: dict[str, Any]) -> list[str]:
    rows = ["| model and step | weights, GB | estimated, GB | measured, GB | error |", "|---|---|---|---|---|"]
    for case in found["cases"]:
        rows.append(
            f"| `{case['case']}` | {case['weights_gb']:.2f} | {case['estimated_gb']:.2f} | {case['measured_gb']:.2f} | "
            f"{case['error']:+.1%} |"
        )
    return rows


def published_table(plans: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        "| training | GPUs | images per micro-batch | peak, GiB | usable, GiB | fits | hours at 35% MFU |"
        " MFU of 48 hours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in plans.items():
        if name.startswith("osm_"):
            continue
        training = found["training"]
        title, machine = name.split(", ")
        rows.append(
            f"| {title} | {machine} | {training['images']} | {gib(training['memory']['peak'])} | "
            f"{gib(training['memory']['usable'])} | {fits(training)} | {training['hours']:.0f} | "
            f"{format(training['implied_mfu'], '.0%') if machine == '8 x 80 GB' else ''} |"
        )
    return rows


def datasets_table(training: dict[str, Any]) -> list[str]:
    """Return the share of each dataset in the training on nine datasets: a dataset's hours follow from its images."""
    rows = ["| dataset | images per epoch | shards | disk, GB | hours of 8 x 80 GB |", "|---|---|---|---|---|"]
    images = sum(count for _, count, _ in NINE.values())
    for name, (_, count, shards) in NINE.items():
        disk, hours = training["shard_bytes"][name] / 1e9, training["hours"] * count / images
        rows.append(f"| {name} | {count:,} | {shards} | {disk:.0f} | {hours:.1f} |")
    total = sum(training["shard_bytes"].values()) / 1e9
    shards = sum(shards for _, _, shards in NINE.values())
    rows.append(f"| all | {images:,} | {shards} | {total:.0f} | {training['hours']:.1f} |")
    return rows


def fits(training: dict[str, Any]) -> str:
    """Say whether a run fits, and by which flags it would."""
    if training["fits"]:
        return "yes"
    found = next((tried for tried in training["tried"] if tried["fits"]), None)
    if found is None:
        least = min(training["tried"], key=lambda tried: tried["peak"])
        return f"no; at least {gib(least['peak'])} GiB"
    words = found["flags"].split()
    short = [word for word in words if word.startswith("--") and not word.startswith("--batch_size")]
    steps = [words[k + 1] for k, word in enumerate(words) if word == "--gradient_accumulation_steps"]
    flags = [f"`{word} {steps[0]}`" if word == "--gradient_accumulation_steps" else f"`{word}`" for word in short]
    smaller = "smaller batches, " if steps else ""
    return f"with {smaller}{', '.join(flags)}: {gib(found['peak'])} GiB"


def recipes_table(plans: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        "| config | parameters: tower, trained, LLM | TFLOP an image: tower, all | peak, GiB | steps |"
        " hours at 35% MFU | names/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in plans.items():
        if not name.startswith("osm_"):
            continue
        training, naming = found["training"], found["naming"]
        sizes, images = training["parameters"], training["images"]
        parts = ", ".join(millions(sizes[part]) for part in ("tower", "trained", "llm"))
        tower, total = training["flops"]["tower"] / images / 1e12, sum(training["flops"].values()) / images / 1e12
        rows.append(
            f"| `{name}` | {parts} | {tower:.1f}, {total:.1f} | {gib(training['memory']['peak'])} of "
            f"{gib(training['memory']['usable'])} | {training['steps']} | {training['hours']:.0f} | "
            f"{naming['names_per_second']:.0f} |"
        )
    return rows


def gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


def millions(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def with_tables(page: str, found: dict[str, list[str]]) -> str:
    """Return a page with the lines between its markers replaced by the tables."""
    for name, lines in found.items():
        begin, end = f"<!-- begin {name} -->\n", f"\n<!-- end {name} -->"
        before, rest = page.split(begin)
        page = before + begin + "\n".join(lines) + end + rest.split(end.lstrip())[1]
    return page


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--tables", action="store_true", help="write the tables from the JSON file alone")
    args = out.parse_args()
    if not args.tables:
        plans = {}
        for name, arguments in commands().items():
            plans[name] = plan(arguments)
            print(f"{name}: {plans[name]['seconds']} s", flush=True)
        FIGURES.mkdir(parents=True, exist_ok=True)
        (FIGURES / "plans.json").write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    for page, lines in stored_tables().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(with_tables(text, lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
