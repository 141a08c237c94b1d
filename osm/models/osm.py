"""OmniScientModel, which names the object inside a mask of an image (arXiv 2311.08400).

Shapes: N images, R rows (masks to name), S input size, G windows, L = G * class tokens + (S/p)^2 image tokens,
C tower width, P prefix embeddings before BOS, T text tokens, W LLM width. B = N * G windows of side w, with D = 1 or 0
class tokens and M patches each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osm.config import as_dict
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models import llm as llms
from osm.models.bridges.bridge import Bridge, Condition, Instruction
from osm.models.bridges.direct import DirectPathConfig
from osm.models.bridges.known_names import NamesLoss
from osm.models.bridges.pooling import RegionFeatures
from osm.models.instructblip import take_apart
from osm.models.llm_forward import LlmInputs, word_embeddings
from osm.models.lora import add_lora, lora_parameters, train_dropout
from osm.models.losses import group_weights, reduce_losses
from osm.models.masks import MaskFeatures
from osm.models.model_config import ModelConfig
from osm.models.probability_calibration import ProbabilityCalibration
from osm.models.towers.tower import Tower, check_tokens
from osm.models.windows import SlidingWindows
from osm.models.zoom import zoom_tokens


class OmniScientModel(nn.Module):
    """A frozen vision tower and a frozen LLM, connected by a trainable bridge.

    Args:
        tower: the frozen vision tower.
        bridge: the trainable bridge. The only other trainable parts are `window_pos_embed` and LoRA.
        llm: the frozen LLM, a decoder-only causal LM from Hugging Face.
        config: the model config. `config.modes` must be the modes of the bridge.

    Raises:
        OsmError: the sizes of the parts do not fit together.
    """

    def __init__(self, tower: Tower, bridge: Bridge, llm: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.frozen_hashes: dict[str, str] = {}  # filled when a checkpoint is saved or compared
        self.calibration: ProbabilityCalibration | None = None  # set when a calibrated checkpoint is loaded
        tower.check_window(config.sliding_window_size)
        self.config = config
        self.windows = SlidingWindows(
            config.input_size, config.sliding_window_size, config.sliding_window_stride, tower.patch
        )
        named = config.tower.name or config.base_model_name or type(tower).__name__
        check_tokens(tower, config.sliding_window_size, f"tower {named!r} with windows of {config.sliding_window_size}")
        self.tower, self.bridge, self.llm = tower, bridge, llm
        self._check_zoom(named)
        if config.prompt_first and not bridge.has_prefix:
            raise OsmError(
                f"model.prompt_first true has no effect with the bridge {config.bridge.kind!r}, which puts no "
                "embeddings into the LLM's input; set model.prompt_first to false"
            )
        self.window_pos_embed = nn.Parameter(torch.zeros(1, self.prefix_tokens + self.windows.grid**2, tower.width))
        self.tower.requires_grad_(False).eval()
        self.llm.requires_grad_(False).eval()
        if lora_parameters(llm):
            raise OsmError("this LLM already contains the LoRA layers of another model; load the LLM again")
        if config.lora.rank:
            add_lora(llm, config.lora)
        self.bridge.attach(llm)

    def _check_zoom(self, named: str) -> None:
        """Raise OsmError if the tower, which is called `named` in messages, does not support the zoom windows."""
        if not self.zoom:
            return
        tower = self.tower
        classes = len(getattr(self.bridge.config, "direct_classes", ()))
        if classes and classes != tower.classes:
            raise OsmError(
                f"model.bridge.direct_classes has {classes} entries, but model.tower.classes of the tower {named!r} is "
                f"{tower.classes}; they have to be equal"
            )
        if self.zoom % tower.patch:
            raise OsmError(
                f"model.bridge.direct_zoom {self.zoom} is not a multiple of the tower's patch ({tower.patch})"
            )
        try:
            tower.check_window(self.zoom)
        except OsmError as error:
            reason = str(error).replace("--sliding_window_size", "model.bridge.direct_zoom")
            raise OsmError(reason) from None
        about = f"tower {named!r} with zoom windows of {self.zoom} (model.bridge.direct_zoom)"
        check_tokens(tower, self.zoom, about, tower.weight_files, repr(as_dict(self.config.tower)))

    @property
    def prefix_tokens(self) -> int:
        """The number of class tokens before the grid tokens: one per window, or 0 if the tower has no class token."""
        return self.windows.count * self.tower.class_tokens

    @property
    def device(self) -> torch.device:
        """The device of the trained parameters and of the model's outputs."""
        return self.window_pos_embed.device

    def train(self, mode: bool = True) -> OmniScientModel:
        """Set the bridge and LoRA's dropout to training mode or eval mode. The tower and the LLM stay in eval mode."""
        super().train(mode)
        self.tower.eval()
        self.llm.eval()
        train_dropout(self.llm, mode)
        return self

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """Cast the tower and the LLM to a dtype, except for a quantized LLM, LoRA's parameters and rotary frequencies.

        The frequencies of rotary embeddings stay in float32, because bfloat16 is too coarse for the angles at late
        positions.
        """
        self.tower.to(dtype)
        if not self.config.llm.quantization:
            with _kept_precise(self.llm):
                self.llm.to(dtype)

    # -- image -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        """Run the frozen tower on normalized images (N, 3, S, S).

        Returns:
            tokens (N, L, C): [class token of each window | grid tokens], both in row-major order.

        Raises:
            OsmError: the images have a different shape.
        """
        size = self.config.input_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise OsmError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected (N, 3, {size}, {size})")
        windows_B3ww = self.windows.split(pixel_values.to(next(self.tower.parameters()).dtype))
        prefix_BDC, patches_BMC = self.tower(windows_B3ww)
        prefix_NLC = prefix_BDC.reshape(len(pixel_values), self.prefix_tokens, patches_BMC.shape[-1])
        return torch.cat([prefix_NLC, self.windows.merge(patches_BMC)], 1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Encode images (N, 3, S, S) as image tokens (N, L, C), with the window position embedding added."""
        return self.add_positions(self.tower_tokens(pixel_values))

    def add_positions(self, tokens_NLC: Tensor) -> Tensor:
        """Add the learned window position embedding to image tokens, using the dtype of the embedding."""
        return tokens_NLC.to(self.window_pos_embed.dtype) + self.window_pos_embed

    # -- masks -------------------------------------------------------------------------------------------------------

    @property
    def zoom(self) -> int:
        """The side of the zoom windows in pixels (`osm.models.zoom`), or 0 if the model has no zoom windows."""
        return int(getattr(self.bridge.config, "direct_zoom", 0))

    @property
    def windows_per_mask(self) -> int:
        """The number of zoom windows of each mask."""
        return int(getattr(self.bridge.config, "windows_per_mask", 0))

    def mask_features(
        self,
        segmentation_mask: Tensor,
        input_context_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> MaskFeatures:
        """Compute the bridge's features from masks.

        Args:
            segmentation_mask: (R, 1, S, S), binary.
            input_context_mask: (R, 1, S, S), binary.
            pixel_values: (N, 3, S, S), the normalized images. Only models with zoom windows need them.
            image_index: (R,), the index of each mask's image. By default, mask i belongs to image i.

        Raises:
            OsmError: a mask has a different shape, or the model has zoom windows and there are no images.
            SampleError: a mask is empty.
        """
        size = self.config.input_size
        for name, mask in (("segmentation_mask", segmentation_mask), ("input_context_mask", input_context_mask)):
            if mask.ndim != 4 or tuple(mask.shape[1:]) != (1, size, size):
                raise OsmError(f"{name} has shape {tuple(mask.shape)}; expected (R, 1, {size}, {size})")
        features = self.bridge.mask_features(
            segmentation_mask, input_context_mask, self.tower.patch, self.prefix_tokens, self.config.mask_to_grid
        )
        if not self.zoom:
            return features
        if pixel_values is None:
            raise OsmError(f"pixel_values is missing: this model cuts a window of {self.zoom} pixels out for each mask")
        assert isinstance(features, RegionFeatures) and isinstance(self.bridge.config, DirectPathConfig)
        index_R = _image_index(image_index, len(pixel_values), features)
        of = self.bridge.config
        found = zoom_tokens(
            *(self.tower, pixel_values, index_R, segmentation_mask),
            *(of.direct_zoom, of.direct_zoom_enlarge, of.direct_zoom_cutout),
        )
        return replace(features, zoom_RUC=found.tokens_RUC, class_logits_RA=found.class_logits_RA)

    # -- text --------------------------------------------------------------------------------------------------------

    def llm_inputs(
        self, condition: Condition, input_ids: Tensor, attention_mask: Tensor, prompt_tokens: int | None = None
    ) -> LlmInputs:
        """Return the LLM's input: the embeddings [bridge prefix | text], and keys and values for the gated layers.

        With `model.prompt_first`, the embeddings are [BOS and prompt | bridge prefix | answer].

        Args:
            prompt_tokens: the number of tokens of BOS and prompt, which only models with `model.prompt_first` need. By
                default, the text has no answer.
        """
        embeds_RTW = word_embeddings(self.llm)(input_ids)
        first = 0
        if self.config.prompt_first:
            first = input_ids.shape[1] if prompt_tokens is None else prompt_tokens
        prefix_RPW = condition.prefix_RPW
        if prefix_RPW.shape[1]:
            embeds_RTW = _inserted(embeds_RTW, prefix_RPW.to(embeds_RTW), first)
            attention_mask = _inserted(attention_mask, attention_mask.new_ones(prefix_RPW.shape[:2]), first)
        return LlmInputs(embeds_RTW, attention_mask, condition.gated_kv, first)

    def row_losses(
        self,
        tokens_NLC: Tensor,
        image_index_R: Tensor,
        features: MaskFeatures,
        instruction: Instruction,
        modes: Sequence[str],
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        scored: bool = False,
        prompt_tokens: int | None = None,
        smoothing: float = 0.0,
        names: NamesLoss | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the result of `llm.token_losses` for each row, with the loss of the known names if `names` is given.

        The image tokens must already include the window position embedding. `prompt_tokens` is that of `llm_inputs`,
        and `smoothing` that of `llm.token_losses`.

        Raises:
            OsmError: the model has `model.prompt_first`, and `prompt_tokens` is missing.
        """
        if self.config.prompt_first and prompt_tokens is None:
            raise OsmError(
                "prompt_tokens is missing: in a model with model.prompt_first, the answer follows the bridge's "
                "embeddings; pass prompt_tokens=processor.prompt_tokens"
            )
        condition = self.bridge(self.bridge.image_state(tokens_NLC), image_index_R, features, instruction, modes)
        inputs = self.llm_inputs(condition, input_ids, attention_mask, prompt_tokens)
        ignored_RP = labels.new_full(condition.prefix_RPW.shape[:2], -100)
        labels = _inserted(labels, ignored_RP, inputs.constant)
        losses_R, *others = llms.token_losses(self.llm, inputs, labels, scored, smoothing)
        if names is not None and condition.name_logits_RK is not None:
            losses_R = names.add_to(losses_R, others[0], condition.name_logits_RK)
        return losses_R, *others

    # -- the published interface -------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        segmentation_mask: Tensor,
        input_context_mask: Tensor,
        dataset_type: str | Sequence[str] = "any",
        image_index: Tensor | None = None,
        prompt_tokens: int | None = None,
    ) -> Tensor:
        """Return the mean cross entropy per supervised token.

        In training, the loss is computed by the same functions, `group_weights` and `reduce_losses`, but
        `osm.training.task.MixLoss` also weights each dataset.

        Args:
            pixel_values: (N, 3, S, S), the normalized images.
            qformer_input_ids: (R, T'), the token ids of the instructions.
            qformer_attention_mask: (R, T'), 1 for instruction tokens, 0 for padding.
            input_ids: (R, T), the token ids of BOS, prompt, answer and end token.
            attention_mask: (R, T), 1 for tokens, 0 for padding.
            labels: (R, T), token ids, with -100 at positions that are not supervised.
            segmentation_mask: (R, 1, S, S), 1 inside the mask, else 0.
            input_context_mask: (R, 1, S, S), 1 inside the context box, else 0.
            dataset_type: one mode for all rows, or a list with the mode of each row.
            image_index: (R,), the index of each row's image. By default, row i belongs to image i.
            prompt_tokens: the number of tokens of BOS and prompt, which models with `model.prompt_first` need.

        Returns:
            the mean cross entropy over all supervised tokens, a scalar.
        """
        _check_index(image_index, len(pixel_values))
        tokens_NLC = self.encode_image(pixel_values)
        keys = self.mask_features(segmentation_mask, input_context_mask, pixel_values, image_index)
        losses_R, counts_R = self.row_losses(
            tokens_NLC,
            *_rows(image_index, len(tokens_NLC), keys, qformer_input_ids, qformer_attention_mask, dataset_type),
            input_ids,
            attention_mask,
            labels,
            prompt_tokens=prompt_tokens,
        )
        # All rows form one group, so the weighted sum is the mean over all supervised tokens.
        group_R = torch.zeros(len(losses_R), dtype=torch.long, device=losses_R.device)
        weights_R = group_weights(group_R, counts_R.sum()[None], torch.ones(1, device=losses_R.device))
        return reduce_losses(losses_R, weights_R)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        segmentation_mask: Tensor,
        input_context_mask: Tensor,
        dataset_type: str | Sequence[str] = "any",
        image_index: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Generate a name for each mask. The arguments are the same as for `forward`, without `labels`.

        Args:
            options: fields of `transformers.GenerationConfig`.

        Returns:
            the new token ids (R, new) without prompt and BOS; rows that ended early are padded. With
            `return_dict_in_generate=True`, a ModelOutput with `sequences` and, if requested, `scores` and `logits`.
        """
        _check_index(image_index, len(pixel_values))
        keys = self.mask_features(segmentation_mask, input_context_mask, pixel_values, image_index)
        tokens_NLC = self.encode_image(pixel_values)
        rows = _rows(image_index, len(tokens_NLC), keys, qformer_input_ids, qformer_attention_mask, dataset_type)
        condition = self.bridge(self.bridge.image_state(tokens_NLC), *rows)
        return self.generate_from(condition, input_ids, attention_mask, **options)

    @torch.no_grad()
    def generate_from(self, condition: Condition, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """Generate names from the bridge's output, so that several calls can share one image encoding."""
        inputs = self.llm_inputs(condition, input_ids, attention_mask)
        return llms.generate(self.llm, inputs, **{"max_new_tokens": 16, **options})

    # -- construction and files --------------------------------------------------------------------------------------

    @classmethod
    def from_instructblip(
        cls,
        base_model: nn.Module,
        input_size: int = 1120,
        sliding_window_size: int = 224,
        sliding_window_stride: int = 224,
        *,
        config: ModelConfig | None = None,
    ) -> OmniScientModel:
        """Build the published model from a `transformers.InstructBlipForConditionalGeneration` of any size.

        The Q-Former, `language_projection` and the query tokens are copied from the base model. With the `flamingo`
        bridge, only the ViT and the LLM of the base model are used. As in the published code, `window_pos_embed` is
        initialized from N(0, 1). `config` sets the fields that the base model does not determine (modes, mask_to_grid,
        dropout). The model is returned in eval mode.

        Raises:
            OsmError: the base model is not an InstructBLIP, or the sizes in the config do not fit the base model.
        """
        sizes: dict[str, Any] = {
            "input_size": input_size,
            "sliding_window_size": sliding_window_size,
            "sliding_window_stride": sliding_window_stride,
        }
        name = getattr(base_model, "name_or_path", "") or "an InstructBLIP that was handed in"
        config = replace(config or ModelConfig(base_model_name=name), **sizes)
        tower, bridge, config = take_apart(base_model, config)
        base: Any = base_model  # `take_apart` checked that the base model has the parts used below
        model = cls(tower, bridge, base.language_model, config)
        nn.init.normal_(model.window_pos_embed)
        return model.to(base.query_tokens.device).eval()

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return only the trained parameters, under their published names (see `osm.models.checkpoint`)."""
        return checkpoint.published_state_dict(self)

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Load a published checkpoint file, or a checkpoint written by `train.py`, into this model.

        Returns:
            the other entries of the file (epoch, optimizer state, ...).

        Raises:
            OsmError: the file is not a checkpoint, or entries are missing, unexpected or have a different shape (the
                message lists these entries).
        """
        return checkpoint.load_published(self, path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a folder that `osm.load_model` can load.

        `config.json` contains the config and the hashes of the frozen tower and LLM. `model.safetensors` contains only
        the trained parameters.
        """
        checkpoint.save_folder(self, Path(folder))


@contextlib.contextmanager
def _kept_precise(llm: nn.Module) -> Iterator[None]:
    """Keep LoRA's parameters and the rotary frequencies unchanged while the LLM is cast to another dtype."""
    trained = {name: parameter.data for name, parameter in lora_parameters(llm).items()}
    rotary = [
        (module, name, buffer)
        for module in llm.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    yield
    for name, parameter in lora_parameters(llm).items():
        parameter.data = trained[name]
    for module, name, buffer in rotary:
        setattr(module, name, buffer)


def _inserted(x_RT: Tensor, middle_RP: Tensor, place: int) -> Tensor:
    """Return `x_RT`, which may have more axes, with further positions inserted at a place."""
    return torch.cat([x_RT[:, :place], middle_RP, x_RT[:, place:]], 1)


def _modes(dataset_type: str | Sequence[str], rows: int) -> list[str]:
    modes = [dataset_type] * rows if isinstance(dataset_type, str) else list(dataset_type)
    if len(modes) != rows:
        raise OsmError(f"dataset_type contains {len(modes)} modes, but there are {rows} masks")
    return modes


def _rows(
    image_index: Tensor | None,
    images: int,
    keys: MaskFeatures,
    ids_RT: Tensor,
    mask_RT: Tensor,
    dataset_type: str | Sequence[str],
) -> tuple[Tensor, MaskFeatures, Instruction, list[str]]:
    """Convert the arguments of `forward` to those of the bridge, except for the image state."""
    instruction = Instruction(ids_RT, mask_RT)
    return _image_index(image_index, images, keys), keys, instruction, _modes(dataset_type, len(keys))


def _check_index(image_index: Tensor | None, images: int) -> None:
    """Raise OsmError if an index is not that of an image; a kernel might read other memory."""
    if image_index is None or not len(image_index):
        return
    low, high = int(image_index.min()), int(image_index.max())
    if low < 0 or high >= images:
        raise OsmError(f"image_index has values from {low} to {high}; expected 0 to {images - 1}, one for each image")


def _image_index(image_index: Tensor | None, images: int, keys: MaskFeatures) -> Tensor:
    if image_index is None:
        if images != len(keys):
            raise OsmError(
                f"there are {len(keys)} masks for {images} images; pass image_index, which gives each mask's image"
            )
        return torch.arange(images, device=keys.device)
    return image_index.to(keys.device)
