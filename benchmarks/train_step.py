#!/usr/bin/env python3
"""Measures the speed of a training step, the time of its parts, and the share of the device's peak that it reaches.

By default, the model is osm_small with its pretrained tower and LLM (`osm fetch osm_small`):

    python3 benchmarks/train_step.py [--config osm_small] [--masks 1,4,8] [--threads 1]

With `--random_weights`, the model has the published size (InstructBLIP-Vicuna-7B, 7.9 G parameters) and random weights,
which are generated on the device. Nothing is downloaded, and timm, pycocotools and pybase64 are not needed. This takes
some minutes on an H100:

    python3 benchmarks/train_step.py --config osm --random_weights [--compile off,on] [--checkpointing off,on]

A step runs in one process, with the task and the optimizer of training: the batch is copied to the device, then follow
the forward pass, the backward pass, gradient clipping and AdamW. The batches are generated before the measurement
(`loader.py` measures the loader). `names_per_second` is measured over whole steps. The shares of the parts come from
other steps, in which the device is synchronized after each part. FLOPs are counted on the meta device. The floor is the
time that they would take at the device's peak. A case that runs out of memory is reported, and the other cases still
run. The last line of the output is a JSON document.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import train_step_models as models  # noqa: E402
import transformers  # noqa: E402
from train_step_parts import (  # noqa: E402
    PARTS,
    Meter,
    TrainStep,
    changed_layers,
    clock,
    compiled,
    layers,
    step_flops,
    watched,
)

from osm.data.batch import Batch  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.models.factory import pick_device  # noqa: E402
from osm.training.meter import peak_flops  # noqa: E402
from osm.training.parallel import recomputed  # noqa: E402
from osm.training.task import TrainTask  # noqa: E402

OUT_OF_MEMORY = "out of memory"
BATCHES = 3  # with texts of different lengths, all of which a compiled model has to accept
PRECISIONS = ("fp32", "amp_bf16", "bf16")


@dataclass
class Case:
    """The measurements for one number of masks per image.

    Attributes:
        compiled: the compiled parts.
        failed: the parts that cannot be compiled, with the reason.
    """

    masks: int
    batches: list[Batch]
    checkpointing: bool
    compiled: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    error: str = ""
    warm_up: float = 0.0
    seconds: list[dict[str, float]] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    memory: float | None = None
    loss: float = 0.0


class Benchmark:
    """A model and the cases in which it is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, pick_device(args.device)
        self.peak = peak_tflops(args, self.device)
        if args.random_weights:
            config = models.published_base(args.config)
            frozen = torch.float32 if args.precision == "fp32" else torch.bfloat16
            model = models.random_model(config, args.tiny, self.device, frozen)
            meta = models.random_model(config, args.tiny, torch.device("meta"), torch.float32)
            self.processor = models.random_processor(config)
        else:
            model, self.processor = models.pretrained(args.config)
            meta = copy.deepcopy(model).to("meta")
        self.step = TrainStep(TrainTask(model, self.processor), args.precision, self.device)
        self.meta_task = TrainTask(meta.train(), self.processor)
        self.flops: dict[int, dict[str, float]] = {}  # FLOPs of the parts, by the number of masks per image

    def document(self) -> dict[str, Any]:
        args, model = self.args, self.step.task.model
        told = {"config": args.config, "weights": "random" if args.random_weights else "pretrained", "tiny": args.tiny}
        cuda = self.device.type == "cuda"
        return {
            "benchmark": "train_step",
            **told,
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            "precision": args.precision,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "parameters": {
                "tower": count(model.tower.parameters()),
                "llm": count(model.llm.parameters()),
                "trained": count(self.step.trained),
            },
            "images_per_step": args.batch_size,
            "rounds": args.rounds,
            "peak_tflops": self.peak,
            "cases": list(self.cases()),
        }

    def cases(self) -> Iterator[dict[str, Any]]:
        for compiling, checkpointing in product(self.args.compile, self.args.checkpointing):
            cases = [self.started(masks, compiling == "on", checkpointing == "on") for masks in self.args.masks]
            # What else runs on a machine slows a CPU for minutes: the cases take turns, so that it slows all of them.
            turns, rounds = (self.args.rounds, 1) if self.device.type == "cpu" else (1, self.args.rounds)
            for _, case in product(range(turns), cases):
                self.attempt(case, rounds)
            for case in cases:
                told = {"masks_per_image": case.masks, "compile": compiling, "checkpointing": checkpointing}
                told |= {**self.result(case), "compiled": list(case.compiled)}
                if case.failed:
                    told["failed_to_compile"] = case.failed
                told |= self.against_peak(case, told)
                say(json.dumps(told))
                yield told

    def started(self, masks: int, compiling: bool, checkpointing: bool) -> Case:
        """A case after its first steps; of what is to be compiled, the tower alone where the LLM cannot be."""
        supervised = models.supervise(self.args.config)
        batches = models.make_batches(self.processor, self.args.batch_size, masks, BATCHES, supervised)
        if masks not in self.flops:
            flops = [step_flops(self.meta_task, batch) for batch in batches]
            self.flops[masks] = {name: statistics.mean(of_one[name] for of_one in flops) for name in PARTS}
        case = Case(masks, batches, checkpointing)
        for case.compiled in (("tower", "llm"), ("tower",)) if compiling else ((),):
            case.error = ""
            self.attempt(case, 0)
            if not case.error or case.error.startswith(OUT_OF_MEMORY):
                break
            case.failed["+".join(case.compiled)] = case.error
        say(f"{masks} masks an image, first steps: {case.error or f'{case.warm_up:.1f} s'}")
        return case

    def attempt(self, case: Case, rounds: int) -> None:
        """So many rounds of a case, 0 = its first steps; what goes wrong is its error, and it is left out from then."""
        if case.error:
            return
        try:
            with self.changed_model(case):
                self.measure(case, rounds) if rounds else self.warm_up(case)
            return
        except torch.OutOfMemoryError as error:
            case.error = f"{OUT_OF_MEMORY}: {first_line(error)}"
        except Exception as error:  # whatever a compiler may raise
            if not case.compiled:
                raise
            case.error = f"{type(error).__name__}: {first_line(error)}"
        # Not in the handlers: the traceback holds what the step had allocated.
        self.step.optimizer.zero_grad()
        self.step.optimizer.state.clear()  # some of it may be half made
        gc.collect()
        if not case.error.startswith(OUT_OF_MEMORY):  # it was compiled, and other cases go on with that
            torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def changed_model(self, case: Case) -> Iterator[None]:
        model = self.step.task.model
        with ExitStack() as stack:
            for name in case.compiled:
                stack.enter_context(changed_layers(layers(getattr(model, name)), compiled(self.args.compile_backend)))
            if case.compiled:  # all layers share one count of what they were compiled for: it is passed soon
                stack.enter_context(torch._dynamo.config.patch(recompile_limit=64))
            if case.checkpointing:
                stack.enter_context(changed_layers(layers(model.llm), recomputed))
            yield

    def warm_up(self, case: Case) -> None:
        """The first step of a shape finds kernels, allocates and compiles."""
        begun = clock(self.device)
        for batch in case.batches:
            self.step(batch)
        case.warm_up = clock(self.device) - begun

    def measure(self, case: Case, rounds: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for batch in case.batches * rounds:
            begun = clock(self.device)
            case.loss = self.step(batch)
            case.seconds.append({"step": clock(self.device) - begun})
        if self.device.type == "cuda":
            case.memory = torch.cuda.max_memory_allocated(self.device) / 2**30
        meter = Meter(lambda: clock(self.device), PARTS)
        with watched(self.step.task, meter):
            for batch in case.batches * rounds:
                meter.take()
                self.step(batch, meter.part)
                case.parts.append(meter.take())

    def result(self, case: Case) -> dict[str, Any]:
        if case.error:
            return {"error": case.error}
        # On a CPU the best of the rounds, as other programs disturb the rest; on a GPU a round may be lucky.
        choose = min if self.device.type == "cpu" else statistics.median
        step, parts = counted(case.seconds, choose)["step"], counted(case.parts, choose)
        times, rows = [entry["step"] for entry in case.seconds], len(case.batches[0])
        return {
            "names_per_step": rows,
            "names_per_second": rounded(rows / step),
            "step_seconds": rounded(step),
            "step_seconds_seen": [rounded(min(times)), rounded(max(times))],
            "part_seconds": {name: rounded(value) for name, value in parts.items()},
            "shares": {name: rounded(value / sum(parts.values())) for name, value in parts.items()},
            "peak_memory_gib": rounded(case.memory),
            "warm_up_seconds": rounded(case.warm_up),
            "text_tokens": [batch.text.input_ids.shape[1] for batch in case.batches],
            "loss": rounded(case.loss),
        }

    def against_peak(self, case: Case, found: dict[str, Any]) -> dict[str, Any]:
        """Counted FLOPs, their time at the device's peak, and what share of the peak was reached."""
        flops = self.flops[case.masks]
        tflop = {name: flops[name] / 1e12 for name in ("tower", "bridge", "llm", "backward")}
        tflop["total"] = sum(flops.values()) / 1e12
        out: dict[str, Any] = {"mfu": None, "floor": {"tflop": {k: rounded(v) for k, v in tflop.items()}}}
        if self.peak:
            out["floor"]["seconds"] = {name: rounded(value / self.peak) for name, value in tflop.items()}
            if "step_seconds" in found:
                out["mfu"] = rounded(tflop["total"] / self.peak / found["step_seconds"])
                out["floor"]["names_per_second"] = rounded(found["names_per_step"] / (tflop["total"] / self.peak))
        return out


def peak_tflops(args: argparse.Namespace, device: torch.device) -> float | None:
    found = peak_flops(device, args.precision, args.peak_tflops or 0.0) / 1e12
    if not found and device.type == "cuda" and args.precision != "fp32":
        name = torch.cuda.get_device_name(device)
        say(f"{name} is not in the table of peaks: without --peak_tflops there is no MFU and no floor in seconds")
    return found or None


def counted(seconds: list[dict[str, float]], choose: Callable[[list[float]], float]) -> dict[str, float]:
    """The mean over the batches of what is chosen of each one's rounds."""
    return {
        name: statistics.mean(choose([entry[name] for entry in seconds[batch::BATCHES]]) for batch in range(BATCHES))
        for name in seconds[0]
    }


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- flags -------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--config", default="osm_small", help="a config of the project, or a YAML file [%(default)s]")
    out.add_argument("--random_weights", action="store_true", help="the published size, with random weights")
    out.add_argument(
        "--tiny",
        action="store_true",
        help="with --random_weights: 2 layers of a sixteenth of the width, to try all of this on a CPU",
    )
    out.add_argument("--masks", default="1,4,8", help="masks an image, one case each [%(default)s]")
    out.add_argument("--batch_size", type=int, help="images a step [4; with --random_weights 8]")
    out.add_argument("--rounds", type=int, default=4, help=f"of {BATCHES} batches, as whole steps and in parts [4]")
    out.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [auto]")
    out.add_argument("--precision", help=f"{', '.join(PRECISIONS)} [fp32; with --random_weights amp_bf16]")
    out.add_argument("--compile", help="off, on or both: the tower's and LLM's layers [off; random weights: off,on]")
    out.add_argument("--compile_backend", default="inductor", help="of torch.compile [%(default)s]")
    out.add_argument("--checkpointing", default="off", help="off, on or both: of the LLM's layers [off]")
    out.add_argument("--peak_tflops", type=float, help="of the device; default: by a GPU's name")
    out.add_argument("--threads", type=int, default=1, help="torch threads of a CPU [1]")
    return out


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Raises OsmError for a value that is not right."""
    args = parser().parse_args(argv)
    args.batch_size = args.batch_size if args.batch_size is not None else 8 if args.random_weights else 4
    args.precision = args.precision or ("amp_bf16" if args.random_weights else "fp32")
    args.compile = switches("--compile", args.compile or ("off,on" if args.random_weights else "off"))
    args.checkpointing = switches("--checkpointing", args.checkpointing)
    if args.precision not in PRECISIONS:
        raise OsmError(f"--precision {args.precision!r} is not one of {', '.join(PRECISIONS)}")
    if args.tiny and not args.random_weights:
        raise OsmError("--tiny shrinks the published size: it needs --random_weights")
    for flag in ("batch_size", "rounds", "threads"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    if args.peak_tflops is not None and not args.peak_tflops > 0:
        raise OsmError(f"--peak_tflops {args.peak_tflops} must be over 0")
    try:
        masks = [int(part) for part in args.masks.split(",")]
    except ValueError:
        masks = [0]
    if min(masks) < 1:
        raise OsmError(f"--masks {args.masks!r} must be numbers from 1 on with commas between them, as in 1,4,8")
    args.masks = masks
    return args


def switches(flag: str, value: str) -> list[str]:
    chosen = value.split(",")
    if not set(chosen) <= {"off", "on"}:
        raise OsmError(f"{flag} {value!r} must be off, on, or off,on")
    return chosen


def main() -> int:
    try:
        args = parse()
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        document = Benchmark(args).document()
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
