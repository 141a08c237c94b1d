"""Builds models from a config, a published base model, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn

from osm.config import find_config
from osm.data.processor import Processor
from osm.errors import OsmError, SampleError
from osm.models import checkpoint
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.llm import check_complete, load_llm, unused_packages, use_tokenizer
from osm.models.model_config import ModelConfig, TowerConfig, load_model_config
from osm.models.osm import OmniScientModel
from osm.models.probability_calibration import ProbabilityCalibration
from osm.models.random_values import trained_model
from osm.models.self_check import check_model
from osm.models.sizes import check_checkpoint, check_room
from osm.models.towers import TOWERS
from osm.models.towers.tower import Tower, check_tokens
from osm.models.weights import (
    Found,
    from_pretrained_options,
    hub_options,
    load_first,
    model_options,
)
from osm.shipped import shipped_model
from osm.startup import without_unused
from osm.storage.locations import is_remote, public

PUBLISHED_BASE = "Salesforce/instructblip-vicuna-7b"


def create_model_and_transforms(
    base_model_name: str = PUBLISHED_BASE,
    input_size: int | None = None,
    sliding_window_size: int | None = None,
    sliding_window_stride: int | None = None,
    *,
    backbone_output_stride: int | None = None,
    backbone_output_channel: int | None = None,
    maskqformer_channel: int | None = None,
    llm_channel: int | None = None,
    **overrides: Any,
) -> tuple[OmniScientModel, Processor]:
    """Build an untrained model and the processor that prepares its inputs.

    Args:
        base_model_name: an InstructBLIP (hub id or folder), a config of this package (`osm_small`), or a YAML file.
        input_size: S in pixels; None = the value in the config.
        sliding_window_size: w in pixels; None = the value in the config.
        sliding_window_stride: s in pixels; None = the value in the config.
        backbone_output_stride: the expected patch size of the tower (a published flag).
        backbone_output_channel: the expected width of the tower (a published flag).
        maskqformer_channel: the expected width of the bridge (a published flag).
        llm_channel: the expected width of the LLM (a published flag).
        overrides: other fields of `ModelConfig`.

    Raises:
        OsmError: weights are not found, or sizes do not fit together.
    """
    sizes: dict[str, Any] = {
        "input_size": input_size,
        "sliding_window_size": sliding_window_size,
        "sliding_window_stride": sliding_window_stride,
    }
    model, processor = build(base_config(base_model_name, **sizes, **overrides))
    check_widths(model, backbone_output_stride, backbone_output_channel, maskqformer_channel, llm_channel)
    return model, processor


def base_config(
    base_model_name: str, default: str = "osm", settings: Sequence[str] = (), **overrides: Any
) -> ModelConfig:
    """Read the model config for a base model.

    Args:
        base_model_name: a config of this package, a YAML file, or an InstructBLIP (hub id or folder).
        default: the config that is used with an InstructBLIP.
        settings: values of `--set` (see `osm.config.apply_settings`).
        overrides: fields of `ModelConfig` that override the fields of the file; None is ignored.
    """
    try:
        find_config(base_model_name)
    except OsmError:
        if Path(base_model_name).suffix in (".yaml", ".yml"):
            raise
        return load_model_config(default, settings, **{**overrides, "base_model_name": base_model_name})
    return load_model_config(base_model_name, settings, **overrides)


def check_widths(
    model: OmniScientModel, stride: int | None, channel: int | None, qformer: int | None, llm: int | None
) -> None:
    """Raise OsmError if a size given by a flag of the published code differs from the model's size.

    Flags that are None were not given, so they are not checked.
    """
    llm_part: Any = model.llm
    actual = {
        "--backbone_output_stride": (stride, model.tower.patch),
        "--backbone_output_channel": (channel, model.tower.width),
        "--maskqformer_channel": (qformer, getattr(model.bridge.config, "width", 0)),
        "--llm_channel": (llm, llm_part.get_input_embeddings().embedding_dim),
    }
    for flag, (given, found) in actual.items():
        if given is not None and given != found:
            raise OsmError(f"{flag} is {given}, but the base model's value is {found}")


def build(config: ModelConfig) -> tuple[OmniScientModel, Processor]:
    """Build an untrained model and its processor from a config. The torch seed determines the bridge's initial weights.

    Raises:
        OsmError: weights are not found; sizes do not fit together or do not fit the weights; the model does not fit
            into memory; or the LLM fails `osm.models.self_check`.
    """
    check_room(config)
    # LoRA is added by peft, which needs accelerate. Nothing is known about the packages that an InstructBLIP needs.
    any_package = bool(config.base_model_name or config.lora.rank)
    with without_unused("transformers", () if any_package else unused_packages(config.llm)):
        model, processor = _build_instructblip(config) if config.base_model_name else _build_parts(config)
        if config.llm.self_check:
            check_model(model)
    return model, processor


def _build_parts(config: ModelConfig) -> tuple[OmniScientModel, Processor]:
    tower, tower_config = build_tower(config)
    llm: Any
    llm, tokenizer, llm_config = load_llm(config.llm)
    config = replace(config, tower=tower_config, llm=llm_config)
    vocabulary = max(llm.get_input_embeddings().num_embeddings, len(tokenizer))
    kind: type[Bridge] = BRIDGES.get(config.bridge.kind)
    bridge = kind.of(config, tower, llm, vocabulary)
    use_tokenizer(llm, tokenizer, config.llm.name)
    model = OmniScientModel(tower, bridge, llm, config).eval()
    processor = _processor(model, tokenizer, None)
    _start_names(model, processor)
    return model, processor


def _start_names(model: OmniScientModel, processor: Processor) -> None:
    """Initialize the known names of the bridge's direct path, if there are any, from the names' tokens."""
    names = getattr(model.bridge.config, "direct_names", ())
    if not names:
        return
    try:
        ids = [processor.answer_ids(name) for name in names]
    except SampleError as error:
        raise OsmError(f"model.bridge.direct_names: {error}") from None
    llm: Any = model.llm
    model.bridge.match_names(llm.get_input_embeddings(), ids)


def _processor(model: OmniScientModel, tokenizer: Any, qformer_tokenizer: Any) -> Processor:
    tower, config, has_prefix = model.tower, model.config, model.bridge.has_prefix
    return Processor(
        tokenizer,
        qformer_tokenizer,
        config.input_size,
        tower.mean,
        tower.std,
        has_prefix,
        config.prompt,
        config.prompt_first,
    )


def build_tower(config: ModelConfig) -> tuple[Tower, TowerConfig]:
    """Build the tower for a config without an InstructBLIP base model, and test it on one window of zeros.

    Returns:
        (tower, its config with `source` filled in).

    Raises:
        OsmError: the kind of tower is unknown, the weights are not found or do not fit, or the tokens have unexpected
            shapes.
    """
    section, window = config.tower, config.sliding_window_size
    kind: type[Tower] = TOWERS.get(section.kind)
    tower = kind.of(section, window)
    if not any(True for _ in tower.parameters()):
        raise OsmError(f"model.tower.kind {section.kind!r}: this tower has no parameters, but at least one is required")
    check_tokens(tower, window, f"model.tower {section.name or section.kind!r} with windows of {window} pixels")
    return tower, replace(section, source=tower.source) if tower.source else section


def _build_instructblip(config: ModelConfig) -> tuple[OmniScientModel, Processor]:
    from transformers import AutoTokenizer, InstructBlipForConditionalGeneration

    def load(place: Found) -> tuple[Any, Any, Any]:
        options = from_pretrained_options(place)
        loaded: Any = InstructBlipForConditionalGeneration.from_pretrained(
            place.location, dtype=torch.float32, output_loading_info=True, **model_options(place)
        )
        base, info = loaded
        check_complete(info, place.location)
        return (
            base,
            AutoTokenizer.from_pretrained(place.location, **options),
            AutoTokenizer.from_pretrained(place.location, subfolder="qformer_tokenizer", **options),
        )

    _, (base, tokenizer, qformer_tokenizer) = load_first(config.base_model_name, "", load)
    use_tokenizer(base.language_model, tokenizer, config.base_model_name)
    model = OmniScientModel.from_instructblip(
        base, config.input_size, config.sliding_window_size, config.sliding_window_stride, config=config
    )
    processor = _processor(model, tokenizer, qformer_tokenizer)
    _start_names(model, processor)
    return model, processor


def load_model(
    name: str | Path, config: str | None = None, settings: Sequence[str] = ()
) -> tuple[OmniScientModel, Processor, dict[str, Any]]:
    """Load a trained model from a folder written by `save_pretrained`, from the hub, or from a `.pt` checkpoint.

    Args:
        name: the folder, the id of a hub repository with such a folder, or the `.pt` file. A folder or file may be
            given by its URL.
        config: the model config for a `.pt` file without its own config, such as the published files [osm].
        settings: values of `--set` that override fields of `config`.

    Returns:
        (model in eval mode, processor, the other entries of the file).

    Raises:
        OsmError: the checkpoint is not found, does not fit its config, or was trained with different frozen parts; or
            settings are given, but the checkpoint has its own config.
    """
    path = Path(checkpoint.localized(name, "checkpoint"))
    if path.suffix in checkpoint.FILES:
        document = checkpoint.read_published(path)
        if "config" in document and config is None:
            _refuse(settings, name)
            own = checkpoint.model_config(document["config"], f"checkpoint {path}")
            check_checkpoint(own, document["model_state_dict"], f"checkpoint {path}")
            with trained_model():
                model, processor = build(own)
            checkpoint.check_frozen(model, document["config"], f"checkpoint {path}")
            model.calibration = ProbabilityCalibration.from_document(document["config"], f"checkpoint {path}")
        else:
            model, processor = build(base_config(config or "osm", settings=settings))
        checkpoint.load_published_state_dict(model, document.pop("model_state_dict"), f"checkpoint {path}")
        return model.eval(), processor, document
    _refuse(settings, name)
    model, loaded = load_folder(path if is_remote(name) else name)
    assert loaded is not None
    return model, loaded, {}


def _refuse(settings: Sequence[str], name: str | Path) -> None:
    if settings:
        raise OsmError(
            f"--set {settings[0]}: the checkpoint {public(str(name))} has its own model config, which --set cannot "
            "change; --set only changes settings in the --config file"
        )


def model_folder(
    name: str | Path, files: Sequence[str] = ("config.json", "model.safetensors"), revision: str | None = None
) -> Path:
    """Return the local folder of a trained model, which is downloaded if it is a URL or in a hub repository.

    Args:
        name: the folder, its URL, the hub id, or the name of a model of this package.
        files: the names or patterns of the files that are downloaded from a hub repository.
        revision: a branch, tag or commit of a hub repository; None = its newest.

    Raises:
        OsmError: the folder or repository does not exist.
    """
    name = checkpoint.localized(name, "checkpoint")
    folder = shipped_model(name) or Path(name)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or str(name).count("/") != 1:
            raise OsmError(f"checkpoint {str(name)!r}: no such folder, and not a hub id (owner/name)")
        try:
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=list(files), **hub_options()))
        except (OSError, ValueError) as error:
            raise OsmError(
                f"checkpoint {str(name)!r}: no such folder, and it cannot be loaded from the hub ({error})"
            ) from None
    return folder


def load_folder(name: str | Path, base_model: nn.Module | None = None) -> tuple[OmniScientModel, Processor | None]:
    """Load a model from a local folder or a hub repository in the format of `save_pretrained`.

    Args:
        name: the folder, its URL, or the hub id.
        base_model: the InstructBLIP that provides the frozen parts. None = load the frozen parts named in the config.

    Returns:
        (model, processor). The processor is None if `base_model` is given, because its tokenizers are not known.

    Raises:
        OsmError: the folder or repository does not exist, or the frozen parts differ from the frozen parts that the
            bridge was trained with.
    """
    folder = model_folder(name)
    document, state = checkpoint.read_folder(folder)
    config = checkpoint.model_config(document, f"{folder}/config.json")
    check_checkpoint(config, state, f"{folder}/model.safetensors")
    processor = None
    if base_model is None:
        with trained_model():
            model, processor = build(config)
    else:
        sizes = (config.input_size, config.sliding_window_size, config.sliding_window_stride)
        model = OmniScientModel.from_instructblip(base_model, *sizes, config=config)
    checkpoint.check_frozen(model, document, str(folder))
    checkpoint.load_published_state_dict(model, state, f"{folder}/model.safetensors")
    model.calibration = ProbabilityCalibration.from_document(document, f"{folder}/config.json")
    return model.eval(), processor


def pick_device(device: str) -> torch.device:
    """Return the torch device with a given name. `auto` selects the first available of cuda, mps and cpu.

    Raises:
        OsmError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(device.split(":")[0], False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise OsmError(f"--device {device!r} is not available; choose one of auto, {there}")
    return torch.device(device)
