"""Benchmarks of other projects that name masks: their files, their rules, and what they published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osm.registry import Registry

if TYPE_CHECKING:
    from osm.evaluation.bench.naming_bench import NamingBench

_HERE = "osm.evaluation.bench"
BENCHES: Registry[type[NamingBench]] = Registry(
    "benchmark",
    "osm.benches",
    {
        "osprey_lvis": f"{_HERE}.osprey:OspreyLvis",
        "osprey_paco": f"{_HERE}.osprey:OspreyPaco",
        "dlc_names": f"{_HERE}.dlc:DlcNames",
    },
    f"{_HERE}.naming_bench:NamingBench",
)
