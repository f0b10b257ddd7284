"""Builds the causal language model and computes its loss, which equals that of the model's own class."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from torch import Tensor

from onediff.config.model import LanguageConfig, LoraConfig
from onediff.data.batch import Batch
from onediff.data.segments import Segments
from onediff.model.architecture import architecture
from onediff.model.families import check_language, logits_of
from onediff.model.lean import transformers
from onediff.model.lora import add_adapters
from onediff.model.registered import NAME, implementation, no_mask, segments_mask
from onediff.parallel.context import ContextSplit
from onediff.parallel.loss import Logits, target_loss, with_loss
from onediff.parallel.placement import ALONE, Placement


def build_language(
    config: LanguageConfig,
    attention: str | None = None,
    placement: Placement = ALONE,
    lora: LoraConfig | None = None,
) -> Any:
    """The causal language model, with pretrained weights if `name` is given, split and loaded as `placement` says.

    `lora` adds adapters. Raises UserError for model types that are not supported.
    """
    arch = architecture(config, "model.language")
    check_language(arch)
    attention = attention or implementation(transformers.AutoModelForCausalLM, arch)
    language = placement.build(
        transformers.AutoModelForCausalLM,
        arch,
        config.name,
        revision=config.revision,
        attention=attention,
        cut=True,
        adapt=None if lora is None else partial(add_adapters, config=lora),
    )
    language.context_group = placement.topology.context_group
    with_loss(language.get_output_embeddings(), Logits(*logits_of(language.config)))
    return language


def target_losses(language: Any, embeds: Tensor, batch: Batch, chunk: int | None = None) -> Tensor:
    """The unreduced cross-entropy of every target, `[targets]` fp32, from the embeddings `[rows, tokens, width]`.

    Computes logits only for the targets, `[targets, vocabulary]`, `chunk` targets at a time if given. A router's loss
    (`output_router_logits`) is added to each target, so that the mean equals the model's own loss. Under context
    parallelism, all ranks of a group have the same rows and each computes a share of the tokens; collective over the group.
    """
    group = getattr(language, "context_group", None)
    if group is not None:
        return _losses_by_shares(language, embeds, batch, chunk, ContextSplit(group, batch.token_ids.numel()))
    read = decoder_of(language)(
        inputs_embeds=embeds,
        position_ids=batch.position_ids,
        use_cache=False,
        **inside_samples(language, batch, embeds),
    )
    hidden = read.last_hidden_state.flatten(0, 1)[batch.target_places]
    losses = target_loss(language.get_output_embeddings(), hidden, batch.target_ids, chunk)
    if not getattr(language.config, "output_router_logits", False):
        return losses
    return losses + language.router_aux_loss_coef * router_loss(language, read.router_logits, batch)


def _losses_by_shares(language: Any, embeds: Tensor, batch: Batch, chunk: int | None, split: ContextSplit) -> Tensor:
    read = decoder_of(language)(
        inputs_embeds=split.own(embeds),
        position_ids=split.own(batch.position_ids),
        use_cache=False,
        context=split,
        **inside_samples(language, batch, embeds),
    )
    hidden = split.hidden_of_targets(read.last_hidden_state[0], batch.target_places)
    own = target_loss(language.get_output_embeddings(), hidden, split.own_targets(batch.target_ids), chunk)
    return split.losses(own, batch.targets)


def router_loss(language: Any, router_logits: Any, batch: Batch) -> Tensor:
    """The model's own load-balancing loss for the tokens of this batch, without padding."""
    own = sys.modules[type(language).__module__].load_balancing_loss_func
    # Positions restart at 0 in the padding after a row's only sample.
    seen = (batch.position_ids == 0).cumsum(1) == 1 if batch.segment_ids is None else batch.segment_ids > 0
    return own(router_logits, language.num_experts, language.num_experts_per_tok, seen.long())


def inside_samples(language: Any, batch: Batch, embeds: Tensor) -> dict[str, Any]:
    """Arguments that confine attention to each sample: `segments` for our attention function, a mask for others."""
    rows, tokens, _ = embeds.shape
    if language.config._attn_implementation != NAME:
        if batch.segments is None:
            return {}  # Rows are padded on the right, where causal attention never sees the padding.
        return {"attention_mask": segments_mask(batch.segments, rows, tokens, embeds.dtype)}
    assert batch.segments is not None or batch.segment_ids is None, "a packed batch says where its samples lie"
    segments = batch.segments or Segments.even(rows, tokens, embeds.device)
    return {"attention_mask": no_mask(embeds), "segments": segments}


def decoder_of(language: Any) -> Any:
    """The layers between embeddings and head."""
    found = language.get_decoder()
    # Llama 4 returns the model itself, and ModernBERT's decoder returns its head.
    return language.model if found is language or found is language.get_output_embeddings() else found
