#!/usr/bin/env python3
"""Measures how many names per second `osm.Recognizer` gives, compared with the published way.

The published way encodes the windows of the image one by one. Then it makes a call for every mask and mode, in which
everything but the tower's tokens is computed again (above all the keys and values of the whole image), and decodes with
transformers' `generate`. Both ways have the same weights and masks. The names have to be the same and the probabilities
within 1e-4, or the benchmark fails.

    python3 benchmarks/recognition.py                       # random weights: published Q-Former, 135M-class LLM, 1120
    python3 benchmarks/recognition.py --config osm_small    # real weights of tower and LLM, a bridge at its start
    python3 benchmarks/recognition.py --config osm --random_weights     # published size, on a GPU, bf16

On a CPU, the recognizer has the packed weights of `osm.models.fast_inference`, and the published way does not.
`--many 500` also names 500 masks with the recognizer alone, and reports the memory. `floor` belongs to the largest
number of masks. It has the FLOPs and the bytes that the recognizer needs (all weights are read once per forward pass),
the time that they would take at the device's peaks, and the reached share of these peaks. The last line of the output
is a JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import train_step_models as models  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from small_tokenizer import small_tokenizer  # noqa: E402
from speed_machine import process_state  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from osm.data.processor import Processor  # noqa: E402
from osm.datasets.labels import load_labels  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.models.bridges.bridge import Instruction  # noqa: E402
from osm.models.bridges.flamingo import FlamingoBridge  # noqa: E402
from osm.models.bridges.maskqformer import (
    MaskQFormerBridge,  # noqa: E402
    QFormerConfig,  # noqa: E402
)
from osm.models.bridges.pooled import PooledBridge  # noqa: E402
from osm.models.factory import base_config, pick_device  # noqa: E402
from osm.models.fast_inference import speed_up  # noqa: E402
from osm.models.llm import stop_ids  # noqa: E402
from osm.models.masks import context_mask  # noqa: E402
from osm.models.model_config import LlmConfig, ModelConfig  # noqa: E402
from osm.models.osm import OmniScientModel  # noqa: E402
from osm.models.towers.tower import RandomTower, RandomTowerConfig  # noqa: E402
from osm.recognition.recognizer import Recognizer  # noqa: E402
from osm.training.meter import memory_gib, peak_flops  # noqa: E402

MODES = (models.SET, "any")
NEW_TOKENS = 12
SIDE = 2048  # of the large matrix product
# SmolLM2-135M's shape.
SMALL_LLM = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMALL_LLM |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": False}
TINY_LLM = {**SMALL_LLM, "hidden_size": 144, "intermediate_size": 384, "num_hidden_layers": 2, "vocab_size": 4096}


def random_cpu_model(tiny: bool) -> tuple[OmniScientModel, Processor]:
    """The published sizes of input, tokens and Q-Former, with a tower that costs nothing and a 135M-class LLM.

    With `tiny`, the input, the tower, the Q-Former and the LLM are small enough for tests.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **(TINY_LLM if tiny else SMALL_LLM), bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    llm = transformers.LlamaForCausalLM(config).eval()
    qformer = QFormerConfig(layers=2, width=384, heads=6, mlp_width=1536) if tiny else QFormerConfig()
    size = 224 if tiny else 1120
    with torch.no_grad():  # random weights are sure of nothing, and hardly look back: all names would be alike
        scale = (SMALL_LLM["hidden_size"] / config.hidden_size) ** 0.5
        llm.lm_head.weight.mul_(15 * scale)
        for layer in llm.model.layers:
            layer.self_attn.v_proj.weight.mul_(6 * scale)
            layer.self_attn.o_proj.weight.mul_(6 * scale)
    tower = RandomTower(14, 64 if tiny else 1408, True, 0)
    tokenizer = small_tokenizer(sorted(load_labels(models.SET).vocabulary), vocabulary=4000)
    with torch.no_grad():
        llm.lm_head.weight[len(tokenizer) :] = 0  # ids that are no word would be names without a letter
    bridge = MaskQFormerBridge(qformer, MODES, tower.width, config.hidden_size, len(tokenizer))
    model_config = ModelConfig(
        base_model_name="",
        input_size=size,
        sliding_window_size=size // 5 // 14 * 14 or 14,
        sliding_window_stride=size // 5 // 14 * 14 or 14,
        tower=RandomTowerConfig(patch=14, width=tower.width),
        llm=LlmConfig(name="random"),
        bridge=qformer,
        modes=MODES,
    )
    model = OmniScientModel(tower, bridge, llm, model_config).eval()
    return model, Processor(tokenizer, tokenizer, size, (0.5,) * 3, (0.25,) * 3)


