"""Quantizes frozen LLMs to 8 or 4 bits, and reports in one sentence if packages or hardware do not support it."""

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

_PACKING_FLAG = "support_avx512bf16_for_cpu"  # an attribute of bitsandbytes' 4-bit layers
_PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}


def quantization_config(name: str) -> Any:
    """Return the `quantization_config` argument of `from_pretrained`; None for an empty name.

    Raises:
        OsmError: the package that implements it is not installed, or it needs a GPU.
    """
    if not name:
        return None
    package = _PACKAGES[name.split("_")[0]]
    if importlib.util.find_spec(package) is None:
        raise OsmError(
            f"model.llm.quantization {name!r} needs the package {package}: pip install 'osm-recognition[quantization]'"
        )
    from transformers import BitsAndBytesConfig, TorchAoConfig

    # bitsandbytes logs for every layer of a float32 model that it computes in half precision.
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
    # The kernels of this packing format are part of torch. A group size of 64 divides more layer widths than 128 does.
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d"))


def loading_options(bits: Any) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`: with a GPU, the LLM is quantized there and computes in bfloat16."""
    if bits is None:
        return {"dtype": torch.float32}
    if not torch.cuda.is_available():
        return {"dtype": torch.float32, "quantization_config": bits}
    place = {"": torch.cuda.current_device()}
    return {"dtype": torch.bfloat16, "quantization_config": bits, "device_map": place}


@contextlib.contextmanager
def told_plainly(name: str) -> Iterator[None]:
    """Turn a failure to quantize, inside this context, into one OsmError. transformers would log it for every matrix.

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
    except Exception as error:  # the quantization libraries raise exceptions of any class
        raise _cannot(name, "cuda" if torch.cuda.is_available() else "cpu", str(error.__cause__ or error)) from None
    finally:
        told.set_verbosity(before)


def keep_gradients(llm: nn.Module) -> None:
    """Prevent bitsandbytes from packing 4-bit layers for inference on CPUs with AVX512-BF16.

    bitsandbytes packs every layer in eval mode, and the layers of a frozen LLM are in eval mode. Its kernel for packed
    weights has no gradient.
    """
    for module in llm.modules():
        if hasattr(module, _PACKING_FLAG):
            setattr(module, _PACKING_FLAG, False)


def check_works(llm: nn.Module, name: str) -> None:
    """Run a quantized LLM on one token, so that missing kernels are reported before the actual work starts.

    Raises:
        OsmError: the LLM does not run on this hardware, or most of it could not be quantized.
    """
    where = next(llm.parameters()).device
    _check_share(llm, name, where.type)
    try:
        with torch.no_grad():
            llm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=where))
    except Exception as error:  # missing kernels raise exceptions of any class
        raise _cannot(name, where.type, str(error) or repr(error)) from None


def _check_share(llm: nn.Module, name: str, where: str) -> None:
    """Check how many values of the decoder layers are quantized: warn if fewer than 90 %, raise if fewer than half.

    The LM head and the word embeddings are not counted. In the decoder layers, the libraries quantize linear layers of
    certain sizes only, and not the experts of a mixture that are fused into one tensor.
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
    said = f"{said.replace('torch.', '')} (of fused experts, or of sizes that it does not take), most in {largest}"
    if 2 * kept > kept + packed:
        raise _cannot(name, where, said)
    warnings.warn(f"model.llm.quantization {name!r}: {said}", stacklevel=4)


def _is_plain(value: Any) -> bool:
    """Return whether a weight is an ordinary floating-point tensor."""
    return type(value) is nn.Parameter and type(value.data) is Tensor and value.is_floating_point()


def check_device(llm: nn.Module, name: str, device: torch.device) -> None:
    """Raise OsmError if a quantized LLM is requested on another device type than the one it was quantized on."""
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
