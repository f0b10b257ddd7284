"""The causal language models of transformers that OneDiff supports, and how each computes logits from its head's output.

A model type is supported if OneDiff computes the same loss as the model's own class, alone and in a packed row, and
generates the same tokens. Tests compare every model type of transformers with these lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onediff.config.parallel import check_heads
from onediff.errors import UserError

_PACKED = """
    afmoe apertus arcee aria_text axk1 axk2 beam biogpt bitnet codegen cohere cohere2 cohere2_moe cwm deepseek_v2
    deepseek_v3 deepseek_v32 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint gemma gemma2
    gemma3_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
    gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama mellum
    mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mpt nanochat nemotron
    olmo olmo2 olmo3 olmoe opt persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open
    stablelm starcoder2 vaultgemma xglm youtu
"""
PACKED = frozenset(_PACKED.split())
"""Model types whose samples can be packed into rows."""

_ONE_A_ROW = """
    bloom doge falcon falcon_mamba granitemoehybrid jamba lfm2 lfm2_moe lfm3 llama4_text mamba mamba2 olmo_hybrid
    phimoe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv zaya
"""
ONE_A_ROW = frozenset(_ONE_A_ROW.split())
"""Model types that carry a state, a window or a bias from one sample of a packed row into the next."""

COVERED = PACKED | ONE_A_ROW

_CUT = """
    arcee cohere cohere2 cwm ernie4_5 exaone4 flint gemma gemma2 gemma3_text gpt_neox granite helium hyperclovax
    internlm3 iquestcoder jais2 llama ministral ministral3 mistral nanochat nemotron olmo phi qwen2 qwen3 smollm3
    starcoder2 vaultgemma youtu
"""
CUT = frozenset(_CUT.split())
"""Model types tested to have the same loss and gradients at every tensor-parallel size."""

_SHARED = """
    arcee cohere cohere2 cwm deepseek_v3 ernie4_5 exaone4 gemma gemma3_text glm glm4 gpt_neox granite helium
    hyperclovax internlm3 iquestcoder jais2 llama ministral ministral3 mistral mixtral nanochat olmo olmo2 olmo3 phi
    phi3 qwen2 qwen3 qwen3_moe seed_oss smollm3 starcoder2 youtu
"""
SHARED = frozenset(_SHARED.split())
"""Model types tested to have the same loss and gradients at every context-parallel size."""

_ROUTED = """
    flex_olmo gpt_oss granitemoe granitemoe_swa granitemoeshared granitemoehybrid jamba laguna mellum mixtral olmoe phimoe
    qwen2_moe qwen3_5_moe_text qwen3_moe qwen3_next
"""
ROUTED = frozenset(_ROUTED.split())
"""Model types that add a load-balancing loss for their experts if `output_router_logits` is true."""


@dataclass(frozen=True)
class LogitsRule:
    """Names of configuration fields that scale logits: `cap · tanh(output · times / over / cap)`."""

    times: str | None = None
    over: str | None = None
    cap: str | None = None


SCALED = ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "minicpm3")
CAPPED = ("beam", "gemma2", "gemma3_text", "nanochat", "vaultgemma")

LOGITS = {
    **dict.fromkeys(SCALED, LogitsRule(over="logits_scaling")),
    **dict.fromkeys(CAPPED, LogitsRule(cap="final_logit_softcapping")),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), LogitsRule(times="logit_scale")),
    "hyperclovax": LogitsRule(times="logits_scaling"),
    "recurrent_gemma": LogitsRule(cap="logits_soft_cap"),
}
"""By model type; for all other supported models, the logits are the head's output."""


def logits_of(architecture: Any) -> tuple[float, float, float | None]:
    """Factor, divisor and cap of a model's logits."""
    rule = LOGITS.get(architecture.model_type, LogitsRule())
    times, over, cap = (
        None if field is None else getattr(architecture, field) for field in (rule.times, rule.over, rule.cap)
    )
    return 1.0 if times is None else times, 1.0 if over is None else over, cap


def check_language(architecture: Any) -> None:
    """Raises UserError, before any weights are read, for a model whose loss in OneDiff would differ from its own."""
    kind = architecture.model_type
    if kind not in COVERED:
        inner = getattr(architecture.get_text_config(), "model_type", kind)
        hint = f" (its inner language model, {inner}, is)" if inner in COVERED else ""
        raise UserError(
            f"model.language: models of type {kind} are not supported{hint}; docs/parallel.md lists supported types, "
            "such as llama, mistral, qwen3, smollm3, gemma3_text, granite"
        )
    heads = getattr(architecture, "num_attention_heads", None)
    shared = getattr(architecture, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise UserError(
            f"model.language: {heads} attention heads cannot share {shared} key/value heads; make num_attention_heads a "
            "multiple of num_key_value_heads"
        )
    if getattr(architecture, "output_router_logits", False) and kind not in ROUTED:
        raise UserError(
            f"model.language: the loss of {kind}'s router is not supported; set output_router_logits to false in its config"
        )
    if kind == "qwen2_moe" and architecture.use_sliding_window:
        raise UserError(
            f"model.language: the sliding window of {kind} is not supported; set use_sliding_window to false"
        )


_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest row, which a rank with a share of the tokens does not know."""


def check_shares(architecture: Any, tensor: int, context: int) -> None:
    """Raises UserError for a model whose tokens cannot be divided among `context` groups of `tensor` ranks."""
    kind = architecture.model_type
    if kind not in SHARED:
        raise UserError(f"parallel.context: {kind} models do not support context parallelism; use parallel.context=1")
    if getattr(architecture, "output_router_logits", False):
        raise UserError(
            f"parallel.context: the loss of {kind}'s router needs whole rows; set output_router_logits to false"
        )
    rope = getattr(architecture, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {one.get("rope_type") for one in rope.values() if isinstance(one, dict)}
    if found := next((one for one in _BY_LENGTH if one in kinds), None):
        raise UserError(
            f"parallel.context: rotary embeddings of type {found} depend on the longest row, which ranks with a share of "
            "the tokens do not know; use parallel.context=1"
        )
    check_heads(architecture.num_attention_heads, tensor, context)


def check_divisible(architecture: Any, tp_size: int) -> None:
    """Raises UserError, before any weights are read, if the language model cannot be split into `tp_size` parts."""
    kind = architecture.model_type
    if kind not in CUT:
        raise UserError(
            f"parallel.tensor: models of type {kind} do not support tensor parallelism; use parallel.tensor=1"
        )
    heads = architecture.num_attention_heads
    counts = {
        "attention heads": heads,
        "key/value heads": getattr(architecture, "num_key_value_heads", None) or heads,
        "feed-forward units": architecture.intermediate_size,
    }
    for what, count in counts.items():
        if count % tp_size:
            raise UserError(f"parallel.tensor: {count} {what} cannot be split into {tp_size} equal parts")


def check_sequence(architecture: Any) -> None:
    """Raises UserError for a model whose layers are not norm, attention, norm, feed-forward."""
    families = ("llama", "mistral", "qwen2", "qwen3")
    if architecture.model_type not in families:
        raise UserError(
            f"parallel.sequence: supports {', '.join(families)}, not {architecture.model_type} models; turn it off"
        )


def check_packs(architecture: Any, where: str) -> None:
    """Raises UserError for a model whose samples would affect each other in a packed row."""
    kind = architecture.model_type
    if kind in ONE_A_ROW:
        raise UserError(
            f"{where}: samples of a packed row would affect each other in models of type {kind}; remove `pack`"
        )
