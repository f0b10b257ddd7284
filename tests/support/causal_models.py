"""Every causal language model of transformers, small: a few thousand weights, with each kind of layer that it has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class NotSmall(Exception):
    """A model type that these fields do not make small."""


TOO_LARGE = 3_000_000
WIDTH, HEADS, LAYERS = 32, 4, 2

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads"), HEADS // 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "global_head_dim", "kv_channels", "rotary_dim"), WIDTH // HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("sliding_window", "attention_window", "attention_chunk_size", "attention_window_size"), 4),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout", "attn_pdrop"), 0.0),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Latent attention.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    # Layers with a state.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    # What changes logits, scores and embeddings, at values that cannot be overlooked.
    "logits_scaling": 2.5,
    "logit_scale": 0.4,
    "lm_head_multiplier": 0.4,
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap"), 3.0),
    "attn_logit_softcapping": 1.5,
    "attention_multiplier": 0.5,
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.7,
    "query_pre_attn_scalar": 16,
    "scale_emb": 1.5,
    "use_sliding_window": True,
    "max_window_layers": 1,
}
"""Whatever of this a model's architecture has."""

LATENT = {"num_key_value_heads": HEADS, "head_dim": 8}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "youtu"), LATENT
    ),
    "minicpm3": {**LATENT, "dim_model_base": 16},
    "mamba2": {"expand": 1, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen2_moe": {"use_sliding_window": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["linear_attention", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What some model types need besides."""

WITHOUT = {"falcon": ("head_dim",), "gpt_neo": ("attention_window",), "minicpm3": ("logits_scaling",)}
"""What some model types derive from other fields."""


def small_config(kind: str, **fields: Any) -> PretrainedConfig:
    """A small architecture of a model type, with each of its kinds of layers once."""
    made = CONFIG_MAPPING[kind]
    default = made()
    names = {*dir(made), *vars(default)}.difference(WITHOUT.get(kind, ()))
    known = {name: value for name, value in SMALL.items() if name in names}
    layers = list(dict.fromkeys(vars(default).get("layer_types") or ()))
    if len(layers) > 1:
        known |= {"layer_types": layers, "num_hidden_layers": len(layers)}
    return made(**{**known, **SPECIAL.get(kind, {}), **fields})


def small_model(kind: str, attention: str | None = None, **fields: Any) -> Any:
    """A small model of this type, with random weights, biases, norms and stored buffers by torch's seed."""
    config = small_config(kind, **fields)
    with torch.device("meta"):
        weights = sum(
            p.numel() for p in AutoModelForCausalLM.from_config(config, attn_implementation=attention).parameters()
        )
    if weights > TOO_LARGE:
        raise NotSmall(f"{kind}: {weights} weights")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        kept = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in kept and buffer.is_floating_point():
                buffer.add_(0.1 * torch.rand_like(buffer))
    return model
