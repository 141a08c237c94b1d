"""Quantizes frozen LLMs to 8 or 4 bits, with clear errors for missing packages and unsupported hardware."""

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

_PACKING_FLAG = "support_avx512bf16_for_cpu"  # attribute of bitsandbytes' 4-bit layers
_PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}


def quantization_config(name: str) -> Any:
    """Return the `quantization_config` argument for `from_pretrained`, or None if `name` is empty.

    Raises:
        OsmError: the package that implements the quantization is not installed, or the quantization needs a GPU.
    """
    if not name:
        return None
    package = _PACKAGES[name.split("_")[0]]
    if importlib.util.find_spec(package) is None:
        raise OsmError(f"model.llm.quantization {name!r} needs the package {package}: pip install {package}")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    # Hide bitsandbytes' message that a float32 model is computed in half precision, which is logged for every layer.
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
        raise _cannot(name, "cpu", "torchao's 4-bit kernels require CUDA; bnb_nf4 also works on a CPU")
    # torch itself has the kernels of this packing format. We use groups of 64, which divide more layer widths than 128.
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d"))


def loading_options(bits: Any) -> dict[str, Any]:
    """Return arguments for `from_pretrained`.

    On a machine with a GPU, the LLM is quantized on the GPU and computes in bfloat16.
    """
    if bits is None:
        return {"dtype": torch.float32}
    if not torch.cuda.is_available():
        return {"dtype": torch.float32, "quantization_config": bits}
    place = {"": torch.cuda.current_device()}
    return {"dtype": torch.bfloat16, "quantization_config": bits, "device_map": place}


@contextlib.contextmanager
def told_plainly(name: str) -> Iterator[None]:
    """Convert quantization errors, which transformers would log for every matrix, to a single OsmError.

    Raises:
        OsmError: the weights cannot be quantized.
        OSError: the weights are missing.
    """
    from transformers.utils import logging as told

    before = told.get_verbosity()
    try:
        told.set_verbosity(logging.CRITICAL)
        yield
    except (OSError, OsmError, SafetensorError):  # missing or broken weights
        raise
    except Exception as error:  # the quantization libraries may raise any exception
        raise _cannot(name, "cuda" if torch.cuda.is_available() else "cpu", str(error.__cause__ or error)) from None
    finally:
        told.set_verbosity(before)


def keep_gradients(llm: nn.Module) -> None:
    """Prevent bitsandbytes from packing 4-bit weights for inference on CPUs with AVX512-BF16.

    bitsandbytes packs the weights of every layer that is in eval mode. A frozen LLM is always in eval mode, but
    bitsandbytes' kernel for packed weights does not compute gradients.
    """
    for module in llm.modules():
        if hasattr(module, _PACKING_FLAG):
            setattr(module, _PACKING_FLAG, False)


def check_works(llm: nn.Module, name: str) -> None:
    """Run a quantized LLM on one token, so that missing kernels are reported early.

    Raises:
        OsmError: the LLM does not run on this hardware, or most of its weights could not be quantized.
    """
    where = next(llm.parameters()).device
    _check_share(llm, name, where.type)
    try:
        with torch.no_grad():
            llm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=where))
    except Exception as error:  # missing kernels may raise any exception
        raise _cannot(name, where.type, str(error) or repr(error)) from None


def _check_share(llm: nn.Module, name: str, where: str) -> None:
    """Warn if less than 90% of the decoder layers' values are quantized, and raise OsmError if less than half are.

    The LM head and the word embeddings do not count as decoder layers. In the decoder layers, the quantization
    libraries skip linear layers with unsupported sizes, and mixture-of-experts layers whose experts are fused into one
    tensor.
    """
    layers = nn.ModuleList(decoder_layers(llm))
    plain = {key: p.numel() for key, p in layers.named_parameters() if p.ndim > 1 and _is_plain(p)}
    modules: list[Any] = [module for module in layers.modules() if hasattr(module, "in_features")]
    linear = [module for module in modules if not _is_plain(module.weight)]
    kept, packed = sum(plain.values()), sum(m.in_features * m.out_features for m in linear)
    if not kept or kept < 0.1 * (kept + packed):
        return
    largest = max(plain, key=lambda key: plain[key])
    said = f"{kept / (kept + packed):.0%} of the values in its layers stay in {layers.get_parameter(largest).dtype}"
    said = f"{said.replace('torch.', '')} (fused experts, or layer sizes that are not supported), most in {largest}"
    if 2 * kept > kept + packed:
        raise _cannot(name, where, said)
    warnings.warn(f"model.llm.quantization {name!r}: {said}", stacklevel=4)


def _is_plain(value: Any) -> bool:
    """Return whether a weight is an ordinary floating-point tensor and therefore not quantized."""
    return type(value) is nn.Parameter and type(value.data) is Tensor and value.is_floating_point()


def check_device(llm: nn.Module, name: str, device: torch.device) -> None:
    """Raise OsmError if the device type differs from the one on which the LLM was quantized."""
    there = next(llm.parameters()).device
    if name and there.type != device.type:
        raise OsmError(
            f"--device {device}: with model.llm.quantization {name!r}, the LLM was quantized on {there.type} and "
            f"cannot be moved; use --device {there.type}, or hide the GPUs (CUDA_VISIBLE_DEVICES='')"
        )


def _cannot(name: str, where: str, said: str) -> OsmError:
    said = " ".join(said.split())[:300]
    return OsmError(
        f"model.llm.quantization {name!r} does not work with this LLM on this machine ({where}): {said}. Leave "
        "model.llm.quantization empty, or try a different value"
    )
