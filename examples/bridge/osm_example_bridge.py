"""A small bridge: the mean token of the mask and of its context become one embedding before the LLM's text."""

from dataclasses import dataclass

import torch
from torch import nn

from osm.models.bridges.bridge import Bridge, Condition, check_names, lookup
from osm.models.masks import visible_keys
from osm.models.model_config import BridgeConfig, check_sizes


@dataclass(frozen=True)
class MaskMeanConfig(BridgeConfig):
    """`width` is the width of the hidden layer."""

    width: int = 64

    def __post_init__(self):
        check_sizes(self, "width")


class MaskMeanBridge(Bridge):
    Config = MaskMeanConfig
    prefix_length = 2  # the mask's embedding, then the mode's

    def __init__(self, config, modes, token_width, llm_width):
        super().__init__()
        check_names(modes)
        self.config = config
        self.mode_query = nn.ParameterDict({mode: nn.Parameter(torch.randn(1, 1, llm_width) * 0.02) for mode in modes})
        self.hidden, self.output = nn.Linear(2 * token_width, config.width), nn.Linear(config.width, llm_width)

    @classmethod
    def of(cls, config, tower, llm, vocabulary):
        return cls(config.bridge, config.modes, tower.width, llm.get_input_embeddings().embedding_dim)

    @classmethod
    def blank(cls, config, size):
        return cls(config.bridge, config.modes, size("window_pos_embed", 3, -1), size("output.weight", 2, 0))

    def mask_features(self, mask_R1SS, context_R1SS, patch, prefix, how):
        return visible_keys(mask_R1SS, context_R1SS, patch, prefix, how)

    def image_state(self, tokens_NLC):
        return [(tokens_NLC.to(self.output.weight.dtype),)]

    def forward(self, state, image_index_R, features, instruction, modes):
        tokens_RLC = state[0][0][image_index_R]
        weights = [keys_RL.to(tokens_RLC) for keys_RL in (features.mask_RL, features.context_RL)]
        means = [torch.einsum("rl,rlc->rc", w / w.sum(1, keepdim=True), tokens_RLC) for w in weights]
        embedding_R1W = self.output(nn.functional.gelu(self.hidden(torch.cat(means, 1))))[:, None]
        return Condition(torch.cat([embedding_R1W, lookup(self.mode_query, modes)], 1))

    def layers(self):
        return []
