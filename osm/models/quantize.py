"""Frozen LLMs in 8 or 4 bits: what transformers is told, and a sentence where the packages or the hardware cannot."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges.gated import decoder_layers

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
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if name == "bnb_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bnb_nf4":
        compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if name == "torchao_int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    if not torch.cuda.is_available():
        raise _cannot(name, "cpu", "torchao's kernels of 4 bits are for CUDA; bnb_nf4 works here")
    # The layout whose kernels come with torch itself. Groups of 64 fit more widths than those of 128.
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d"))


def loading_options(bits: Any) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: a GPU quantises what it will hold, in the precision of its kernels."""
    if bits is None:
        return {"dtype": torch.float32}
    if not torch.cuda.is_available():
        return {"dtype": torch.float32, "quantization_config": bits}
    place = {"": torch.cuda.current_device()}
    return {"dtype": torch.bfloat16, "quantization_config": bits, "device_map": place}


@contextlib.contextmanager
def told_plainly(name: str) -> Iterator[None]:
    """Loading within it says in one sentence why it cannot quantise; transformers says it at every matrix.

    Raises:
        OsmError: it cannot. OSError: the weights are not there.
    """
    from transformers.utils import logging as told

    before = told.get_verbosity()
    try:
        told.set_verbosity(logging.CRITICAL)
        yield
    except (OSError, OsmError, SafetensorError):  # not there, or broken
        raise
    except Exception as error:  # what its library happens to raise
        raise _cannot(name, "cuda" if torch.cuda.is_available() else "cpu", str(error.__cause__ or error)) from None
    finally:
        told.set_verbosity(before)


def keep_gradients(llm: nn.Module) -> None:
    """Keeps bitsandbytes from packing 4-bit layers for inference on CPUs with AVX512-BF16.

    It does so for every layer that is in eval mode, as a frozen LLM's are; its kernel for packed weights has no
    gradient.
    """
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_works(llm: nn.Module, name: str) -> None:
    """Runs one token through a quantised LLM: kernels that are missing show here, not in mid-run.

    Raises:
        OsmError: it does not run on this hardware, or most of it could not be quantised.
    """
    where = next(llm.parameters()).device
    _check_share(llm, name, where.type)
    try:
        with torch.no_grad():
            llm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=where))
    except Exception as error:  # a kernel that is missing raises what its library happens to
        raise _cannot(name, where.type, str(error) or repr(error)) from None


def _check_share(llm: nn.Module, name: str, where: str) -> None:
    """Refuses where most values of the LLM's layers stay as they are, and reports where many do.

    The head and the word embeddings may stay; the layers are what quantisation is for. Of those the libraries take
    linear layers of some sizes, and not the experts of a mixture that are fused into one tensor.
    """
    layers = nn.ModuleList(decoder_layers(llm))
    plain = {key: p.numel() for key, p in layers.named_parameters() if p.ndim > 1 and _is_plain(p)}
    linear = [m for m in layers.modules() if hasattr(m, "in_features") and not _is_plain(m.weight)]
    kept, packed = sum(plain.values()), sum(m.in_features * m.out_features for m in linear)
    if not kept or kept < 0.1 * (kept + packed):
        return
    largest = max(plain, key=lambda key: plain[key])
    said = f"{kept / (kept + packed):.0%} of the values in its layers stay in {layers.get_parameter(largest).dtype}"
    said = f"{said.replace('torch.', '')} (of fused experts, or of sizes that it does not take), most in {largest}"
    if 2 * kept > kept + packed:
        raise _cannot(name, where, said)
    warnings.warn(f"model.llm.quantization {name!r}: {said}", stacklevel=4)


def _is_plain(value: Any) -> bool:
    """Whether a weight is an ordinary tensor of floating point."""
    return type(value) is nn.Parameter and type(value.data) is Tensor and value.is_floating_point()


def check_device(llm: nn.Module, name: str, device: torch.device) -> None:
    """Raises OsmError where a quantised LLM is wanted on another kind of device than it was quantised on."""
    there = next(llm.parameters()).device
    if name and there.type != device.type:
        raise OsmError(
            f"--device {device}: with model.llm.quantization {name!r} the LLM was quantised on {there.type}, where it "
            f"stays; use --device {there.type}, or hide the GPUs (CUDA_VISIBLE_DEVICES='')"
        )


def _cannot(name: str, where: str, said: str) -> OsmError:
    said = " ".join(said.split())[:300]
    return OsmError(
        f"model.llm.quantization {name!r} does not work with this LLM on this machine ({where}): {said}. Leave it "
        "empty, or try another one"
    )
