"""A trained model as a transformers model, for `AutoModel` and `AutoProcessor`.

A folder that `osm export --format hf` writes has a file `modeling_osm.py`, which imports these classes. transformers
loads that file if it gets `trust_remote_code=True`; this package never sets that flag. The frozen parts are not in the
folder. They are loaded as by `osm.load_model`, and checked against the hashes in `config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PretrainedConfig, PreTrainedModel

from osm.data.processor import Processor
from osm.errors import OsmError, shown
from osm.files import read_json, write_atomically
from osm.io.any_mask import as_mask
from osm.models.factory import load_model, model_folder
from osm.models.masks import context_mask
from osm.models.model_config import check_prompt
from osm.models.osm import OmniScientModel
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer

PROCESSOR_FILE = "processor_config.json"
TOKENIZER, QFORMER_TOKENIZER = "tokenizer", "qformer_tokenizer"
_SETTINGS = {"input_size", "mean", "std", "has_prefix", "context_enlarge_ratio"}
MODULE = "modeling_osm"
"""The name of the file in an exported folder that imports this module."""
# What transformers passes on for its own use.
_PASSED_ON = {
    "config",
    "trust_remote_code",
    "code_revision",
    "adapter_kwargs",
    "_commit_hash",
    "_from_auto",
    "revision",
    "key_mapping",
}


class HfOsmConfig(PretrainedConfig):
    """The `config.json` of an exported model. `osm.load_model` reads its fields `format`, `model` and `frozen`."""

    model_type = "osm"


class HfOsmModel(PreTrainedModel):
    """An `OmniScientModel` behind the interface of transformers.

    Args:
        config: the config of the folder.
        model: the loaded model.
        processor: the image and text transforms of the model.
    """

    config_class = HfOsmConfig
    base_model_prefix = "model"

    def __init__(self, config: HfOsmConfig, model: OmniScientModel, processor: Processor) -> None:
        super().__init__(config)
        self.model = model
        self._recognizer = Recognizer(model, processor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Self:  # type: ignore[override]
        """Load a folder or a hub repository that `osm export --format hf` has written, in eval mode and on the CPU.

        Raises:
            OsmError: an option of transformers is not supported; or see `osm.load_model`.
        """
        _check_options(args, options)
        folder = model_folder(pretrained_model_name_or_path, revision=options.get("revision"))
        model, processor, _ = load_model(folder)
        config = options.get("config") or HfOsmConfig.from_pretrained(folder)
        return cls(config, model, processor).eval()

    def forward(self, **inputs: Any) -> Tensor:
        """Return the loss of `OmniScientModel.forward`, whose arguments these are."""
        loss: Tensor = self.model(**inputs)
        return loss

    @torch.no_grad()
    def generate(self, **inputs: Any) -> Any:
        """Return the token ids of `OmniScientModel.generate`, whose arguments these are."""
        return self.model.generate(**inputs)

    def name(self, image: Any, masks: Sequence[Any] | None = None, **options: Any) -> list[list[Recognition]]:
        """Name the masks, boxes or points in an image.

        Args:
            image: an image, or the path of one.
            masks: the masks; see `Recognizer.name`.
            options: the other arguments of `Recognizer.name`.
        """
        self._recognizer.set_image(image)
        return self._recognizer.name(masks, **options)


class HfOsmProcessor:
    """The image and text transforms of an exported model.

    Args:
        processor: the transforms.
        context_enlarge_ratio: how much the mask's bounding box grows to become the context box; see `ModelConfig`.
    """

    def __init__(self, processor: Processor, context_enlarge_ratio: float) -> None:
        self.processor, self.context_enlarge_ratio = processor, context_enlarge_ratio
        self.tokenizer = processor.tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Self:
        """Load the tokenizers and settings of a folder or a hub repository. The model is not loaded.

        Raises:
            OsmError: an option of transformers is not supported, or a file is missing or incomplete.
        """
        patterns = [PROCESSOR_FILE, f"{TOKENIZER}/*", f"{QFORMER_TOKENIZER}/*"]
        _check_options((), options)
        place = model_folder(pretrained_model_name_or_path, patterns, options.get("revision"))
        settings = read_json(place / PROCESSOR_FILE, "processor")[0]
        lacking = sorted(_SETTINGS - set(settings if isinstance(settings, dict) else ()))
        if lacking:
            raise OsmError(f"{place / PROCESSOR_FILE}: lacks {lacking[0]}; osm export --format hf writes this file")
        prompt = settings.get("prompt", "")  # not in the files of earlier code versions
        check_prompt(prompt, f"{place / PROCESSOR_FILE}: prompt")
        prompt_first = settings.get("prompt_first", False)
        if not isinstance(prompt_first, bool) or (prompt_first and not prompt):
            raise OsmError(
                f"{place / PROCESSOR_FILE}: prompt_first {shown(prompt_first)}: expected false or, with a prompt, true"
            )
        qformer = None
        if (place / QFORMER_TOKENIZER).is_dir():
            qformer = AutoTokenizer.from_pretrained(place / QFORMER_TOKENIZER)
        processor = Processor(
            AutoTokenizer.from_pretrained(place / TOKENIZER),
            qformer,
            settings["input_size"],
            settings["mean"],
            settings["std"],
            settings["has_prefix"],
            prompt,
            prompt_first,
        )
        return cls(processor, settings["context_enlarge_ratio"])

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing. transformers calls this method, whose result only matters for its own `save_pretrained`."""

    def __call__(self, images: Sequence[Image.Image], masks: Sequence[Sequence[Any]], prompt: str = "") -> BatchFeature:
        """Return the inputs of `HfOsmModel.generate`.

        Args:
            images: the images.
            masks: the masks of each image, with the image's size.
            prompt: the prompt for all masks; if empty, the model's own prompt.

        Raises:
            OsmError: the number of lists of masks is not that of the images, or a mask has another size.
        """
        if len(images) != len(masks):
            raise OsmError(f"there are {len(images)} images, but {len(masks)} lists of masks")
        canvas = torch.stack([self.processor.canvas(image) for image in images])
        parts = [
            self.processor.canvas_masks(np.stack([as_mask(mask, image.size[::-1], "mask") for mask in few]))
            for image, few in zip(images, masks, strict=True)
            if len(few)
        ]
        if not parts:
            raise OsmError("there are no masks")
        masks_R1SS = torch.cat(parts)
        text = self.processor.prompts([prompt or self.processor.naming_prompt()] * len(masks_R1SS))
        counts = torch.tensor([len(few) for few in masks])
        return BatchFeature(
            {
                "pixel_values": self.processor.pixel_values(canvas),
                "segmentation_mask": masks_R1SS,
                "input_context_mask": context_mask(masks_R1SS, self.context_enlarge_ratio),
                "image_index": torch.arange(len(images)).repeat_interleave(counts),
                "input_ids": text.input_ids,
                "attention_mask": text.attention_mask,
                "qformer_input_ids": text.qformer_ids,
                "qformer_attention_mask": text.qformer_mask,
            }
        )

    def batch_decode(self, ids: Any) -> list[str]:
        """Return the names of generated token ids."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _check_options(args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Raise OsmError for an option of `from_pretrained` that would have no effect."""
    unknown = sorted(name for name, value in options.items() if name not in _PASSED_ON and value is not None)
    if args or unknown:
        named = unknown[0] if unknown else shown(args[0])
        raise OsmError(
            f"from_pretrained: {named} is not supported for this model; move the loaded model with `.to(...)`, "
            "or use osm.load_recognizer, which has options for devices"
        )


def save_processor(processor: Processor, context_enlarge_ratio: float, folder: Path) -> None:
    """Write the tokenizers and settings that `HfOsmProcessor.from_pretrained` reads."""
    processor.tokenizer.save_pretrained(folder / TOKENIZER)
    if processor.qformer_tokenizer is not None:
        processor.qformer_tokenizer.save_pretrained(folder / QFORMER_TOKENIZER)
    settings = {
        "processor_class": "HfOsmProcessor",
        "auto_map": {"AutoProcessor": f"{MODULE}.HfOsmProcessor"},
        "input_size": processor.input_size,
        "mean": list(processor.mean),
        "std": list(processor.std),
        "has_prefix": processor.has_prefix,
        "prompt": processor.prompt,
        "prompt_first": processor.prompt_first,
        "context_enlarge_ratio": context_enlarge_ratio,
    }
    write_atomically(folder / PROCESSOR_FILE, [json.dumps(settings, indent=1), "\n"])