def lead(model: OmniScientModel) -> None:
    """Makes an untrained bridge matter, and an LLM of random weights sure of its words: else all names are alike."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(model.bridge, FlamingoBridge):
        with torch.no_grad():
            for block in model.bridge.gated.blocks:
                block.gate.fill_(2 / block.gain)
                block.output.weight.mul_(20)
            for layer in model.bridge.resampler:  # as below
                layer.output.weight.mul_(5)
            for query in model.bridge.mode_query.values():
                query.add_(torch.randn(query.shape, generator=generator).to(query))
        return
    queries = list(model.bridge.mode_query.values())
    with torch.no_grad():
        # What is seen, and not the queries alone, decides what comes out.
        if isinstance(model.bridge, PooledBridge):
            model.bridge.direct.linear.weight.mul_(5)
        else:
            queries = [model.bridge.mask_query, model.bridge.context_query, *queries]
            for layer in model.bridge.qformer.encoder.layer:
                if layer.has_cross_attention:
                    layer.crossattention.attention.value.weight.mul_(5)
                    layer.crossattention.output.dense.weight.mul_(5)
        for parameter in queries:
            parameter.add_(3 * torch.randn(parameter.shape, generator=generator).to(parameter))


def pictures(masks: int, width: int, height: int) -> tuple[Image.Image, np.ndarray]:
    """A picture of noise in large blocks, and ellipses of 2 to 40 % of its sides."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), np.uint8)
    image = np.kron(blocks, np.ones((32, 32, 1), np.uint8))[:height, :width]
    ys, xs = np.ogrid[:height, :width]
    found = np.zeros((masks, height, width), bool)
    for mask in found:
        y, x = rng.uniform(0.1, 0.9, 2) * (height, width)
        a, b = rng.uniform(0.02, 0.4, 2) * (height, width) / 2
        mask[:] = ((ys - y) / a) ** 2 + ((xs - x) / b) ** 2 <= 1
    return Image.fromarray(image), found


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def published(
    model: OmniScientModel, processor: Processor, image: Image.Image, masks: np.ndarray
) -> tuple[float, list[float], list[tuple[str, float]]]:
    """Seconds for the image, seconds of each call, and each call's name and probability."""
    device = model.device
    begun = wait(device)
    pixels = processor.pixel_values(processor.canvas(image)[None].to(device))
    windows = model.windows.split(pixels.to(next(model.tower.parameters(), pixels).dtype))
    parts = [model.tower(window[None]) for window in windows]
    patches = torch.cat([p for _, p in parts])
    prefix = torch.cat([p for p, _ in parts]).reshape(1, model.prefix_tokens, patches.shape[-1])
    tokens = model.add_positions(torch.cat([prefix, model.windows.merge(patches)], 1))
    encoding = wait(device) - begun
    text, stops = processor.prompts([processor.naming_prompt()]), stop_ids(model.llm)
    instruction = Instruction(text.qformer_ids.to(device), text.qformer_mask.to(device))
    seconds, found = [], []
    for mask in masks:
        for mode in MODES:
            begun = wait(device)
            canvas = processor.canvas_masks(mask[None]).to(device)
            context = context_mask(canvas, model.config.context_enlarge_ratio)
            keys = model.mask_features(canvas, context, pixels)
            image_kv = model.bridge.image_state(tokens)
            out = model.generate_from(
                model.bridge(image_kv, torch.zeros(1, dtype=torch.long, device=device), keys, instruction, [mode]),
                text.input_ids.to(device),
                text.attention_mask.to(device),
                max_new_tokens=NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
            ids = out.sequences[0].tolist()
            probs = torch.stack(out.logits, 1)[0].float().softmax(-1)[torch.arange(len(ids)), ids].tolist()
            length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
            found.append((processor.name(ids[:length]), float(np.prod(probs[:length])) if length else probs[0]))
            seconds.append(wait(device) - begun)
    return encoding, seconds, found


def ours(recognizer: Recognizer, image: Image.Image, masks: np.ndarray) -> tuple[float, list[tuple[str, float]]]:
    """Seconds for all masks of an image, from nothing; each mask's and mode's name and probability."""
    begun = wait(recognizer.model.device)
    recognizer.set_image(image)
    answers = recognizer.name(masks, modes=MODES)
    seconds = wait(recognizer.model.device) - begun
    return seconds, [(answer.text, answer.prob) for region in answers for answer in region]


def compare(recognizer: Recognizer, counts: list[int], size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    image, masks = pictures(max(counts), *size)
    model, processor = recognizer.model, recognizer.processor
    ours(recognizer, image, masks[:1])  # warms up: threads, the window of padding
    published(model, processor, image, masks[:1])
    encoding, seconds, expected = published(model, processor, image, masks)
    if model.device.type == "cpu":
        speed_up(model)
        ours(recognizer, image, masks[:1])
    cases = []
    for count in counts:
        runs = [ours(recognizer, image, masks[:count]) for _ in range(rounds)]
        best, found = min(run[0] for run in runs), runs[0][1]
        calls = len(MODES) * count
        wrong = sum(a[0] != b[0] for a, b in zip(expected, found, strict=False))
        apart = max(abs(a[1] - b[1]) for a, b in zip(expected, found, strict=False))
        theirs = encoding + sum(seconds[:calls])
        cases.append(
            {
                "masks": count,
                "names": calls,
                "names_per_second": {"ours": round(calls / best, 3), "published": round(calls / theirs, 3)},
                "seconds": {"ours": round(best, 3), "published": round(theirs, 3)},
                "times_faster": round(theirs / best, 2),
                "other_names": wrong,
                "different_names": len({name for name, _ in found}),
                "probabilities_apart": apart,
            }
        )
        print(json.dumps(cases[-1]), file=sys.stderr)
    return cases


GB_PER_S = {"H100 80GB HBM3": 3350.0, "H200": 4800.0, "A100-SXM4-80GB": 2039.0, "L40S": 864.0}
"""Memory bandwidth by the makers' data sheets."""


def work_of(recognizer: Recognizer, image: Image.Image, masks: np.ndarray) -> dict[str, Any]:
    """Count the FLOPs of our way, the forward passes of each part, and the bytes of weights that they read.

    The model must not have packed weights, because their products are not counted.
    """
    calls: Counter[str] = Counter()
    parts = {"tower": recognizer.model.tower, "bridge": recognizer.model.bridge, "llm": recognizer.model.llm}
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: calls.update([name])) for name, part in parts.items()]
    with FlopCounterMode(display=False) as counter:
        ours(recognizer, image, masks)
    for hook in hooks:
        hook.remove()
    weights = {name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in parts.items()}
    gigabytes = sum(count * weights[name] for name, count in calls.items()) / 1e9
    return {
        "masks": len(masks),
        "forwards": dict(calls),
        "gflop": round(counter.get_total_flops() / 1e9, 1),
        "gigabytes_of_weights": round(gigabytes, 2),
    }


