#!/usr/bin/env python3
"""Measures models of the published size on a GPU: both bridges, naming and training, with and without compiling.

    python3 benchmarks/gpu_speed.py gpu_speed.json

Each case is a run of `recognition.py` or `train_step.py` with random weights, which are made on the device. The
document has names per second, the share of the peak (MFU) and the memory of each case. It is written after each case.
A run that ends early keeps what it has measured. A case that fails is noted with the end of its messages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402
from raw_figures import last_document  # noqa: E402

from osm.errors import OsmError, run_command  # noqa: E402
from osm.files import write_output  # noqa: E402

BRIDGES = {"maskqformer": "osm", "flamingo": "osm_flamingo_instructblip"}


def cases(tiny: bool, device: str) -> dict[str, list[str]]:
    """The words of each case's command."""
    small = ["--tiny", "--rounds", "1", "--masks", "1"] if tiny else []
    found: dict[str, list[str]] = {}
    for bridge, config in BRIDGES.items():
        given = ["--config", config, "--random_weights", "--device", device, *small]
        many = [] if tiny else ["--many", "500"]
        found[f"naming, {bridge}"] = ["recognition.py", *given, *many]
        found[f"naming, {bridge}, CUDA graphs"] = ["recognition.py", *given, "--compiled"]
        for compiling in ("off", "on"):
            found[f"training, {bridge}, compile {compiling}"] = ["train_step.py", *given, "--compile", compiling]
    return found


def ran(words: list[str], limit: float) -> dict[str, Any]:
    """Run a case, and return its document and seconds, or why it failed."""
    begun = time.monotonic()
    command = [sys.executable, str(HERE / words[0]), *words[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"command": words, "failed": f"not finished after {limit:.0f} s"}
    result: dict[str, Any] = {"command": words, "seconds": round(time.monotonic() - begun, 1)}
    try:
        return {**result, "exit_code": done.returncode, "document": last_document(done.stdout)}
    except OsmError:
        return {**result, "failed": (done.stderr or done.stdout)[-1000:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the JSON document to write")
    parser.add_argument("--tiny", action="store_true", help="shrinks the models, to try the script on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=400, help="largest number of seconds per case [%(default)s]")
    return run_command(_run, parser.parse_args())


def _run(args: argparse.Namespace) -> int:
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise OsmError(f"--device {args.device}: this machine has no GPU; --tiny --device cpu tries the script")
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    document: dict[str, Any] = {"device": device, "torch": torch.__version__, "tiny": args.tiny, "cases": {}}
    for name, words in cases(args.tiny, args.device).items():
        document["cases"][name] = ran(words, args.limit)
        print(f"{name}: {document['cases'][name].get('failed', 'measured')}", file=sys.stderr)
        write_output(args.out, "out", [json.dumps(document, indent=1) + "\n"])
    return int(any("failed" in case for case in document["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
