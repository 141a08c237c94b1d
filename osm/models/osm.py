"""OmniScientModel: image and mask in, name out (arXiv 2311.08400).

Shapes: N images, R rows (masks to name), S input size, G windows, L = G * class tokens + (S/p)^2 image tokens,
C tower width, P prefix embeddings before BOS, T text tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osm.config import ModelConfig
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models import llm as llms
from osm.models.bridges.bridge import Bridge, Condition, Instruction
from osm.models.bridges.instructblip import take_apart
from osm.models.llm import LlmInputs
from osm.models.lora import add_lora, lora_parameters, train_dropout
from osm.models.masks import MaskFeatures
from osm.models.towers.tower import Tower, check_tokens
from osm.models.windows import SlidingWindows


class OmniScientModel(nn.Module):
    """Frozen tower and LLM with a trainable bridge between them.

    Args:
        tower: the frozen vision tower.
        bridge: the trainable part but for `window_pos_embed`.
        llm: a frozen Hugging Face decoder-only causal LM.
        config: sizes, modes and rules; `config.modes` must be the bridge's.

    Raises:
        OsmError: sizes that do not fit each other.
    """

    def __init__(self, tower: Tower, bridge: Bridge, llm: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        tower.check_window(config.sliding_window_size)
        self.config = config
        self.windows = SlidingWindows(
            config.input_size, config.sliding_window_size, config.sliding_window_stride, tower.patch
        )
        named = config.tower.name or config.base_model_name or type(tower).__name__
        check_tokens(tower, config.sliding_window_size, f"tower {named!r} with windows of {config.sliding_window_size}")
        self.tower, self.bridge, self.llm = tower, bridge, llm
        self.window_pos_embed = nn.Parameter(torch.zeros(1, self.prefix_tokens + self.windows.grid**2, tower.width))
        self.tower.requires_grad_(False).eval()
        self.llm.requires_grad_(False).eval()
        if lora_parameters(llm):
            raise OsmError("this LLM has LoRA's changes of another model within it; load it anew")
        if config.lora.rank:
            add_lora(llm, config.lora)
        self.bridge.attach(llm)

    @property
    def prefix_tokens(self) -> int:
        """Class tokens in front of the grid: G where the tower has one, else 0."""
        return self.windows.count * self.tower.class_tokens

    @property
    def device(self) -> torch.device:
        return self.window_pos_embed.device

    def train(self, mode: bool = True) -> OmniScientModel:
        """As usual, but the frozen parts stay in eval mode."""
        super().train(mode)
        self.tower.eval()
        self.llm.eval()
        train_dropout(self.llm, mode)
        return self

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """Keeps the frozen parts in another precision; not an LLM in 8 or 4 bits, nor what LoRA trains in it.

        The frequencies of rotary embeddings stay in float32. In bfloat16 the angles of later positions would be wrong.
        """
        self.tower.to(dtype)
        if not self.config.llm.quantization:
            with _kept_precise(self.llm):
                self.llm.to(dtype)

    # -- image -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S), normalised -> frozen tokens (N, L, C): [class token of every window | grid], row-major."""
        size = self.config.input_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise OsmError(f"pixel_values has shape {tuple(pixel_values.shape)}, (N, 3, {size}, {size}) needed")
        windows = self.windows.split(pixel_values.to(next(self.tower.parameters()).dtype))
        prefix, patches = self.tower(windows)
        prefix = prefix.reshape(len(pixel_values), self.prefix_tokens, patches.shape[-1])
        return torch.cat([prefix, self.windows.merge(patches)], 1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) -> image tokens (N, L, C), window position embedding added."""
        return self.add_positions(self.tower_tokens(pixel_values))

    def add_positions(self, tokens_NLC: Tensor) -> Tensor:
        return tokens_NLC.to(self.window_pos_embed.dtype) + self.window_pos_embed

    # -- masks -------------------------------------------------------------------------------------------------------

    def mask_features(self, segmentation_mask: Tensor, input_context_mask: Tensor) -> MaskFeatures:
        """Masks (R, 1, S, S) of 0 and 1 -> what the bridge needs of each row's."""
        size = self.config.input_size
        for name, mask in (("segmentation_mask", segmentation_mask), ("input_context_mask", input_context_mask)):
            if mask.ndim != 4 or tuple(mask.shape[1:]) != (1, size, size):
                raise OsmError(f"{name} has shape {tuple(mask.shape)}, (R, 1, {size}, {size}) needed")
        return self.bridge.mask_features(
            segmentation_mask, input_context_mask, self.tower.patch, self.prefix_tokens, self.config.mask_to_grid
        )

    # -- text --------------------------------------------------------------------------------------------------------

    def llm_inputs(self, condition: Condition, input_ids: Tensor, attention_mask: Tensor) -> LlmInputs:
        """[bridge's prefix | text] as embeddings, for the LLM, and what its gated layers see."""
        embeds = self.llm.get_input_embeddings()(input_ids)
        prefix = condition.prefix_RPW
        if prefix.shape[1]:
            embeds = torch.cat([prefix.to(embeds), embeds], 1)
            attention_mask = torch.cat([attention_mask.new_ones(prefix.shape[:2]), attention_mask], 1)
        return LlmInputs(embeds, attention_mask, condition.gated_kv)

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
    ) -> tuple[Tensor, ...]:
        """What `llm.token_losses` gives for each row, from image tokens with positions added."""
        condition = self.bridge(self.bridge.image_state(tokens_NLC), image_index_R, features, instruction, modes)
        inputs = self.llm_inputs(condition, input_ids, attention_mask)
        ignored = labels.new_full(condition.prefix_RPW.shape[:2], -100)
        return llms.token_losses(self.llm, inputs, torch.cat([ignored, labels], 1), scored)

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
    ) -> Tensor:
        """The training loss.

        Args:
            pixel_values: (N, 3, S, S), normalised.
            qformer_input_ids, qformer_attention_mask: (R, T'), the instruction.
            input_ids, attention_mask: (R, T), BOS, prompt, answer and end token.
            labels: (R, T), -100 where not supervised.
            segmentation_mask, input_context_mask: (R, 1, S, S) of 0 and 1.
            dataset_type: one mode, or one a row.
            image_index: (R,), each row's image; by default row i is of image i.

        Returns:
            the mean cross entropy over all supervised tokens, a scalar.
        """
        tokens = self.encode_image(pixel_values)
        keys = self.mask_features(segmentation_mask, input_context_mask)
        losses, counts = self.row_losses(
            tokens,
            _image_index(image_index, len(tokens), keys),
            keys,
            Instruction(qformer_input_ids, qformer_attention_mask),
            _modes(dataset_type, len(keys)),
            input_ids,
            attention_mask,
            labels,
        )
        return losses.sum() / counts.sum().clamp(min=1)

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
        """Names masks; arguments as for `forward`, and those of `transformers.GenerationConfig`.

        Returns:
            the new ids (R, new): no prompt, no BOS; rows that ended early are padded. With
            `return_dict_in_generate=True` a ModelOutput (`sequences`; `scores`, `logits` on request).
        """
        keys = self.mask_features(segmentation_mask, input_context_mask)
        tokens = self.encode_image(pixel_values)
        condition = self.bridge(
            self.bridge.image_state(tokens),
            _image_index(image_index, len(tokens), keys),
            keys,
            Instruction(qformer_input_ids, qformer_attention_mask),
            _modes(dataset_type, len(keys)),
        )
        return self.generate_from(condition, input_ids, attention_mask, **options)

    @torch.no_grad()
    def generate_from(self, condition: Condition, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """Generation from the bridge's output, for callers that compute an image's part once."""
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
        """Builds the published model around a `transformers.InstructBlipForConditionalGeneration` of any size.

        The Q-Former, `language_projection` and the query tokens are copied from it (variant `flamingo` takes its ViT
        and LLM alone); `window_pos_embed` starts N(0, 1) as published; the model is in eval mode. `config` may set what
        the base does not (modes, mask_to_grid, dropout).

        Raises:
            OsmError: a base model of another kind, or sizes that do not fit it.
        """
        sizes = {
            "input_size": input_size,
            "sliding_window_size": sliding_window_size,
            "sliding_window_stride": sliding_window_stride,
        }
        name = getattr(base_model, "name_or_path", "") or "an InstructBLIP that was handed in"
        config = checkpoint.replace_fields(config or ModelConfig(base_model_name=name), **sizes)
        tower, bridge, config = take_apart(base_model, config)
        model = cls(tower, bridge, base_model.language_model, config)
        nn.init.normal_(model.window_pos_embed)
        return model.to(base_model.query_tokens.device).eval()

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """What is trained, and nothing else, under the published names (see `osm.models.checkpoint`)."""
        return checkpoint.published_state_dict(self)

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Loads a published checkpoint file (or one of `train.py`) into this model.

        Returns:
            what else the file holds (epoch, optimizer state, ...).

        Raises:
            OsmError: not a checkpoint, or every missing, unexpected and misshapen entry by name.
        """
        return checkpoint.load_published(self, path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors (trained parts alone); the config holds the frozen parts' hashes."""
        checkpoint.save_folder(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str | torch.device = "cpu", base_model: nn.Module | None = None
    ) -> OmniScientModel:
        """Loads a folder of `save_pretrained`, or a hub id that holds one, in eval mode.

        Args:
            base_model: the InstructBLIP to build around, where it should not be looked for by its name.

        Raises:
            OsmError: no such checkpoint, or frozen parts that are not those it was trained with.
        """
        from osm.models.factory import load_folder

        return load_folder(name, base_model)[0].to(device)


@contextlib.contextmanager
def _kept_precise(llm: nn.Module) -> Iterator[None]:
    """Keeps LoRA's values and the frequencies of rotary embeddings as they are while the rest is cast."""
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


def _modes(dataset_type: str | Sequence[str], rows: int) -> list[str]:
    modes = [dataset_type] * rows if isinstance(dataset_type, str) else list(dataset_type)
    if len(modes) != rows:
        raise OsmError(f"dataset_type names {len(modes)} modes, but there are {rows} masks")
    return modes


def _image_index(image_index: Tensor | None, images: int, keys: MaskFeatures) -> Tensor:
    if image_index is None:
        if images != len(keys):
            raise OsmError(f"{len(keys)} masks for {images} images: image_index must say which is of which")
        return torch.arange(images, device=keys.device)
    return image_index.to(keys.device)
