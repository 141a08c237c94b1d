"""Tests of towers of many families with random weights (`scripts/tower_families.py`).

Each case runs in a process of its own. It builds the tower from a folder of weights that this module writes, as a model
config does, and runs the whole model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tower_cases import TowerCase

from osm.config import from_dict
from osm.errors import OsmError
from osm.files import read_json, write_output
from osm.models.bridges.maskqformer import MaskQFormerBridge, QFormerConfig
from osm.models.factory import build_tower
from osm.models.model_config import ModelConfig, TowerConfig
from osm.models.osm import OmniScientModel
from osm.models.towers.tower import Tower, one_line
from osm.models.windows import SlidingWindows
from osm.terminal import message_logger

logger = message_logger(__name__)

# No published model has these values, so they can only come from the config of the folder.
MEAN, STD = (0.11, 0.22, 0.33), (0.44, 0.55, 0.66)
_NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}


def try_tower(case: TowerCase, folder: Path) -> dict[str, Any]:
    """Build the tower of a case from weights written into `folder`, and check its properties.

    Returns:
        `outcome`: `right`, `refused` or `wrong`. `sentence`: the reason, unless the outcome is right. For a tower that
        was built also `patch`, `width`, `class_tokens`, `resampled` (number of tensors that were resized to the window)
        and `place` (`yes` if a change of the pixels of one cell changes the token of that cell most, else `unclear`).
    """
    torch.manual_seed(0)
    weights = _write_weights(case, folder)
    section = {"kind": case.kind, "name": case.name, "weights": str(folder), "options": case.options}
    strides = {"strides": case.strides} if case.strides else {}
    tower = from_dict(TowerConfig, {**section, **strides}, "model.tower")
    side = 2 * case.window
    bridge = QFormerConfig(1, 16, 2, 16, 1, 2, 2, 0.0, 0)
    config = ModelConfig("", side, case.window, case.window, tower=tower, bridge=bridge)
    try:
        built, config_tower = build_tower(config)
        model = _around(built, dataclasses.replace(config, tower=config_tower))
    except OsmError as error:
        sentence = str(error).replace(str(folder), "FOLDER")
        return {"outcome": "wrong" if case.patch else "refused", "sentence": sentence}
    faults = _faults(case, model, weights)
    known = {_digest(value) for value in weights.values()}
    result: dict[str, Any] = {"patch": built.patch, "width": built.width, "class_tokens": built.class_tokens}
    result |= {
        "resampled": sum(_digest(p) not in known for p in built.parameters()),
        "place": _place(built, case.window),
    }
    return {"outcome": "wrong", "sentence": "; ".join(faults), **result} if faults else {"outcome": "right", **result}


def _faults(case: TowerCase, model: OmniScientModel, weights: Mapping[str, Tensor]) -> list[str]:
    """Return a phrase for each property that is not as expected."""
    tower, faults = model.tower, []
    if (tower.patch, tower.class_tokens) != (case.patch, case.class_tokens):
        faults.append(
            f"patch {tower.patch} and {tower.class_tokens} class tokens, {case.patch} and {case.class_tokens} expected"
        )
    if not torch.allclose(torch.tensor([*tower.mean, *tower.std]), torch.tensor([*MEAN, *STD])):
        faults.append(f"mean {tower.mean} and std {tower.std} are not those of the weights")
    if tower.training or any(parameter.requires_grad for parameter in tower.parameters()):
        faults.append("the tower is not frozen")
    image = torch.randn(1, 3, 2 * case.window, 2 * case.window, generator=torch.Generator().manual_seed(1))
    windows = SlidingWindows(2 * case.window, case.window, case.window, tower.patch)
    with torch.no_grad():
        tokens = model.encode_image(image)
        one_by_one = [tower(window[None]) for window in windows.split(image)]
    prefix = torch.cat([one[0] for one in one_by_one]).reshape(1, -1, tower.width)
    expected = torch.cat([prefix, windows.merge(torch.cat([one[1] for one in one_by_one]))], 1)
    cells = 2 * case.window // tower.patch
    if tuple(tokens.shape) != (1, 4 * case.class_tokens + cells**2, tower.width) or not tokens.isfinite().all():
        faults.append(f"tokens of shape {tuple(tokens.shape)}, or not finite")
    elif not torch.allclose(tokens, expected, atol=1e-3, rtol=1e-3):
        faults.append("windows in one batch and one by one differ")
    known = {_digest(value) for value in weights.values()}
    foreign = [p for p in tower.parameters() if _digest(p) not in known and tuple(p.shape) in _shapes(weights)]
    if foreign:
        faults.append(f"{len(foreign)} parameters of {tuple(foreign[0].shape)} hold other values than the file")
    return faults


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple[int, ...]]:
    return {tuple(value.shape) for value in weights.values()}


def _digest(value: Tensor) -> bytes:
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes() + str(tuple(value.shape)).encode()).digest()


@torch.no_grad()
def _place(tower: Tower, window: int) -> str:
    cells = window // tower.patch
    row, column = cells // 3, cells - 1
    plain = torch.randn(1, 3, window, window, generator=torch.Generator().manual_seed(2))
    changed = plain.clone()
    p = tower.patch
    changed[..., row * p : (row + 1) * p, column * p : (column + 1) * p] += 3
    change = (tower(changed)[1] - tower(plain)[1]).norm(dim=2)[0]
    return "yes" if int(change.argmax()) == row * cells + column else "unclear"


def _around(tower: Tower, config: ModelConfig) -> OmniScientModel:
    """Build the smallest model with this tower."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    bridge = MaskQFormerBridge.of(config, tower, llm, 16)
    return OmniScientModel(tower, bridge, llm, config).eval()


