"""The benchmarks of recognition run, and agree with what they compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def ran(*arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [(), *(("--config", name, "--random_weights") for name in ("osm", "osm_flamingo_instructblip"))]
)
def test_both_ways_say_the_same(flags: tuple[str, ...]) -> None:
    code, out, err = ran(
        "benchmarks/recognition.py", "--tiny", "--masks", "1,4", "--rounds", "1", "--many", "40", *flags
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["tiny"] and [case["masks"] for case in document["cases"]] == [1, 4]
    for case in document["cases"]:
        assert case["names"] == 2 * case["masks"] and case["other_names"] == 0
        assert case["probabilities_apart"] < 1e-4 and case["names_per_second"]["ours"] > 0
    assert document["cases"][1]["different_names"] > 1
    floor, many = document["floor"], document["many"]
    assert floor["masks"] == 4 and floor["gflop"] > 0 and floor["forwards"]["llm"] > 1
    # The share can exceed 1, because the floor is that of a product without packed weights, which are faster.
    measured = document["cases"][1]["seconds"]["ours"]
    assert floor["share_reached"] == pytest.approx(floor["floor_seconds"]["flops"] / measured, rel=0.1)
    assert 0 < floor["share_reached"] < 2
    assert floor["forwards"]["tower"] > 0 and list(floor["floor_seconds"]) == ["flops"]
    assert many["names"] == 80 and many["rows_at_once"] > 1 and many["gib"]["with_32_masks"] > 0


WRONG_FLAGS = {
    "--config osm_small --random_weights": "--config osm_small is not built around an InstructBLIP",
    "--masks 0": "--masks 0, --size 640x480, --rounds 2: expected numbers from 1 on",
    "--rounds 0": "--rounds 0: expected numbers from 1 on",
    "--size 0x5": "--size 0x5, --rounds 2: expected numbers from 1 on",
}
PROGRAM = """
import sys
sys.path.insert(0, "benchmarks")
import recognition
for flags in sys.argv[1:]:
    print(recognition.main(["--tiny", *flags.split()]), file=sys.stderr)
"""


def test_wrong_flags_are_said() -> None:
    code, _, err = ran("-c", PROGRAM, *WRONG_FLAGS)
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("error: ") or line == "2"]
    for number, message in enumerate(WRONG_FLAGS.values()):
        assert message in lines[2 * number] and lines[2 * number + 1] == "2"
    assert len(lines) == 2 * len(WRONG_FLAGS)


def test_before_and_after_are_compared_in_turns() -> None:
    code, out, err = ran("benchmarks/fast_paired.py", "random", "--tiny", "--masks", "1,3", "--rounds", "2")
    assert code == 0, err
    cases = json.loads(out)["models"]["random"]
    assert [(case["masks"], case["names"], case["other_names"]) for case in cases] == [(1, 2, 0), (3, 6, 0)]
    for case in cases:
        assert case["probabilities_apart"] <= 1e-4 and case["gain"] > 0
        assert len(case["seconds"]["before"]) == len(case["seconds"]["after"]) == 2
