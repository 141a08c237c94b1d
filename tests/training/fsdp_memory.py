"""Measures what the processes of an FSDP run hold in memory, beside a single process.

    python tests/training/fsdp_memory.py --layers 20 --width 2048 --out docs/benchmarks/reliability/fsdp_memory.json

A random Llama of the given size is written to a temporary folder. A single process, and then two processes with
`--fsdp`, build the training around it, up to the first step, and report the peak of their resident memory. The
process that reads the files holds the whole model for a while; the other one has to stay at its share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), *(str(REPO / "tests" / name) for name in (".", "data", "training"))]

import torch  # noqa: E402
import yaml  # noqa: E402
from tiny_run import Workshop, launcher  # noqa: E402

MOST = 0.65  # of a single process's peak


def worker(out: str, arguments: list[str]) -> None:
    """Runs as one process of the training, and writes its peak before and after the model is laid out, in MiB."""
    import transformers.models.llama.modeling_llama  # noqa: F401  what every process imports is not the model's

    from osm.models.bridges import BRIDGES
    from osm.models.osm import OmniScientModel
    from osm.models.towers import TOWERS
    from osm.training.distributed import start
    from osm.training.run_config import parse
    from osm.training.trainer import Trainer

    for registry in (TOWERS, BRIDGES):  # registries import a part on first use
        for name in registry.builtin:
            registry.get(name)
    run = parse(arguments)
    if run.training.fsdp:

        def refuse(*_: object) -> None:
            raise AssertionError("the whole model is moved to one device")

        OmniScientModel.to = refuse  # type: ignore[method-assign, assignment]
    world = start("cpu", "", "env://", False, 1)
    before = peak()
    Trainer(run, world)
    Path(f"{out}.{world.rank}").write_text(json.dumps({"imports": before, "peak": peak()}))
    world.barrier()
    world.close()


def peak() -> float:
    """Returns the peak of this process's resident memory in MiB.

    Not by `getrusage`: a process that is started inherits the peak of the one that starts it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def write_llm(workshop: Workshop, folder: Path, layers: int, width: int) -> Path:
    """Writes a random Llama with the workshop's tokenizer, and the config of a model around it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(workshop.root / "llm")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    document = yaml.safe_load(workshop.configs["maskqformer", 0.0].read_text())
    document["model"]["llm"] = {"name": str(folder / "llm")}
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def measure(workshop: Workshop, folder: Path, layers: int, width: int) -> dict[str, Any]:
    """Returns the peaks of a single process and of both processes of an FSDP run."""
    config = write_llm(workshop, folder, layers, width)
    arguments = ["--config", str(config), *workshop.arguments(folder / "run", sets={"pan": (1, 4)})[2:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    # Freed tensors go back to the system at once. With glibc's defaults, the peaks of equal runs differ by 50 MiB.
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    found: dict[str, Any] = {}
    for name, processes, flags in (("one", 1, ()), ("two", 2, ("--fsdp",))):
        start = launcher(2) if processes == 2 else ()
        words = [sys.executable, *start, __file__, "--worker", str(folder / name), *arguments, *flags]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
        for rank in range(processes):
            found[f"{name}.{rank}"] = json.loads((folder / f"{name}.{rank}").read_text())
    single, sharing = found["one.0"], found["two.1"]
    found["share_of_peak"] = sharing["peak"] / single["peak"]
    grown = [each["peak"] - each["imports"] for each in (sharing, single)]
    found["share_of_model"] = grown[0] / grown[1]
    found["model_mib"] = grown[1]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--worker"]:
        worker(argv[1], argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--out", type=Path, help="writes the figures there, as json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Workshop(Path(name) / "workshop"), Path(name), args.layers, args.width)
    found |= {"layers": args.layers, "width": args.width, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return int(found["share_of_peak"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
