"""Model config: the frozen tower and LLM, the trained bridge and LoRA, and the sizes that they share.

The config section of each tower or bridge has the key `kind`. `TOWERS` and `BRIDGES` map kinds to classes, and each
class's `Config` attribute is the dataclass for its settings. Because classes are looked up by kind,
`osm.models.model_config` does not import any specific tower or bridge.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osm.config import FieldError, choice, from_dict, load_yaml
from osm.datasets.table import ANY_MODE, PUBLISHED_MODES
from osm.errors import OsmError, shown
from osm.models import old_keys
from osm.models.bridges import BRIDGES
from osm.models.towers import TOWERS
from osm.registry import Registry, is_import_path

LARGEST = 1 << 16
"""The largest size allowed in a config. Sizes are limited because a checkpoint's config is not trusted."""
_LARGEST_WINDOW = 1 << 13  # in pixels; a ViT's attention is quadratic in the number of patches of a window
_MOST_LAYERS = 1024
LONGEST_PROMPT = 80
"""The maximum length of a prompt in characters."""
QUANTIZATIONS = ("bnb_int8", "bnb_nf4", "torchao_int8", "torchao_int4")


def check_sizes(config: Any, names: str) -> None:
    """Raise FieldError unless every field in `names` (space-separated) is between 1 and 65536."""
    for name in names.split():
        size = getattr(config, name)
        if not 1 <= size <= LARGEST:
            raise FieldError(f"{name} {shown(size)} is not 1 to {LARGEST}")


def check_prompt(prompt: Any, where: str) -> None:
    """Raise OsmError unless a prompt is a short line, without spaces at its ends, or empty."""
    good = isinstance(prompt, str) and len(prompt) <= LONGEST_PROMPT and prompt == prompt.strip()
    if not good or not prompt.isprintable():
        raise OsmError(
            f"{where} {shown(prompt)}: expected a line of at most {LONGEST_PROMPT} characters without spaces at its "
            "ends, such as 'Name:', or an empty text for the published prompts"
        )


def check_layers(config: Any) -> None:
    """Raise FieldError if there are more than 1024 layers, because building even tiny layers takes time."""
    if config.layers > _MOST_LAYERS:
        raise FieldError(f"layers {config.layers} exceeds the maximum of {_MOST_LAYERS}")


def check_dropout(config: Any) -> None:
    """Raise FieldError unless the dropout is at least 0 and less than 1."""
    if not 0 <= config.dropout < 1:
        raise FieldError(f"dropout {config.dropout} is not between 0 and 1")


def check_heads(config: Any, width: str, heads: str) -> None:
    """Raise FieldError unless the field named by `width` is a multiple of the field named by `heads`."""
    if getattr(config, width) % getattr(config, heads):
        raise FieldError(f"{width} {getattr(config, width)} is not a multiple of {heads} {getattr(config, heads)}")


@dataclass(frozen=True)
class TowerConfig:
    """Settings for the frozen vision tower. Each kind of tower has its own subclass of `TowerConfig`.

    Attributes:
        kind: the name of the tower's class in `TOWERS`, or `module:Class`.
        name: the model's name in the library that builds the tower.
        source: where the weights come from. Empty = the first source that has the weights, in the order local folder,
            this package, hub, pip package (`osm.models.weights`).
    """

    kind: str = field(default="", kw_only=True)
    name: str = ""
    source: str = ""

    @classmethod
    def resolve(cls, values: Any, where: str) -> tuple[type[TowerConfig], Any, dict[str, str]]:
        """Return the config class for a section's `kind`, and the section's values (see `osm.config.from_dict`)."""
        if cls is not TowerConfig:
            return cls, values, {}
        chosen, given = _of_kind(TOWERS, values, where)
        return chosen, old_keys.tower_fields(chosen, given, where), {}

    def stored(self) -> dict[str, Any]:
        """Return the config values in the layout that checkpoints use."""
        return old_keys.stored_tower(dataclasses.asdict(self))

    def check_model(self, model: ModelConfig) -> None:
        """Raise OsmError if other settings of the model are incompatible with this tower."""

    def token_shape(self, input_size: int) -> tuple[int, int] | None:
        """Return (number of patch tokens, width) for an input size, or None if unknown before the tower is built."""
        return None

    def least_parameters(self) -> int:
        """Return a lower bound on the parameter count, or 0 if the count is unknown before the tower is built."""
        return 0


@dataclass(frozen=True)
class BridgeConfig:
    """Settings for the trained bridge between tower and LLM. Each kind of bridge has its own `BridgeConfig` subclass.

    Attributes:
        kind: the name of the bridge's class in `BRIDGES`, or `module:Class`.
    """

    kind: str = field(default="", kw_only=True)

    @classmethod
    def resolve(cls, values: Any, where: str) -> tuple[type[BridgeConfig], Any, dict[str, str]]:
        """Return the config class for a section's `kind`, and the section's values (see `osm.config.from_dict`)."""
        return *(_of_kind(BRIDGES, values, where) if cls is BridgeConfig else (cls, values)), {}

    def check_model(self, model: ModelConfig) -> None:
        """Raise OsmError if other settings of the model are incompatible with this bridge."""

    def least_parameters(self) -> int:
        """Return a lower bound on the parameter count, ignoring parameters that depend on the tower or the LLM."""
        return 0

    def layer_count(self) -> int:
        """Return the number of layers. A checkpoint must have at least as many tensors as its bridge has layers."""
        return 0


