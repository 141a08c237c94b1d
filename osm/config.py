"""Typed configs: dataclasses that YAML files and flags both map onto, with checks that name the field to change."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from osm.datasets.table import ANY_MODE, PUBLISHED_MODES
from osm.errors import OsmError, shown
from osm.files import check_regular_file, read_yaml
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, public_text, suffix_of

T = TypeVar("T")
# Arguments of timm.create_model that no config sets: files, and what the tower decides itself.
_TIMM_FLAGS = (
    "model_name pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir scriptable exportable "
    "no_jit features_only out_indices num_classes img_size"
)
_TIMM_KEEPS = frozenset(_TIMM_FLAGS.split())
_LARGEST = 1 << 16
_LARGEST_WINDOW = 1 << 13  # a ViT attends between all patches of a window
_MOST_LAYERS = 1024
QUANTIZATIONS = ("bnb_int8", "bnb_nf4", "torchao_int8", "torchao_int4")


def _check_sizes(where: str, sizes: Mapping[Any, int]) -> None:
    """A checkpoint's config may claim any: none of them is a model's."""
    for name, size in sizes.items():
        if not 1 <= size <= _LARGEST:
            raise OsmError(f"{where}.{name} {shown(size)} is not 1 to {_LARGEST}")


def _check_layers(where: str, layers: int) -> None:
    """Layers take time to build, however small they are."""
    if layers > _MOST_LAYERS:
        raise OsmError(f"{where} {layers} is over {_MOST_LAYERS}")


@dataclass(frozen=True)
class TowerConfig:
    """The frozen vision tower.

    Attributes:
        kind: `instructblip` (the base model's ViT), `open_clip` (any of its ViTs), `timm` (any timm model) or `random`
            (tiny, for tests).
        name: timm's or open_clip's model name.
        weights: under what name its weights are looked for (of open_clip a tag, too); empty = `name`.
        source: where they come from; empty = the first of local folder, this package, hub, pip package that has them
            (`osm.models.weights`).
        options: further arguments of `timm.create_model`, or of open_clip's vision config, for a model of other sizes
            than the library's own.
        strides: of a CNN's feature maps, finest first (they are laid onto the finest one's grid); empty for a ViT.
        patch, width, class_token: of a random tower.
        seed: of a random tower's values.
    """

    kind: str = "instructblip"
    name: str = ""
    weights: str = ""
    source: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    strides: tuple[int, ...] = ()
    patch: int = 14
    width: int = 32
    class_token: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _check_sizes("model.tower", {"patch": self.patch, "width": self.width})
        _check_sizes("model.tower.strides", dict(enumerate(self.strides)))
        # A checkpoint's config reaches this: it may say how large a model is, and nothing about where files are.
        sizes = (bool, int, float, str)
        for name, value in self.options.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            fits = all(isinstance(item, sizes) and (isinstance(item, str) or abs(item) <= _LARGEST) for item in values)
            if name in _TIMM_KEEPS or not fits:
                what = "is not a size of the model (a number, a word, or a list)"
                raise OsmError(f"model.tower.options: {name}: {shown(value)} {what}")


@dataclass(frozen=True)
class LlmConfig:
    """The frozen decoder-only LLM: a folder, a hub id or a GGUF file. `source` as for the tower.

    `quantization`: its weights in 8 or 4 bits, by bitsandbytes or torchao; empty = as they are (`osm.models.quantize`).
    `self_check`: compares cached, padded and embedded text with the plain computation when the model is built, once for
    each LLM (`osm.models.self_check`); false = the LLM is trusted.
    """

    name: str = ""
    source: str = ""
    quantization: str = ""
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.quantization and self.quantization not in QUANTIZATIONS:
            raise OsmError(
                f"model.llm.quantization {shown(self.quantization)} is not one of {', '.join(QUANTIZATIONS)}, or empty"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank changes of the LLM's matrices, trained beside the bridge (Hu et al., https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: of the changes; 0 = none, the LLM stays as it is. alpha: they count alpha / rank. dropout: before them.
        targets: the last part of the names of the LLM's matrices; empty = all linear layers but its head.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= 4096:
            raise OsmError(f"model.lora.rank {shown(self.rank)} is not 0 to 4096")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise OsmError(f"model.lora.alpha {self.alpha} must be over 0")
        if not 0 <= self.dropout < 1:
            raise OsmError(f"model.lora.dropout {self.dropout} is not between 0 and 1")
        if not self.rank and (self.alpha, self.dropout, self.targets) != (16.0, 0.0, ()):
            raise OsmError(
                "model.lora.rank is 0, so that the other settings of model.lora mean nothing; set it to 8, say"
            )


@dataclass(frozen=True)
class QFormerConfig:
    """The trainable MaskQ-Former. With an InstructBLIP base, all sizes but the dropout are the base's own.

    `instruction_dim` > 0 factorises the instruction's word embedding (vocabulary x dim, dim x width), which keeps the
    bridge small when the instruction goes through an LLM's large vocabulary.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    cross_attention_frequency: int = 2
    mask_queries: int = 32
    context_queries: int = 32
    dropout: float = 0.1
    instruction_dim: int = 0

    def __post_init__(self) -> None:
        names = "layers width heads mlp_width cross_attention_frequency mask_queries context_queries"
        _check_sizes("model.qformer", {name: getattr(self, name) for name in names.split()})
        _check_layers("model.qformer.layers", self.layers)
        if not 0 <= self.dropout < 1:
            raise OsmError(f"model.qformer.dropout {self.dropout} is not between 0 and 1")
        if not 0 <= self.instruction_dim <= _LARGEST:
            raise OsmError(f"model.qformer.instruction_dim {shown(self.instruction_dim)} is not 0 to {_LARGEST}")


