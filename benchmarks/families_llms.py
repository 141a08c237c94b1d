"""Tiny LLMs of many families, with random float32 weights and a few layers, which `families.py` tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny import BOS, EOS, PAD, randomise, tiny_tokenizer  # noqa: E402

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_NO_GROUPS = {"num_key_value_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1},
    **{"topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16},
}


@dataclass(frozen=True)
class Family:
    """One LLM architecture of transformers.

    Attributes:
        model_type: its name in transformers. `name` is set if this is not unique.
        changes: settings of its config besides the usual sizes.
        plain: its config has only the settings in `changes`, and none of the usual sizes.
    """

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    plain: bool = False

    @property
    def key(self) -> str:
        """The name of its row in the table."""
        return self.name or self.model_type


def _gpt(model_type: str, **changes: Any) -> Family:
    """Return a family related to GPT-2, whose config has other names for the sizes."""
    return Family(model_type, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **changes}, plain=True)


_FAMILIES = (
    Family("llama"),
    Family("mistral", {"sliding_window": 8}),
    Family("ministral3"),
    Family("mixtral", _LOCAL_EXPERTS),
    Family("qwen2"),
    Family("qwen3", {"head_dim": 8}),
    Family("qwen3_moe", {**_EXPERTS, "head_dim": 8, "decoder_sparse_step": 1}),
    Family("gemma", {"head_dim": 8}),
    Family("gemma2", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    Family("gemma3_text", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    Family("phi", _NO_GROUPS),
    Family("phi3"),
    Family("phimoe", _LOCAL_EXPERTS),
    _gpt("gpt2"),
    Family("gpt_neox", {"rotary_pct": 0.5}),
    _gpt("gptj", rotary_dim=4),
    Family(
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"max_position_embeddings": 128, "intermediate_size": 64, "window_size": 8},
        plain=True,
    ),
    _gpt("gpt_bigcode"),
    _gpt("codegen", rotary_dim=4),
    Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, name="opt (projected)"),
    Family("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, plain=True),
    Family("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    Family("falcon", {"alibi": True, "multi_query": False, "bias": True}, name="falcon (alibi)"),
    Family("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2}, plain=True),
    Family("stablelm"),
    Family("olmo2"),
    Family("olmo3", {"sliding_window": 8}),
    Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("smollm3"),
    Family("granite"),
    Family("granitemoe", _LOCAL_EXPERTS),
    Family("starcoder2", {"sliding_window": None}),
    Family("cohere"),
    Family("cohere2", {"head_dim": 8, "sliding_window": 8}),
    Family("deepseek_v2", {**_LATENT, "topk_method": "greedy"}),
    Family("deepseek_v3", _LATENT),
    Family("gpt_oss", {**_LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 8}),
    Family(
        "llama4_text",
        {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1},
    ),
    Family("glm4", {"head_dim": 8}),
    Family("glm4_moe", {**_LATENT, "num_key_value_heads": 2, "head_dim": 8}),
    Family("exaone4", {"sliding_window": 8, "sliding_window_pattern": 2, "head_dim": 8}),
    Family(
        "xglm",
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4} | {"max_position_embeddings": 128},
        plain=True,
    ),
    Family("biogpt", _NO_GROUPS),
    Family("persimmon", _NO_GROUPS),
    Family("nemotron", {"head_dim": 8}),
    Family("ernie4_5", {"head_dim": 8}),
    Family("hunyuan_v1_dense", {"head_dim": 8}),
    Family("apertus"),
    Family("helium", {"head_dim": 8}),
    Family("seed_oss", {"head_dim": 8}),
    Family("bitnet"),
    Family("dots1", {**_LATENT, "num_key_value_heads": 2, "head_dim": 8}),
    Family("diffllama"),
    Family("gemma4_text", {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "sliding_window": 8}),
    Family(
        "gemma4_text",
        {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "sliding_window": 8}
        | {"vocab_size_per_layer_input": 0},
        name="gemma4_text (per-layer embeddings)",
    ),
    Family(
        "gemma3n_text",
        {"head_dim": 8, "hidden_size_per_layer_input": 8, "laurel_rank": 8, "sliding_window": 8}
        | {"num_hidden_layers": 4, "intermediate_size": [64] * 4, "num_kv_shared_layers": 1}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4}
        | {"vocab_size_per_layer_input": 0, "altup_num_inputs": 2},
    ),
    Family(
        "qwen3_next",
        {**_EXPERTS, **_LINEAR, "head_dim": 8, "shared_expert_intermediate_size": 32}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    Family("qwen3_5_text", {**_LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    Family("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    Family("lfm2_moe", {**_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Family(
        "granitemoehybrid",
        {**_MAMBA, **_LOCAL_EXPERTS, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
    ),
    Family("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, plain=True),
    Family(
        "mamba2",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8}
        | {"n_groups": 1, "chunk_size": 8},
        plain=True,
    ),
    Family("falcon_mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, plain=True),
    Family(
        "jamba",
        {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    Family(
        "zamba",
        {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"], "attention_head_dim": 16}
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "n_mamba_heads": 2, "use_mamba_kernels": False}
        | {"attention_hidden_size": 64, "num_key_value_heads": 4},
    ),
    Family(
        "zamba2",
        {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2, "num_mem_blocks": 2}
        | {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8}
        | {"attention_head_dim": 16, "num_key_value_heads": 4, "adapter_rank": 4, "use_mamba_kernels": False},
    ),
    Family("bamba", {**_MAMBA, "attn_layer_indices": [1], "attn_rotary_emb": 4}),
    Family(
        "nemotron_h",
        {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mlp", "attention", "mlp"], "head_dim": 8}
        | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    Family("falcon_h1", {**_MAMBA, "mamba_d_ssm": 64, "head_dim": 8}),
    Family(
        "minimax",
        {**_LOCAL_EXPERTS, "head_dim": 8, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    Family(
        "recurrent_gemma",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16, "head_dim": 8}
        | {"block_types": ["recurrent", "recurrent", "attention"]},
    ),
    Family("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}, plain=True),
    _gpt("openai-gpt"),
    Family("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "dff": 64}, plain=True),
    Family("bert", {"intermediate_size": 64}, name="bert (encoder)"),
    Family("olmo"),
    Family("arcee"),
    Family("nanochat"),
    Family("ministral", {"head_dim": 8, "sliding_window": 8}),
)
FAMILIES = {family.key: family for family in _FAMILIES}


def tiny_llm_of(family: Family, folder: Path) -> nn.Module:
    """Save a random LLM of a family and its tokenizer in `folder`. Return the LLM in evaluation mode."""
    vocabulary = len(tiny_tokenizer(folder))
    values = {} if family.plain else dict(_SIZES)
    values |= family.changes
    if values.get("vocab_size_per_layer_input") == 0:
        values["vocab_size_per_layer_input"] = vocabulary
    config = AutoConfig.for_model(
        family.model_type, vocab_size=vocabulary, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        tie_word_embeddings=False, **values,
    )  # fmt: skip
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(llm, seed=0)
    llm.save_pretrained(folder)
    return llm
