#!/usr/bin/env python3
"""Tests which families of LLMs work with the bridges. A tiny random LLM of each is built, trained, decoded and saved.

    python3 benchmarks/families.py                              # all; an interrupted run is resumed
    python3 benchmarks/families.py --only llama,mamba --again

Each family runs in a process of its own for at most `--timeout` seconds, and its result is written to `--output` at
once. The section of docs/families.md is updated if `--output` is not given. `--table` names another page to update.
With `--only ''`, no family runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from families_table import OUTPUT, PAGE, read_outcomes, write_outcomes, write_section  # noqa: E402

LLM_INPUTS = ("maskqformer", "flamingo")
"""One bridge for each of the two ways into an LLM: embeddings in its input, and gated layers between its layers."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--only", help="families, with commas between them [all]")
    out.add_argument("--again", action="store_true", help="also those whose outcome is in the file")
    out.add_argument("--timeout", type=int, default=300, help="seconds for one family [300]")
    out.add_argument("--output", type=Path, default=OUTPUT, help="the outcomes, JSON")
    out.add_argument("--table", type=Path, help="the page to update [docs/families.md, if --output is not given]")
    return out


def run_one(name: str, path: Path) -> None:
    """Test one family in this process, and write its result as JSON."""
    from families_checks import check_family
    from families_llms import FAMILIES

    logging.disable(logging.WARNING)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OSM_CACHE"] = str(Path(folder) / "cache")  # The self-check then runs even if its result is stored.
        for variant in LLM_INPUTS:
            outcome = check_family(FAMILIES[name], variant, Path(folder))
            found[variant] = {key: value.replace(f"{folder}/", "") for key, value in outcome.items()}
    path.write_text(json.dumps(found), encoding="utf-8")


def run_apart(name: str, timeout: int) -> dict[str, Any]:
    """Test one family in another process. If it crashes or hangs, that is its result."""
    # Forked if possible, because importing the libraries takes longer than testing a family.
    fork = "fork" in multiprocessing.get_all_start_methods()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcome.json"
        process = multiprocessing.get_context("fork" if fork else "spawn").Process(target=run_one, args=(name, path))
        process.start()
        process.join(timeout)
        said = f"not done after {timeout} seconds" if process.is_alive() else f"exit status {process.exitcode}"
        process.kill()
        process.join()
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {variant: {"build": f"error: {said}"} for variant in LLM_INPUTS}


def main() -> int:
    """Test families. Return 1 if one gives wrong results or ends in a traceback, else 0."""
    arguments = parser().parse_args()
    import families_checks  # noqa: F401  (before the processes are forked)
    from families_llms import FAMILIES

    names = list(FAMILIES) if arguments.only is None else [name for name in arguments.only.split(",") if name]
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        parser().error(f"--only {unknown[0]!r} is not one of {', '.join(FAMILIES)}")
    outcomes = read_outcomes(arguments.output)
    for name in names:
        if arguments.again or name not in outcomes["families"]:
            outcomes["families"][name] = run_apart(name, arguments.timeout)
            write_outcomes(arguments.output, outcomes, list(FAMILIES))
        for variant, found in outcomes["families"][name].items():
            bad = [f"{key}: {value}" for key, value in found.items() if value.startswith(("wrong", "error"))]
            print(f"{name}, {variant}: {'; '.join(bad) or 'as it should be'}", flush=True)
    if table := arguments.table or (PAGE if arguments.output == OUTPUT else None):
        write_section(table, outcomes)
    values = [v for name in names for found in outcomes["families"][name].values() for v in found.values()]
    return int(any(value.startswith(("wrong", "error")) for value in values))


if __name__ == "__main__":
    sys.exit(main())