@dataclass(frozen=True)
class FlamingoConfig:
    """The trainable parts of variant `flamingo`.

    Attributes:
        width, heads, layers, mlp_width: of the resampler.
        queries: visual tokens a mask that it makes, beside the mode's.
        roi: cells a side of the grids that a mask and its context are pooled in.
        every: a gated block stands before every n-th layer of the LLM.
        gated_width, gated_heads, gated_mlp_width: of these blocks' attention and feed-forward.
        gate_gain: gates are tanh(gain * parameter); above 1 they open sooner, for trainings of few steps.
        dropout: of both.
    """

    width: int = 1024
    heads: int = 16
    layers: int = 4
    mlp_width: int = 4096
    queries: int = 32
    roi: int = 4
    every: int = 4
    gated_width: int = 1024
    gated_heads: int = 16
    gated_mlp_width: int = 4096
    gate_gain: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        names = "width heads layers mlp_width queries roi every gated_width gated_heads gated_mlp_width"
        _check_sizes("model.flamingo", {name: getattr(self, name) for name in names.split()})
        _check_layers("model.flamingo.layers", self.layers)
        if self.roi > 32:
            raise OsmError(f"model.flamingo.roi {self.roi} is over 32: twice its square are the tokens of each mask")
        for width, heads in (("width", "heads"), ("gated_width", "gated_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise OsmError(
                    f"model.flamingo.{width} {getattr(self, width)} is not a multiple of model.flamingo.{heads} "
                    f"{getattr(self, heads)}"
                )
        if not 0 <= self.dropout < 1:
            raise OsmError(f"model.flamingo.dropout {self.dropout} is not between 0 and 1")
        if not 0 < self.gate_gain <= 1000:
            raise OsmError(f"model.flamingo.gate_gain {self.gate_gain} is not over 0 and at most 1000")


VARIANTS = ("maskqformer", "flamingo")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what a model computes.

    Attributes:
        variant: the bridge between tower and LLM, `maskqformer` or `flamingo`; `qformer` and `flamingo` are its sizes.
            `lora`: what is trained within the LLM, beside it.
        base_model_name: an InstructBLIP id or folder that brings tower, LLM and Q-Former; empty = `tower` and `llm`.
        input_size: S, the side of the square canvas in pixels.
        sliding_window_size, sliding_window_stride: w and s, in pixels.
        mask_to_grid: `nearest` (published) or `area` (a cell counts with any coverage; the flamingo's by how much).
        context_enlarge_ratio: how far the context box reaches beyond the mask's; < 0 = the whole canvas.
        modes: the answer styles, each with its own learned embeddings; `any` is always one of them.
    """

    variant: str = "maskqformer"
    base_model_name: str = ""
    input_size: int = 1120
    sliding_window_size: int = 224
    sliding_window_stride: int = 224
    mask_to_grid: str = "nearest"
    context_enlarge_ratio: float = 0.5
    tower: TowerConfig = field(default_factory=TowerConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    flamingo: FlamingoConfig = field(default_factory=FlamingoConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    modes: tuple[str, ...] = PUBLISHED_MODES

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise OsmError(f"model.variant {self.variant!r} is not known; the variants are {', '.join(VARIANTS)}")
        if self.mask_to_grid not in ("nearest", "area"):
            raise OsmError(f"model.mask_to_grid {self.mask_to_grid!r} is not nearest or area")
        other, sizes = ("flamingo", FlamingoConfig()) if self.variant == "maskqformer" else ("qformer", QFormerConfig())
        if getattr(self, other) != sizes:
            raise OsmError(f"model.{other} has no effect with model.variant {self.variant!r}: leave one of them out")
        if self.llm.quantization and self.base_model_name:
            raise OsmError(
                f"model.llm.quantization {self.llm.quantization!r}: an LLM that an InstructBLIP brings "
                f"(model.base_model_name {self.base_model_name!r}) is not quantised; name tower and llm by themselves"
            )
        if self.variant == "flamingo" and self.mask_to_grid != "area":
            raise OsmError(
                f"model.mask_to_grid {self.mask_to_grid!r}: variant flamingo weighs cells by their area; set it to area"
            )
        if self.input_size > _LARGEST:
            raise OsmError(f"--input_size {shown(self.input_size)} is over {_LARGEST}")
        if not math.isfinite(self.context_enlarge_ratio):
            raise OsmError(f"--context_enlarge_ratio {self.context_enlarge_ratio} is not a finite number")
        if not 1 <= self.sliding_window_size <= self.input_size:
            raise OsmError(
                f"--sliding_window_size {self.sliding_window_size} must lie between 1 and --input_size "
                f"{self.input_size}"
            )
        if self.sliding_window_size > _LARGEST_WINDOW:
            raise OsmError(f"--sliding_window_size {self.sliding_window_size} is over {_LARGEST_WINDOW}")
        if not 1 <= self.sliding_window_stride <= self.sliding_window_size:
            raise OsmError(
                f"--sliding_window_stride {self.sliding_window_stride} must lie between 1 and --sliding_window_size "
                f"{self.sliding_window_size}, or parts of the image would be seen by no window"
            )
        if not self.base_model_name and self.tower.kind == "instructblip":
            raise OsmError("model.base_model_name is empty, and model.tower.kind 'instructblip' takes its ViT from it")
        if self.tower.kind not in ("instructblip", "open_clip", "timm", "random"):
            raise OsmError(f"model.tower.kind {self.tower.kind!r} is not instructblip, open_clip, timm or random")
        if self.tower.kind == "open_clip" and self.tower.strides:
            raise OsmError(
                f"model.tower.strides {list(self.tower.strides)}: open_clip's ViTs have one grid; leave it empty"
            )
        if self.qformer.width % self.qformer.heads:
            raise OsmError(
                f"model.qformer.width {self.qformer.width} is not a multiple of model.qformer.heads "
                f"{self.qformer.heads}"
            )
        if ANY_MODE not in self.modes or len(set(self.modes)) != len(self.modes):
            raise OsmError(f"model.modes must name '{ANY_MODE}' and no mode twice, found {list(self.modes)}")

    def with_modes(self, names: typing.Iterable[str]) -> ModelConfig:
        """The config with a mode for each of `names` (those that are there keep their place)."""
        added = tuple(name for name in dict.fromkeys(names) if name not in self.modes)
        return dataclasses.replace(self, modes=self.modes + added)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a config dataclass from plain values, as they come from YAML or json.

    Raises:
        OsmError: an unknown field, or a value of another type, named with `where`.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise OsmError(f"{where}: expected a mapping of {', '.join(names)}, found {shown(values)}")
    for key in values:
        if key not in names:
            raise OsmError(f"{where}: unknown field {shown(key)}; the fields are {', '.join(names)}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise OsmError(f"{where}: expected a list, found {shown(value)}")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise OsmError(f"{where}: expected a mapping, found {shown(value)}")
        return {key: _convert(typing.get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as a string
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise OsmError(f"{where}: expected {hint.__name__}, found {shown(value)}")


def find_config(name: str) -> Path:
    """The path of a config: an existing file, the copy of one at a URL, or the name of one in the project's `configs/`
    (`osm`, `osm_small`, ...).

    Raises:
        OsmError: neither a file nor such a name.
    """
    if is_remote(name):
        if suffix_of(name) not in (".yaml", ".yml"):
            raise OsmError(f"config {public(name)}: expected a name that ends in .yaml")
        return localize(name, "config")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        check_regular_file(path, "config")
        if path.is_file():
            return path
        raise OsmError(f"config {name!r}: no such file")
    for folder in _config_folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    shipped = [path.stem for path in config_paths()]
    raise OsmError(f"config {name!r} is neither a .yaml file nor one of the project's: {', '.join(shipped)}")


def config_paths() -> list[Path]:
    """Return the paths of the project's own configs, sorted by name."""
    found = {path.stem: path for folder in reversed(_config_folders()) for path in folder.glob("osm*.yaml")}
    return [found[name] for name in sorted(found)]


def _config_folders() -> list[Path]:
    # Installed, the top-level configs/ is the package osm.configs; in a checkout it lies beside osm/.
    package = Path(str(resources.files("osm")))
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_yaml(name: str) -> dict[str, Any]:
    """A config file as a mapping of its sections (`model`, `training`).

    Raises:
        OsmError: not found, not YAML, or a section that is not known.
    """
    path = find_config(name)
    document = read_yaml(path, "config")
    if not isinstance(document, dict):
        raise OsmError(f"config {path}: expected the sections 'model' and 'training', found {shown(document)}")
    for section in document:
        if section not in ("model", "training"):
            raise OsmError(f"config {path}: unknown section {shown(section)}; the sections are model and training")
    sections = {section: {} if values is None else values for section, values in document.items()}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise OsmError(f"config {path}: {section} has to be a mapping, found {shown(values)}")
    return sections


def load_model_config(name: str, **overrides: Any) -> ModelConfig:
    """The model section of a config, with those `overrides` that are not None in place of its fields."""
    section = {**load_yaml(name).get("model", {}), **{k: v for k, v in overrides.items() if v is not None}}
    return from_dict(ModelConfig, section, f"config {name}: model")


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, for YAML and json; of URLs without what signs them."""
    plain: dict[str, Any] = _without_signatures(dataclasses.asdict(config))
    return plain


def _without_signatures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_signatures(one) for key, one in value.items()}
    return public_text(value) if isinstance(value, str) else value
