#!/usr/bin/env python3
"""Measures how many bytes of the shards are read in one pass, and the speed of remote shards that are in the cache.

Four lanes (2 ranks of 2 workers each) read shards of 16 synthetic scenes without resampling. `--old CHECKOUT` names
another checkout that reads the same shards. The bytes of files are those that the process requested from the kernel
(/proc/self/io: rchar). The bytes of HTTP are those that a server on loopback sent, including up to 16 samples that each
lane prefetched.

    python3 benchmarks/shard_reading.py [--old CHECKOUT] > docs/benchmarks/loader/reading.json

For the speed, local shards and the cached copies of remote shards take turns in one process. A figure is the median of
cached / local over all rounds, for wall-clock time and CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
RANKS, WORKERS = 2, 2

# A lane's pass over the shards, in a checkout's own process; prints the bytes that it read of files.
LANE = """
import itertools, json, pickle, sys
from collections import Counter
sys.path.insert(0, "benchmarks")
import loader
from osm.datasets.table import DatasetTable
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.stream import SampleStream, StreamConfig
shards, rank, worker, count, more = json.loads(sys.argv[1])
config = StreamConfig(tuple(shards), 1, 8, resampled=False, shuffle_buffer=1, **more)
transform = SampleTransform(SampleConfig(), loader.make_processor(224))
stream = SampleStream(DatasetTable()["coco"], config, transform, rank, 2)
read = lambda: int(dict(line.split(": ") for line in open("/proc/self/io"))["rchar"])
if hasattr(stream, "indexes"):
    if len(sys.argv) > 2:  # those of the run, which are found once for all lanes
        stream.indexes = pickle.load(open(sys.argv[2], "rb"))
    stream.indexes.prepare(shards)
samples = stream.samples(worker, 2, Counter())
before = read()
for _ in itertools.islice(samples, count):
    pass
print(read() - before)
"""


def lanes(checkout: Path, shards: Sequence[str], each: int, indexes: Sequence[str] = (), **more: Any) -> list[int]:
    """Bytes of files that each lane reads in a pass; `indexes`: a file of the run's."""
    found = []
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for rank in range(RANKS):
        for worker in range(WORKERS):
            given = json.dumps([list(shards), rank, worker, each, more])
            command = [sys.executable, "-c", LANE, given, *indexes]
            done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found.append(int(done.stdout.split()[-1]))
    return found


def speed(local: Sequence[str], urls: Sequence[str], cache: Path, rounds: int, samples: int) -> dict[str, Any]:
    """Cached copies of remote shards beside local ones, in turns."""
    import loader

    from osm.data.sample import SampleTransform
    from osm.data.sample_config import SampleConfig
    from osm.data.stream import SampleStream, StreamConfig
    from osm.datasets.table import DatasetTable

    transform = SampleTransform(SampleConfig(), loader.make_processor(1120))

    def stream(shards: Sequence[str], **more: Any) -> Any:
        config = StreamConfig(tuple(shards), 8, samples + 8, shuffle_buffer=16, **more)
        return SampleStream(DatasetTable()["coco"], config, transform, 0, 1)

    kinds = {"local": stream(local), "cached": stream(urls, shard_cache=str(cache))}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name in sorted(kinds, reverse=bool(number % 2)):
            made = iter(kinds[name])
            next(made)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in made:
                pass
            if number:  # the first round fills the cache
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    result: dict[str, Any] = {}
    for place, clock in enumerate(("wall", "cpu")):
        ratios = [c[place] / s[place] for c, s in zip(seconds["cached"], seconds["local"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        result[clock] = {
            "local_ms": round(1000 / samples * statistics.median(s[place] for s in seconds["local"]), 2),
            "cached_over_local": round(statistics.median(ratios), 3),
            "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        }
    return result


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--old", type=Path, help="another checkout")
    out.add_argument("--shards", type=int, default=6, help="of 16 samples [%(default)s]")
    out.add_argument("--rounds", type=int, default=10, help="[%(default)s]")
    out.add_argument("--samples", type=int, default=48, help="of a round [%(default)s]")
    args = out.parse_args()
    sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE / "benchmarks")]
    from loader_shards import make_shards
    from servers import FileServer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OSM_CACHE"] = str(folder / "cache")
        served = folder / "served"
        served.mkdir()
        one = next(path for (kind, layout), path in make_shards(folder, 640, 480, 16).items() if kind == "coco")
        names = [f"{number:03d}.tar" for number in range(args.shards)]
        for shard in names:
            shutil.copy(one, served / shard)
        local = [str(served / shard) for shard in names]
        each = 16 * args.shards // (RANKS * WORKERS)
        size = sum(Path(path).stat().st_size for path in local)
        result: dict[str, Any] = {"bytes_of_all_shards": size, "samples_of_a_lane": each, "bytes_of_each_lane": {}}
        if args.old:
            result["bytes_of_each_lane"]["files, before"] = lanes(args.old.resolve(), local, each)
        result["bytes_of_each_lane"]["files"] = lanes(HERE, local, each)
        with FileServer(served) as server:
            urls = [server.url(shard) for shard in names]
            from osm.data.shard_index import Indexes

            found = Indexes()
            found.prepare(urls)
            (folder / "indexes").write_bytes(pickle.dumps(found))
            sent = {}
            for title, more in (("ranges", {}), ("cache", {"shard_cache": str(folder / "node")})):
                server.forget()
                lanes(HERE, urls, each, [str(folder / "indexes")], **more)
                sent[title] = sum(server.sent(shard) for shard in names)
            result["bytes_sent_to_all_lanes"] = sent
            result["speed"] = speed(local, urls, folder / "node", args.rounds, args.samples)
    result |= {"rounds": args.rounds, "samples": args.samples, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
