#!/usr/bin/env python3
"""Simulates `osm label --to parts` on a cluster, and says what saturates first, and what many pictures need.

    python3 benchmarks/cluster_simulation.py docs/benchmarks/scale/costs_osm_small.json --output simulation.json

The service times come from `benchmarks/label_costs.py`. Each process fetches its shard, decodes a picture and reads its
masks on a CPU core, runs the model on its GPU (or on its core, for a model that was measured on a CPU), and writes a
part after `part_images` pictures. CPU cores, GPUs, the network of a node and the streams of the storage are resources
with queues (simpy). A sample of the partitions is simulated picture by picture; the rates are extrapolated.

A case without measured times of the model has an assumed GPU: the milliseconds of the tower and of a name are its
floating-point operations divided by the GPU's peak and an assumed utilization. Such cases say `assumed`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import simpy

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "docs" / "benchmarks" / "plan" / "plans.json"
PEAK_TFLOPS, UTILIZATION = 989.0, 0.35  # an H100 in bfloat16, and the share of it that is assumed
FETCH_BLOCK = 16 << 20  # bytes of a range request (osm/storage/remote.py)
# Requests to an object store for a part, and for a shard beside the blocks of its content. A test counts them.
PART_REQUESTS = {"HEAD": 2, "LIST": 2, "PUT": 2, "DELETE": 1}
SHARD_REQUESTS = {"HEAD": 3, "GET": 1, "PUT": 1}
MILLION = 1_000_000
MTBF_HOURS = 500.0  # of a node, in the plans


@dataclass(frozen=True)
class Service:
    """What a picture costs.

    Attributes:
        cpu_ms: decoding, reading the masks, and writing the rows, on one core.
        model_ms: the tower and the names of all masks.
        on_gpu: whether the model runs on a GPU instead of the core.
        image_bytes, row_bytes: the bytes of a picture, and of a mask's row.
        masks: the masks of a picture.
        start_seconds: the start of a process, with its model.
        source: where the times come from.
    """

    cpu_ms: float
    model_ms: float
    on_gpu: bool
    image_bytes: int
    row_bytes: int
    masks: int
    start_seconds: float
    source: str


@dataclass(frozen=True)
class Cluster:
    """The machines and the storage.

    Attributes:
        nodes: the number of nodes.
        cores, gpus, processes: the CPU cores, GPUs and processes of a node.
        link_mb_per_s: the network of a node.
        stream_mb_per_s, streams: the speed of a download, and the number of downloads that the storage serves at once.
        latency_ms: the time of a small request.
        mtbf_hours: the mean time between two failures of a node in the simulated sample. They are too rare to matter
            there, so `plan` counts them.
    """

    nodes: int = 1
    cores: int = 16
    gpus: int = 1
    processes: int = 2
    link_mb_per_s: float = 1250.0
    stream_mb_per_s: float = 60.0
    streams: int = 2000
    latency_ms: float = 30.0
    mtbf_hours: float = 1e9


@dataclass(frozen=True)
class Work:
    """How the pictures are divided.

    Attributes:
        shard_images: the pictures of a shard, which is a partition.
        part_images: the pictures of a part.
    """

    shard_images: int = 1000
    part_images: int = 500


class Simulation:
    """One run. `result` has the rates of its steady state.

    Args:
        service, cluster, work: what is simulated.
        shards: the number of shards that each process labels.
        seed: the seed of the service times, which vary, and of the failures.
    """

    def __init__(self, service: Service, cluster: Cluster, work: Work, shards: int, seed: int = 0) -> None:
        self.service, self.cluster, self.work, self.shards = service, cluster, work, shards
        self.random = random.Random(seed)
        self.env = simpy.Environment()
        self.storage = simpy.Resource(self.env, cluster.streams)
        self.busy: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self.finished: list[float] = []
        self.lost = 0
        self.first_start = 0.0

    def run(self) -> dict[str, Any]:
        cluster = self.cluster
        for _ in range(cluster.nodes):
            cores = simpy.Resource(self.env, cluster.cores)
            link = simpy.Resource(self.env, max(1, int(cluster.link_mb_per_s // cluster.stream_mb_per_s)))
            gpus = [simpy.Resource(self.env, 1) for _ in range(cluster.gpus)]
            for k in range(cluster.processes):
                self.env.process(self._worker(cores, gpus[k % len(gpus)] if gpus else cores, link))
        self.env.run()
        return self._result()

    def _worker(self, cores: simpy.Resource, gpu: simpy.Resource, link: simpy.Resource) -> Iterator[Any]:
        yield self.env.timeout(self.service.start_seconds * self.random.uniform(0.8, 1.2))
        failure = self._next_failure()
        for _ in range(self.shards):
            yield from self._fetch(link)
            labeled = 0
            while labeled < self.work.shard_images:
                for _ in range(self.work.part_images):
                    yield from self._picture(cores, gpu)
                if self.env.now > failure:  # the part is labeled again, by another process
                    self.lost += self.work.part_images // 2
                    yield self.env.timeout(self.service.start_seconds)
                    yield from self._fetch(link)
                    failure = self._next_failure()
                    continue
                yield self.env.timeout(sum(PART_REQUESTS.values()) * self.cluster.latency_ms / 1000)
                labeled += self.work.part_images
                self.finished.append(self.env.now)

    def _next_failure(self) -> float:
        return self.env.now + self.random.expovariate(1 / (3600 * self.cluster.mtbf_hours))

    def _fetch(self, link: simpy.Resource) -> Iterator[Any]:
        size = self.work.shard_images * self.service.image_bytes / 1e6
        asked = self.env.now
        with link.request() as own, self.storage.request() as stream:
            yield own & stream
            self.waited["storage"] += self.env.now - asked
            seconds = size / self.cluster.stream_mb_per_s + self.cluster.latency_ms / 1000
            self.busy["storage"] += seconds
            self.busy["fetching"] += seconds
            yield self.env.timeout(seconds)

    def _picture(self, cores: simpy.Resource, gpu: simpy.Resource) -> Iterator[Any]:
        yield from self._use(cores, "cpu", self.service.cpu_ms)
        yield from self._use(gpu, "gpu" if self.service.on_gpu else "cpu", self.service.model_ms)

    def _use(self, resource: simpy.Resource, name: str, mean_ms: float) -> Iterator[Any]:
        asked = self.env.now
        with resource.request() as own:
            yield own
            self.waited[name] += self.env.now - asked
            seconds = mean_ms / 1000 * self.random.uniform(0.7, 1.3)
            self.busy[name] += seconds
            yield self.env.timeout(seconds)

    def _result(self) -> dict[str, Any]:
        cluster = self.cluster
        images = len(self.finished) * self.work.part_images
        seconds = self.env.now - self.service.start_seconds
        have = {
            "cpu": cluster.nodes * cluster.cores,
            "gpu": cluster.nodes * cluster.gpus if self.service.on_gpu else 0,
            "storage": cluster.streams,
        }
        utilization = {name: round(self.busy[name] / (seconds * count), 3) for name, count in have.items() if count}
        spent = cluster.nodes * cluster.processes * seconds
        return {
            "images": images,
            "images_per_second": round(images / seconds, 3),
            "utilization": utilization,
            "share_of_time_fetching": round(self.busy["fetching"] / spent, 4),
            "share_of_time_waiting": {name: round(value / spent, 4) for name, value in sorted(self.waited.items())},
            "busiest": max(utilization, key=lambda name: utilization[name]),
            "pictures_labeled_again": self.lost,
        }


def plan(service: Service, cluster: Cluster, work: Work, images_per_second: float, pictures: int) -> dict[str, Any]:
    """Return what so many pictures need at a rate: hours, requests to the storage, and bytes."""
    hours = pictures / images_per_second / 3600
    shards, parts = -(-pictures // work.shard_images), -(-pictures // work.part_images)
    blocks = -(-work.shard_images * service.image_bytes // FETCH_BLOCK)
    failures = hours * cluster.nodes / MTBF_HOURS
    return {
        "pictures": pictures,
        "hours": round(hours, 1),
        "failures": round(failures, 1),
        # Each process of the node loses half a part on average.
        "pictures_labeled_again": round(failures * cluster.processes * work.part_images / 2),
        "gpu_hours": round(hours * cluster.nodes * cluster.gpus) if service.on_gpu else None,
        "core_hours": round(hours * cluster.nodes * cluster.cores),
        "get_and_head_requests": shards * (blocks + SHARD_REQUESTS["GET"] + SHARD_REQUESTS["HEAD"])
        + parts * PART_REQUESTS["HEAD"],
        "put_and_list_requests": shards * SHARD_REQUESTS["PUT"]
        + parts * (PART_REQUESTS["PUT"] + PART_REQUESTS["LIST"]),
        "read_tb": round(pictures * service.image_bytes / 1e12, 2),
        "written_gb": round(pictures * service.masks * service.row_bytes / 1e9, 1),
        "files": parts + shards,
    }


def measured(costs: dict[str, Any]) -> Service:
    """Return the times that were measured on a CPU, where the model runs on the core of its process."""
    ms = {name: value["mean"] for name, value in costs["ms"].items()}
    return Service(
        cpu_ms=round(ms["decode"] + ms["masks"] + ms["write"], 3),
        model_ms=round(ms["tower"] + ms["names"], 3),
        on_gpu=False,
        image_bytes=costs["image_bytes"],
        row_bytes=costs["row_bytes"],
        masks=costs["masks"],
        start_seconds=10.0,
        source=f"measured: {costs['model']}, one thread of {costs['machine']}",
    )


def assumed(costs: dict[str, Any]) -> Service:
    """Return the times of the published model on an H100, computed from its floating-point operations."""
    naming = json.loads(PLANS.read_text())["six datasets, 8 x 80 GB"]["naming"]
    flops = naming["tower_flops"] + costs["masks"] * naming["row_flops"]
    model_ms = 1000 * flops / (PEAK_TFLOPS * 1e12 * UTILIZATION)
    source = f"assumed: published model, H100 at {UTILIZATION:.0%} of its peak; CPU times measured"
    return replace(measured(costs), model_ms=round(model_ms, 1), on_gpu=True, start_seconds=60.0, source=source)


def cases(costs: dict[str, Any]) -> list[tuple[str, Service, Cluster, Work]]:
    """Return what is simulated by default."""
    own, published = measured(costs), assumed(costs)
    found = [("2 cores, as measured", own, Cluster(cores=2, gpus=0, processes=2), Work(100, 50))]
    found += [
        (
            f"{nodes} node{'s' if nodes > 1 else ''} of 32 cores",
            own,
            Cluster(nodes=nodes, cores=32, gpus=0, processes=32),
            Work(500, 500),
        )
        for nodes in (1, 8)
    ]
    for processes in (1, 2, 4):
        cluster = Cluster(nodes=1, cores=16, gpus=1, processes=processes)
        found.append((f"1 H100, {processes} process{'es' if processes > 1 else ''}", published, cluster, Work()))
    found.append(("8 nodes of 8 H100", published, Cluster(nodes=8, cores=128, gpus=8, processes=16), Work()))
    slow = Cluster(nodes=8, cores=128, gpus=8, processes=16, streams=16, stream_mb_per_s=10.0)
    found.append(("8 nodes of 8 H100, storage of 160 MB/s", published, slow, Work()))
    few = Cluster(nodes=8, cores=8, gpus=8, processes=16)
    found.append(("8 nodes of 8 H100 with 8 cores", published, few, Work()))
    return found


def check(costs: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    """Compare the simulation of one process with the measured runs without Ray, from their first to their last part."""
    service = replace(measured(costs), start_seconds=0.0)
    # The files are on the disk of the machine.
    cluster = Cluster(cores=1, gpus=0, processes=1, stream_mb_per_s=1e6, link_mb_per_s=1e6, latency_ms=0.0)
    found = Simulation(service, cluster, Work(1000, 500), 4).run()
    simulated = 1000 / found["images_per_second"]
    real = statistics.median(runs["overhead"]["ms_per_picture_between_parts"]["local"])
    return {"model": costs["model"], "simulated_ms": round(simulated, 2), "measured_ms": real}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("costs", type=Path, help="JSON document of benchmarks/label_costs.py")
    parser.add_argument(
        "--check", type=Path, nargs=2, help="documents of label_costs.py and label_scale.py of one model"
    )
    parser.add_argument("--shards", type=int, default=4, help="shards that each process labels [%(default)s]")
    parser.add_argument("--output", type=Path, help="file for the JSON document")
    args = parser.parse_args()
    costs = json.loads(args.costs.read_text())
    found = []
    for title, service, cluster, work in cases(costs):
        result = Simulation(service, cluster, work, args.shards).run()
        plans = [plan(service, cluster, work, result["images_per_second"], n * MILLION) for n in (10, 1000)]
        row = {"case": title, "service": asdict(service), "cluster": asdict(cluster), "work": asdict(work)}
        found.append({**row, **result, "plans": plans})
        print(title, result, file=sys.stderr, flush=True)
    document = {"costs": costs["model"], "assumed_utilization": UTILIZATION, "cases": found}
    if args.check:
        document["check"] = check(*(json.loads(path.read_text()) for path in args.check))
    text = json.dumps(document, indent=1)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
