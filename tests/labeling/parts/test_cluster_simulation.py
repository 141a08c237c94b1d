"""The simulation of clusters against cases whose rates are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cluster_simulation import FETCH_BLOCK, MILLION, Cluster, Service, Simulation, Work, plan

SERVICE = Service(10.0, 40.0, False, 100_000, 200, 10, 0.0, "a test")
FAST = {"latency_ms": 0.0, "stream_mb_per_s": 1e6, "link_mb_per_s": 1e6, "mtbf_hours": 1e9}
WORK = Work(1000, 500)


def simulated(service: Service, cluster: Cluster, shards: int = 2) -> dict[str, Any]:
    return Simulation(service, cluster, WORK, shards).run()


def test_one_process_needs_the_sum_of_its_times() -> None:
    found = simulated(SERVICE, Cluster(cores=1, gpus=0, processes=1, **FAST))
    assert found["images"] == 2000 and found["images_per_second"] == pytest.approx(1000 / 50, rel=0.02)
    assert found["utilization"]["cpu"] == pytest.approx(1, abs=0.01) and found["busiest"] == "cpu"
    assert found == simulated(SERVICE, Cluster(cores=1, gpus=0, processes=1, **FAST))


def test_processes_share_cores_and_a_gpu() -> None:
    four = simulated(SERVICE, Cluster(cores=2, gpus=0, processes=4, **FAST))
    assert four["images_per_second"] == pytest.approx(2 * 1000 / 50, rel=0.03)
    on_gpu = replace(SERVICE, on_gpu=True)
    one, four = (simulated(on_gpu, Cluster(cores=8, gpus=1, processes=n, **FAST)) for n in (1, 4))
    assert one["images_per_second"] == pytest.approx(1000 / 50, rel=0.03)  # the GPU waits for each image
    assert four["images_per_second"] == pytest.approx(1000 / 40, rel=0.03) and four["busiest"] == "gpu"


def test_slow_storage_saturates_first() -> None:
    cluster = Cluster(cores=64, gpus=0, processes=64, **{**FAST, "stream_mb_per_s": 10.0}, streams=4)
    found = simulated(SERVICE, cluster)
    # 128 shards of 100 MB by four downloads of 10 MB/s each, and the labeling of the last one.
    assert found["busiest"] == "storage"
    assert found["images_per_second"] == pytest.approx(128_000 / (128 / 4 * 10 + 50), rel=0.02)


def test_failures_cost_half_a_part() -> None:
    cluster = Cluster(cores=4, gpus=0, processes=4, **{**FAST, "mtbf_hours": 0.01})
    found = simulated(SERVICE, cluster)
    assert found["images"] == 4 * 2000 and found["pictures_labeled_again"] > 0
    assert found["images_per_second"] < simulated(SERVICE, replace(cluster, mtbf_hours=1e9))["images_per_second"]


def test_the_plan_of_a_million_pictures() -> None:
    found = plan(replace(SERVICE, on_gpu=True), Cluster(nodes=2, cores=16, gpus=4), WORK, 100.0, MILLION)
    assert found["hours"] == 2.8 and found["gpu_hours"] == 22 and found["core_hours"] == 89
    blocks = -(-100_000_000 // FETCH_BLOCK)
    assert found["get_and_head_requests"] == 1000 * (blocks + 4) + 2000 * 2
    assert found["put_and_list_requests"] == 1000 + 2000 * 4
    assert found["read_tb"] == 0.1 and found["written_gb"] == 2.0 and found["files"] == 3000