def check_area_weights(bridge: BridgeConfig, model: ModelConfig) -> None:
    """Raise OsmError unless `mask_to_grid` is `area`, for bridges that support nothing else."""
    if model.mask_to_grid != "area":
        raise OsmError(
            f"model.mask_to_grid {model.mask_to_grid!r}: the {bridge.kind} bridge requires 'area', because it weights "
            "grid cells by their covered area"
        )


def _of_kind(registry: Registry[Any], values: Any, where: str) -> tuple[type, Any]:
    """Return the config class for a section's kind (or for the default kind), and the section with the kind filled in.

    A section that is not a mapping is returned unchanged, because `from_dict` will report the error.
    """
    kind = values.get("kind", registry.default) if isinstance(values, Mapping) else registry.default
    if not isinstance(kind, str):
        raise OsmError(f"{where}.kind: expected str, found {shown(kind)}")
    try:
        chosen = registry.get(kind)
    except OsmError as error:
        raise OsmError(f"{where}.kind: {error}") from None
    return chosen.Config, {**values, "kind": kind} if isinstance(values, Mapping) else values


@dataclass(frozen=True)
class LlmConfig:
    """Settings for the frozen decoder-only LLM.

    Attributes:
        name: a folder, a hub id or a GGUF file.
        source: where the weights come from, as in `TowerConfig.source`.
        quantization: the method that stores the weights in 8 or 4 bits, with bitsandbytes or torchao
            (`osm.models.quantize`). Empty = the weights are not quantized.
        self_check: whether `osm.models.self_check` compares cached, padded and embedded text with the plain computation
            when the model is built, once per LLM. false = the LLM is trusted without a check.
    """

    name: str = ""
    source: str = ""
    quantization: str = choice("", ("", *QUANTIZATIONS))
    self_check: bool = True

    def __post_init__(self) -> None:
        if self.quantization and self.quantization not in QUANTIZATIONS:
            raise OsmError(
                f"model.llm.quantization {shown(self.quantization)} must be empty or one of {', '.join(QUANTIZATIONS)}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Settings for LoRA (https://arxiv.org/abs/2106.09685): low-rank LLM updates that are trained with the bridge.

    Attributes:
        rank: the rank of the updates. 0 = no LoRA, so the LLM stays unchanged.
        alpha: the updates are scaled by alpha / rank.
        dropout: the dropout on the input of the updates.
        targets: the last component of the names of the matrices that get updates. Empty = all linear layers except the
            LM head.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= 4096:
            raise OsmError(f"model.lora.rank {shown(self.rank)} is not between 0 and 4096")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise OsmError(f"model.lora.alpha {self.alpha} must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise OsmError(f"model.lora.dropout {self.dropout} is not between 0 and 1")
        if not self.rank and (self.alpha, self.dropout, self.targets) != (16.0, 0.0, ()):
            raise OsmError(
                "model.lora.rank is 0, so the other settings of model.lora have no effect; set it to 8, for example"
            )


@dataclass(frozen=True)
class ModelConfig:
    """All settings that determine what a model computes.

    Attributes:
        base_model_name: an InstructBLIP (hub id or folder) that provides the tower, the LLM and the Q-Former. Empty =
            the model is built from `tower` and `llm`.
        input_size: S, the side of the square canvas in pixels.
        sliding_window_size: w, the side of a window in pixels.
        sliding_window_stride: s, the distance between neighboring windows in pixels.
        mask_to_grid: how a mask selects cells of the tower's grid. `nearest` is the published rule, which tests one
            pixel of each cell. With `area`, every cell that the mask touches is selected; the bridge `flamingo` weights
            the cells by the covered area.
        context_enlarge_ratio: how much the mask's bounding box grows on each side to become the context box, as a share
            of the bounding box's size; < 0 = the context is the whole canvas.
        tower: the frozen vision tower.
        llm: the frozen LLM.
        bridge: the trained bridge between tower and LLM.
        lora: trained low-rank updates of the LLM.
        modes: the answer styles, each with its own learned embeddings. The list always contains `any`.
        prompt: the prompt for every mask and box, in training and in naming. A short one, such as `Name:`, makes naming
            faster. If empty, the published prompts are used.
        prompt_first: whether BOS and the prompt come before the bridge's embeddings instead of after them. A small LLM
            on a CPU (`osm.models.fast_llama`) then computes these positions once for all masks of a batch. Training
            may only supervise the answer.
    """

    base_model_name: str = ""
    input_size: int = 1120
    sliding_window_size: int = 224
    sliding_window_stride: int = 224
    mask_to_grid: str = choice("nearest", ("nearest", "area"))
    context_enlarge_ratio: float = 0.5
    tower: TowerConfig = field(default_factory=lambda: from_dict(TowerConfig, {}, "model.tower"))
    llm: LlmConfig = field(default_factory=LlmConfig)
    bridge: BridgeConfig = field(default_factory=lambda: from_dict(BridgeConfig, {}, "model.bridge"))
    lora: LoraConfig = field(default_factory=LoraConfig)
    modes: tuple[str, ...] = PUBLISHED_MODES
    prompt: str = ""
    prompt_first: bool = False

    @classmethod
    def resolve(cls, values: Any, where: str) -> tuple[type[ModelConfig], Any, dict[str, str]]:
        """Return the model's config class, and the config values with old keys renamed (see `osm.config.from_dict`)."""
        return cls, *old_keys.renamed(values, where)

    def stored(self) -> dict[str, Any]:
        """Return the config values in the layout that checkpoints use."""
        return old_keys.stored_model(dataclasses.asdict(self), self.tower.stored())

    def __post_init__(self) -> None:
        if self.mask_to_grid not in ("nearest", "area"):
            raise OsmError(f"model.mask_to_grid {self.mask_to_grid!r} must be nearest or area")
        if self.llm.quantization and self.base_model_name:
            raise OsmError(
                f"model.llm.quantization {self.llm.quantization!r}: the LLM of an InstructBLIP model "
                f"(model.base_model_name {self.base_model_name!r}) cannot be quantized; set model.tower and model.llm "
                "instead"
            )
        check_prompt(self.prompt, "model.prompt")
        if self.prompt_first and not self.prompt:
            raise OsmError(
                "model.prompt_first true needs a prompt that is the same for all masks; set model.prompt, or "
                "set model.prompt_first to false"
            )
        self.bridge.check_model(self)
        if self.input_size > LARGEST:
            raise OsmError(f"--input_size {shown(self.input_size)} exceeds the maximum of {LARGEST}")
        if not math.isfinite(self.context_enlarge_ratio):
            raise OsmError(f"--context_enlarge_ratio {self.context_enlarge_ratio} is not a finite number")
        if not 1 <= self.sliding_window_size <= self.input_size:
            raise OsmError(
                f"--sliding_window_size {self.sliding_window_size} must be between 1 and the --input_size "
                f"({self.input_size})"
            )
        if self.sliding_window_size > _LARGEST_WINDOW:
            raise OsmError(f"--sliding_window_size {self.sliding_window_size} exceeds the maximum of {_LARGEST_WINDOW}")
        if not 1 <= self.sliding_window_stride <= self.sliding_window_size:
            raise OsmError(
                f"--sliding_window_stride {self.sliding_window_stride} must be between 1 and the --sliding_window_size "
                f"({self.sliding_window_size}); with a larger stride, some parts of the image would not be covered"
            )
        self.tower.check_model(self)
        if ANY_MODE not in self.modes or len(set(self.modes)) != len(self.modes):
            raise OsmError(
                f"model.modes must contain '{ANY_MODE}' and must not contain duplicates; found {list(self.modes)}"
            )

    def with_modes(self, names: Iterable[str]) -> ModelConfig:
        """Return a copy of the config with the modes `names` added. Existing modes keep their positions."""
        added = tuple(name for name in dict.fromkeys(names) if name not in self.modes)
        return dataclasses.replace(self, modes=self.modes + added)


def load_model_config(name: str, settings: Sequence[str] = (), **overrides: Any) -> ModelConfig:
    """Read the model section of a config.

    Args:
        name: the name of the config, as in `osm.config.find_config`.
        settings: values of `--set` (see `osm.config.apply_settings`).
        overrides: fields of `ModelConfig` (plain values) that override the fields of the file; None is ignored.

    Raises:
        OsmError: the config is not found, or a field is unknown or invalid.
    """
    where = f"config {name}: model"
    section = load_yaml(name, settings).get("model", {})
    old_keys.report(section, where)
    given = {key: value for key, value in overrides.items() if value is not None}
    return from_dict(ModelConfig, old_keys.overlaid(section, given, where), where)


def stored_model_config(section: Any, where: str) -> ModelConfig:
    """Build the model config from the config section stored in a checkpoint.

    Earlier versions stored the same fields for every kind of tower, so fields that do not apply to the config's tower
    are ignored.

    Raises:
        OsmError: a field is unknown or invalid, or a kind is a `module:Class` that has not been imported yet. A
            checkpoint is not trusted, so reading a checkpoint never imports a module that the checkpoint names.
    """
    for part, registry in (("tower", TOWERS), ("bridge", BRIDGES)):
        inner = section.get(part) if isinstance(section, Mapping) else None
        kind = inner.get("kind") if isinstance(inner, Mapping) else None
        if isinstance(kind, str) and is_import_path(kind) and kind.partition(":")[0] not in sys.modules:
            raise OsmError(
                f"{where}.{part}.kind {shown(kind)}: modules that a checkpoint names are not imported automatically; "
                f"import {kind.partition(':')[0]} first, or install the {registry.kind} as an entry point of "
                f"{registry.group}"
            )
    return from_dict(ModelConfig, old_keys.without_unused(section), where)