def _write_weights(case: TowerCase, folder: Path) -> dict[str, Tensor]:
    """Write weights and config of a random model in the format of timm or open_clip. All parameters are distinct."""
    whole, name, document = (_timm_model if case.kind == "timm" else _clip_model)(case)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    state = {key: value.detach().clone().contiguous() for key, value in whole.state_dict().items()}
    save_file(state, folder / name)
    (folder / ("config.json" if case.kind == "timm" else "open_clip_config.json")).write_text(json.dumps(document))
    return state


def _timm_model(case: TowerCase) -> tuple[nn.Module, str, dict[str, Any]]:
    import timm

    config = {"architecture": case.name, "pretrained_cfg": {"mean": MEAN, "std": STD}}
    return timm.create_model(case.name, **case.options), "model.safetensors", config


def _clip_model(case: TowerCase) -> tuple[nn.Module, str, dict[str, Any]]:
    import open_clip

    sizes = open_clip.get_model_config(case.name)
    model = open_clip.CLIP(sizes["embed_dim"], {**sizes["vision_cfg"], **case.options}, _NO_TEXT)
    config = {"model_cfg": {"quick_gelu": False}, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    return model, "open_clip_model.safetensors", config


# -- all cases ----------------------------------------------------------------------------------------------------


def try_all(
    cases: Sequence[TowerCase],
    output: Path,
    timeout: float,
    attempt: Callable[[TowerCase, Path], dict[str, Any]] = try_tower,
) -> dict[str, Any]:
    """Test the cases that `output` does not contain, each in a process of its own, and add their results to `output`.

    Args:
        cases: the towers.
        output: json file of the results.
        timeout: in seconds per case.
        attempt: tests a case in an empty folder.

    Raises:
        OsmError: `output` exists and does not contain such results.
    """
    document: dict[str, Any] = {"versions": {}, "towers": {}}
    if output.is_file():
        document = read_json(output, "--output")[0]
        if not isinstance(document, dict) or not isinstance(document.get("towers"), dict):
            raise OsmError(f"--output {output}: expected results of this script")
    document["versions"] = {name: version(name) for name in ("torch", "timm", "open_clip_torch")}
    results = document["towers"]
    for case in cases:
        if case.key in results:
            continue
        results[case.key] = _in_a_process(case, timeout, attempt)
        logger.info(f"{case.key}: {results[case.key]['outcome']}")
        write_output(output, "--output", [json.dumps(document, indent=1, sort_keys=True) + "\n"])
    return document


def _in_a_process(
    case: TowerCase, timeout: float, attempt: Callable[[TowerCase, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Test a case in a forked process, which has already imported the libraries."""
    processes = multiprocessing.get_context("fork")
    receiver, sender = processes.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            sender.send(attempt(case, Path(folder.name)))
        except Exception as error:
            sender.send({"outcome": "wrong", "sentence": f"{type(error).__name__}: {one_line(error)}"})

    folder = tempfile.TemporaryDirectory()
    process = processes.Process(target=run)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return {"outcome": "wrong", "sentence": f"not done after {timeout:g} seconds"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"outcome": "wrong", "sentence": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        folder.cleanup()


def towers_page(document: Mapping[str, Any], cases: Sequence[TowerCase]) -> str:
    """Return the text of docs/towers.md, with a row for each case that has a result."""
    results = document["towers"]
    outcomes = [result["outcome"] for result in results.values()]
    right, refused, wrong = (outcomes.count(outcome) for outcome in ("right", "refused", "wrong"))
    versions = ", ".join(f"{name} {number}" for name, number in sorted(document["versions"].items()))
    lines = [
        "# Which towers work",
        "",
        f"{len(results)} towers (image encoders) were tested with random weights. Each tower was built from a folder",
        "of weights, in the same way as `model.tower` in a config, and was run as part of a complete model. Of the",
        f"tested towers, {right} are right, {refused} are refused with an error message, and {wrong} are wrong",
        f"({versions}). This page is generated by",
        "`python3 scripts/tower_families.py` from [towers.json](benchmarks/families/towers.json).",
        "",
        "A tower is *right* if it passes these checks:",
        "",
        "- The token grid and the number of class tokens are as expected.",
        "- The mean and standard deviation of the input normalization match those in the folder's config.",
        "- Every parameter equals the one in the weights file or is resampled from it, and has no gradient.",
        "- The output for a window is the same whether the window is processed alone or in a batch.",
        "",
        "The column *own location* is *yes* if changing the pixels of a grid cell changes the token of that cell more",
        "than any other token. Because the weights are random, even a correct tower can fail the *own location* check,",
        "so a failure is reported as *unclear*.",
        "",
        "| tower | strides | window | outcome | patch | width | class tokens | own location |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        result = results.get(case.key)
        if result is not None:
            cells = [str(result.get(key, "")) for key in ("patch", "width", "class_tokens", "place")]
            strides = ", ".join(map(str, case.strides))
            name = f"{case.name} ({case.kind})" if case.kind != "timm" else case.name
            lines.append(f"| {name} | {strides} | {case.window} | {result['outcome']} | {' | '.join(cells)} |")
    lines += ["", "Error messages of the refused towers (tower, window size, outcome: message):", ""]
    for case in cases:
        result = results.get(case.key, {})
        if "sentence" in result:
            sentence = " ".join(result["sentence"].split()).replace("|", "\\|")
            lines.append(f"- {case.name}, {case.window}, {result['outcome']}: {sentence}")
    return "\n".join(lines) + "\n"
