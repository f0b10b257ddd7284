"""Activation checkpointing: which values of a layer are kept for the backward pass, and which are recomputed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from onediff.config.training import Checkpointing

# Results that are expensive to compute for their size. Score products (`bmm`) are left out: they grow with tokens², and
# only attention without a fused kernel makes them.
_DEAR = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "flash_attn_3::_flash_attn_forward",
    "flash_attn_3::fwd",  # earlier builds
    "torch_attn::_varlen_attn",
}


def checkpoint_layers(model: Any, mode: Checkpointing) -> None:
    """Makes the layers of a Hugging Face model keep fewer values: with `full` only their input, with `selective` also the
    results of matrix products and attention, so that only norms and activation functions are recomputed."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(options)
    # transformers makes word embeddings require a gradient, which only reentrant checkpointing needs.
    model.disable_input_require_grads()


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.name() if isinstance(operation, torch._ops.OpOverload) else ""
    kept = name.partition(".")[0] in _DEAR
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
