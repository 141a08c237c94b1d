#!/usr/bin/env python3
"""Compares `osm label --to parts` on Ray with the run without Ray: rows, kills, memory, overhead, and object stores.

    python3 benchmarks/label_scale.py CHECKPOINT DATA/coco_mini/val --pictures 2000 --output scale.json

DATA is a folder with `panoptic.json`, `panoptic/` and `images/`, whose photos are copied until there are enough
images. The series are:

- local: the run without Ray, whose parts all other runs must write again, byte by byte.
- workers: Ray with 1, 2 and 4 workers.
- kills: one worker is killed (SIGKILL) in the middle, and in another run the driver, which is then started again.
- overhead: the run without Ray and Ray with one worker in turns, whose seconds per image are compared.
- s3: shards on `s3://` (a local moto server), labeled by Ray, parts on `s3://`.

Prints one JSON document last.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from label_series import copies  # noqa: E402

from osm.labeling.parts.part_store import PartStore  # noqa: E402

_POLL = 0.5  # seconds between two readings of the memory
_WORKER = "ray::MapWorker"


class Memory(threading.Thread):
    """Reads the memory of a command and of Ray's processes while the command runs.

    Attributes:
        samples: for each kind of process, the MiB of its largest process at each reading.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.samples, self.ended = pid, dict[str, list[int]](), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_POLL):
            found: dict[str, int] = {}
            for name, pid in processes().items():
                kind = _kind(name, pid, self.pid)
                if kind:
                    found[kind] = max(found.get(kind, 0), rss_mib(pid))
            for kind, value in found.items():
                self.samples.setdefault(kind, []).append(value)

    def summary(self) -> dict[str, dict[str, int]]:
        """Return the peak of each kind of process, and its median in the second and in the last quarter of the run."""
        self.ended.set()
        self.join()
        return {
            kind: {
                "peak_mib": max(values),
                "second_quarter_mib": int(statistics.median(values[len(values) // 4 : len(values) // 2 + 1])),
                "last_quarter_mib": int(statistics.median(values[3 * len(values) // 4 :])),
            }
            for kind, values in self.samples.items()
        }


def _kind(name: str, pid: int, driver: int) -> str:
    if pid == driver:
        return "driver"
    if name.startswith(_WORKER):
        return "worker"
    return "ray_services" if "raylet" in name or "gcs_server" in name else ""


def processes() -> dict[str, int]:
    """Return the processes of this machine by their command lines, which end with the process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found[f"{text} {path.parent.name}"] = int(path.parent.name)
    return found


def rss_mib(pid: int) -> int:
    """Return the memory that only this process uses now (without shared files), or 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def label(
    words: list[str], environment: Mapping[str, str], kill: Callable[[int], bool] | None = None
) -> dict[str, Any]:
    """Run `osm label`. `kill` is called again and again with the driver's process id, until it returns True."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "osm", "label", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
        memory = Memory(process.pid)
        memory.start()
        while process.poll() is None:
            if kill is not None and kill(process.pid):
                kill = None
            time.sleep(_POLL / 5)
        said = process.communicate()[0]
        errors.seek(0)
        code, text = process.returncode, errors.read()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"osm label {' '.join(words)}: exit code {code}\n{said}{text}")
    seconds = round(time.monotonic() - started, 1)
    return {
        "exit_code": code,
        "seconds": seconds,
        "memory": memory.summary(),
        "said": said.splitlines()[0].split(": ")[0] if said else "",
    }


def parts(folder: str) -> dict[str, bytes]:
    """Return the files of the parts of a run."""
    store = PartStore(folder)
    return {name: store.read(f"parts/{name}") or b"" for name in store.names("parts")}


def rows(found: Mapping[str, bytes], without: str = "") -> list[dict[str, Any]]:
    """Return the rows of some parts."""
    import pyarrow.parquet as parquet

    tables = [parquet.read_table(io.BytesIO(data)) for _, data in sorted(found.items())]
    return [
        {name: value for name, value in row.items() if name != without} for table in tables for row in table.to_pylist()
    ]


def twice(found: list[dict[str, Any]]) -> int:
    """Return the number of rows whose image and mask another row has too."""
    return len(found) - len({(row["image"], row["mask"]) for row in found})


def shards(folder: Path, out: Path, count: int) -> None:
    """Write the pictures and masks of `copies` as WebDataset shards of `count` pictures."""
    document = json.loads((folder / "masks.json").read_text())
    of_image: dict[int, list[Any]] = {}
    for row in document["annotations"]:
        of_image.setdefault(row["image_id"], []).append(row)
    out.mkdir()
    for start in range(0, len(document["images"]), count):
        with tarfile.open(out / f"{start // count:06d}.tar", "w") as archive:
            for image in document["images"][start : start + count]:
                key, _, suffix = image["file_name"].partition(".")
                annotations = json.dumps({"annotations": of_image.get(image["id"], [])}).encode()
                photo = (folder / "images" / image["file_name"]).read_bytes()
                for name, data in ((f"{key}.{suffix}", photo), (f"{key}.json", annotations)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def start_s3(port: int) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a moto server, and return it with the variables by which the AWS libraries find it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(300):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    else:
        raise SystemExit("the moto server does not start")
    address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    return server, {**address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Series:
    """The runs of one document, which share their pictures.

    Args:
        folder: a folder for all files.
        model: the flags of the model.
        pictures: the number of pictures.
        part: the number of pictures in a part.
    """

    def __init__(self, folder: Path, model: list[str], pictures: int, part: int) -> None:
        self.folder, self.pictures, self.part = folder, pictures, part
        self.model = [*model, "--part_images", str(part)]
        self.environment = {"OSM_CACHE": str(folder / "cache")}
        self.reference: dict[str, bytes] = {}

    def words(self, out: str, *more: str) -> list[str]:
        images = [str(self.folder / "set" / "images"), str(self.folder / out)]
        return [*images, "--masks", str(self.folder / "set" / "masks.json"), *self.model, *more]

    def run(self, out: str, *more: str, kill: Callable[[int], bool] | None = None) -> dict[str, Any]:
        """Run one command, and compare its parts with those of the local run."""
        found = label(self.words(out, "--to", "parts", *more), self.environment, kill)
        print(out, found, file=sys.stderr, flush=True)
        return {**found, **self.compared(parts(str(self.folder / out)))}

    def compared(self, written: Mapping[str, bytes]) -> dict[str, Any]:
        """Compare parts with those of the local run."""
        if not self.reference:
            return {}
        found = rows(written)
        return {"rows": len(found), "twice": twice(found), "byte_identical": dict(written) == self.reference}

    def local(self) -> dict[str, Any]:
        """Run without Ray, and keep the parts for the comparisons."""
        result = self.run("local")
        self.reference = parts(str(self.folder / "local"))
        found = rows(self.reference)
        return {**result, "rows": len(found), "twice": twice(found)}

    def done(self, out: str) -> int:
        """Return the number of parts that a run has written so far."""
        return len(PartStore(str(self.folder / out)).names("parts"))

    def workers(self) -> dict[str, Any]:
        return {str(n): self.run(f"ray{n}", "--engine", "ray", "--processes", str(n)) for n in (1, 2, 4)}

    def kills(self) -> dict[str, Any]:
        """Kill one worker of two, and in another run the driver, which is then started again."""
        third = len(self.reference) // 3
        killed_at = []

        def kill_worker(_: int) -> bool:
            pids = [pid for name, pid in processes().items() if name.startswith(_WORKER)]
            if self.done("worker_killed") < third or not pids:
                return False
            killed_at.append(self.done("worker_killed"))
            os.kill(pids[0], signal.SIGKILL)
            return True

        def kill_driver(pid: int) -> bool:
            if self.done("driver_killed") < third:
                return False
            os.kill(pid, signal.SIGKILL)
            return True

        ray = ("--engine", "ray", "--processes", "2")
        worker = self.run("worker_killed", *ray, kill=kill_worker)
        before = self.run("driver_killed", *ray, kill=kill_driver)
        deadline = time.monotonic() + 60
        while any(name.startswith(_WORKER) for name in processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        orphans = sum(name.startswith(_WORKER) for name in processes())
        times = self._times("driver_killed")
        resumed = self.run("driver_killed", *ray)
        again = [name for name, stamp in times.items() if self._times("driver_killed")[name] != stamp]
        return {
            "worker": {**worker, "killed_after_parts": killed_at[0] if killed_at else None},
            "driver": {"parts_when_killed": len(times), "seconds": before["seconds"], "orphans_after_60_s": orphans},
            "resumed": {**resumed, "parts_written_again": len(again)},
        }

    def _times(self, out: str) -> dict[str, int]:
        folder = self.folder / out / "parts"
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}

    def overhead(self, pairs: int) -> dict[str, Any]:
        """Run without and with Ray in turns, and return the seconds for a picture."""
        runs: dict[str, list[float]] = {"local": [], "ray": []}
        steady: dict[str, list[float]] = {"local": [], "ray": []}
        for pair in range(pairs):
            for kind in ("local", "ray") if pair % 2 == 0 else ("ray", "local"):
                found = self.run(f"pair_{pair}_{kind}", *(("--engine", "ray") if kind == "ray" else ()))
                runs[kind].append(found["seconds"])
                times = sorted(self._times(f"pair_{pair}_{kind}").values())
                # From the first to the last part, so without the start of Python, Ray and the model.
                steady[kind].append((times[-1] - times[0]) / 1e6 / (self.pictures - self.part))
        extra = [(ray - local) for local, ray in zip(runs["local"], runs["ray"], strict=True)]
        return {
            "seconds": runs,
            "ms_per_picture_between_parts": {kind: [round(one, 2) for one in found] for kind, found in steady.items()},
            "median_extra_seconds": round(statistics.median(extra), 2),
            "median_extra_ms_per_picture": round(1000 * statistics.median(extra) / self.pictures, 2),
            "median_extra_ms_per_picture_between_parts": round(
                statistics.median(b - a for a, b in zip(steady["local"], steady["ray"], strict=True)), 2
            ),
        }

    def s3(self) -> dict[str, Any]:
        """Label shards on `s3://` to `s3://`, once whole, and once with the driver killed and started again."""
        import s3fs  # type: ignore[import-untyped]

        local = self.folder / "shards"
        shards(self.folder / "set", local, 2 * self.part)
        server, environment = start_s3(free_port())
        os.environ.update(environment)
        try:
            fs = s3fs.S3FileSystem()
            fs.mkdir("pictures")
            fs.mkdir("labels")
            fs.put(str(local), "pictures/shards", recursive=True)
            count = len(list(local.glob("*.tar")))
            pattern = f"shards/{{000000..{count - 1:06d}}}.tar"
            plain = label(
                [f"{self.folder}/{pattern}", str(self.folder / "of_shards"), *self.model, "--to", "parts"], {}
            )
            wanted = rows(parts(str(self.folder / "of_shards")), without="path")
            ray = ("--engine", "ray", "--processes", "2")
            out: dict[str, Any] = {"shards": count, "local_seconds": plain["seconds"]}

            def kill_driver(pid: int) -> bool:
                if len(PartStore("s3://labels/killed").names("parts")) < count // 2:
                    return False
                os.kill(pid, signal.SIGKILL)
                return True

            for name, kill in (("whole", None), ("killed", kill_driver), ("killed", None)):
                words = [f"s3://pictures/{pattern}", f"s3://labels/{name}", *self.model, *ray]
                found = label(words, self.environment, kill)
                print("s3", name, found, file=sys.stderr, flush=True)
                written = rows(parts(f"s3://labels/{name}"), without="path")
                key = "resumed" if name == "killed" and kill is None else name
                facts = {"rows": len(written), "twice": twice(written), "equal_rows": written == wanted}
                out[key] = {**found, **facts}
            return out
        finally:
            server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--masks", type=int, default=10, help="masks of each picture [%(default)s]")
    parser.add_argument("--part", type=int, default=50, help="pictures in a part [%(default)s]")
    parser.add_argument("--pairs", type=int, default=3, help="runs without and with Ray in turns [%(default)s]")
    parser.add_argument("--series", default="workers,kills,overhead,s3", help="the series to run [%(default)s]")
    parser.add_argument("--name", help="the model's name in the JSON document [CHECKPOINT]")
    parser.add_argument("--output", type=Path, help="file for the JSON document; a later series is added to it")
    args = parser.parse_args()
    document: dict[str, Any] = {}
    if args.output and args.output.is_file():
        document = json.loads(args.output.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = copies(args.data.resolve(), folder / "set", args.pictures, args.masks)
        model = ["--checkpoint", args.checkpoint, "--device", "cpu", "--cpus_per_process", "1"]
        series = Series(folder, model, args.pictures, args.part)
        document |= {"model": args.name or args.checkpoint, "pictures": args.pictures, "masks": count}
        document |= {"cores": os.cpu_count(), "machine": platform.processor() or platform.machine()}
        document["local"] = series.local()
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "workers": series.workers,
            "kills": series.kills,
            "overhead": lambda: series.overhead(args.pairs),
            "s3": series.s3,
        }
        for name in args.series.split(","):
            document[name] = runs[name]()
            if args.output:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
