"""Frozen LLMs in 8 or 4 bits: what transformers is told, and a sentence where the packages or the hardware cannot."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch
from torch import nn

from osm.errors import OsmError

_PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}


def quantization_config(name: str) -> Any:
    """The `quantization_config` of `from_pretrained`; None for an empty name.

    Raises:
        OsmError: its package is not installed.
    """
    if not name:
        return None
    package = _PACKAGES[name.split("_")[0]]
    if importlib.util.find_spec(package) is None:
        raise OsmError(
            f"model.llm.quantization {name!r} needs the package {package}: pip install 'osm-recognition[quantization]'"
        )
    from transformers import BitsAndBytesConfig, TorchAoConfig

    # bitsandbytes says at every layer of a float32 model that it computes in half precision.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    if name == "bnb_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bnb_nf4":
        compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if name == "torchao_int8" else Int4WeightOnlyConfig())


def check_works(llm: nn.Module, name: str) -> None:
    """Runs one token through a quantised LLM: kernels that are missing show here, not in mid-run.

    Raises:
        OsmError: it does not run on this hardware, or nothing of it could be quantised.
    """
    where = next(llm.parameters()).device
    plain = [m for m in llm.modules() if type(m) is nn.Linear and type(m.weight) is nn.Parameter]
    if sum(m.weight.numel() for m in plain) > sum(p.numel() for p in llm.parameters()) / 2:
        raise _cannot(name, where, "most of its matrices are of sizes that it does not take, and stay as they are")
    try:
        with torch.no_grad():
            llm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=where))
    except Exception as error:  # a kernel that is missing raises what its library happens to
        raise _cannot(name, where, str(error).split("\n")[0] or repr(error)) from None


def _cannot(name: str, where: torch.device, said: str) -> OsmError:
    return OsmError(
        f"model.llm.quantization {name!r} does not work with this LLM on this machine ({where.type}): {said}. Leave it "
        "empty, or try another one"
    )