def floor(device: torch.device, work: dict[str, Any], best: float, args: argparse.Namespace) -> dict[str, Any]:
    """What no implementation with these weights gets below, and how near we are."""
    gflop, gigabytes = work["gflop"], work["gigabytes_of_weights"]
    peak = peak_flops(device, "bf16", args.peak_tflops) / 1e9 or matmul_rate(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    bandwidth = args.gb_per_s or next((rate for key, rate in GB_PER_S.items() if key in name), 0.0)
    bounds = {"flops": gflop / peak} | ({"bytes": gigabytes / bandwidth} if bandwidth else {})
    return {
        **work,
        "peak_gflop_per_s": round(peak, 1),
        "peak_is": "the device's" if device.type == "cuda" or args.peak_tflops else "a large matrix product's here",
        "gigabytes_per_s": bandwidth or None,
        "floor_seconds": {key: round(seconds, 4) for key, seconds in bounds.items()},
        "share_reached": round(max(bounds.values()) / best, 3),
    }


def matmul_rate(device: torch.device) -> float:
    """GFLOP/s of a large float32 matrix product."""
    a = torch.randn(SIDE, SIDE, device=device)
    return product_rate(lambda: a @ a, device)


def product_rate(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    """GFLOP/s of a product of two SIDE x SIDE matrices."""
    product()
    begun = wait(device)
    for _ in range(4):
        product()
    return 4 * 2 * SIDE**3 / (wait(device) - begun) / 1e9


def many(recognizer: Recognizer, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """The memory that so many masks take, beyond what the model and 32 of them took."""
    device = recognizer.model.device
    image, masks = pictures(count, *size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ours(recognizer, image, masks[:32])
    before = memory_gib(device)
    seconds, names = ours(recognizer, image, masks)
    return {
        "masks": count,
        "names": len(names),
        "seconds": round(seconds, 1),
        "names_per_second": round(len(names) / seconds, 2),
        "rows_at_once": recognizer.budget.largest,
        "gib": {"with_32_masks": round(before, 2), "more_with_all": round(memory_gib(device) - before, 2)},
        "of": "the GPU's memory" if device.type == "cuda" else "the process, the masks themselves included",
    }


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--config", default="", help="osm_small, osm, ...; without it the random CPU model")
    out.add_argument("--random_weights", action="store_true", help="of the published size, made on the device")
    out.add_argument("--tiny", action="store_true", help="shrinks a random model, to try the script")
    out.add_argument("--masks", default="1,8,32", help="numbers of masks [%(default)s]")
    out.add_argument("--size", default="640x480", help="of the picture [%(default)s]")
    out.add_argument("--rounds", type=int, default=2, help="of our way; the best counts [%(default)s]")
    out.add_argument("--many", type=int, default=0, help="name so many masks as well, for the memory that takes")
    out.add_argument("--peak_tflops", type=float, default=0.0, help="of the device, for the floor, where not known")
    out.add_argument("--gb_per_s", type=float, default=0.0, help="of the device's memory, for the floor")
    out.add_argument("--compiled", action="store_true", help="on a GPU, decode with a static cache and CUDA graphs")
    out.add_argument("--device", default="auto")
    out.add_argument("--threads", type=int, default=0, help="torch threads; 0 = all cores")
    return out


def built(args: argparse.Namespace, device: torch.device) -> tuple[OmniScientModel, Processor]:
    if args.random_weights:
        config = models.published_base(args.config or "osm")
        half = torch.bfloat16 if device.type == "cuda" else torch.float32
        return models.random_model(config, args.tiny, device, half), models.random_processor(config)
    if args.config:
        base_config(args.config)
        return models.pretrained(args.config)
    return random_cpu_model(args.tiny)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        device = pick_device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        counts = [int(count) for count in args.masks.split(",")]
        width, height = (int(side) for side in args.size.split("x"))
        if min(*counts, width, height, args.rounds) < 1:
            raise OsmError(
                f"--masks {args.masks}, --size {args.size}, --rounds {args.rounds}: expected numbers from 1 on"
            )
        model, processor = built(args, device)
    except (OsmError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model = model.to(device).eval()
    lead(model)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        recognizer = Recognizer(model, processor, NEW_TOKENS, compiled=args.compiled)
        work = work_of(recognizer, *pictures(max(counts), width, height))
        cases = compare(recognizer, counts, (width, height), args.rounds)
        bound = floor(device, work, cases[counts.index(max(counts))]["seconds"]["ours"], args)
        crowd = many(recognizer, args.many, (width, height)) if args.many else None
    document = {
        "model": args.config or "random",
        "tiny": args.tiny,
        "compiled": args.compiled,
        "input_size": model.config.input_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        **process_state(),
        "cases": cases,
        "floor": bound,
        **({"many": crowd} if crowd else {}),
    }
    print(json.dumps(document, indent=1))
    close = 1e-4 if device.type == "cpu" else 2e-2  # bf16
    return int(any(case["other_names"] or case["probabilities_apart"] > close for case in cases))


if __name__ == "__main__":
    sys.exit(main())
