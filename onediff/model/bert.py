"""Initialises the delta module from BERT's layers (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onediff.errors import UserError
from onediff.model.delta import Attention, DeltaModule
from onediff.model.lean import transformers
from onediff.parallel.materialize import place
from onediff.parallel.placement import ALONE
from onediff.parallel.pretrained import Pretrained
from onediff.parallel.pretrained_files import PretrainedFiles


@torch.no_grad()
def initialise_from_bert(delta: DeltaModule, name: str) -> None:
    """Copies the first layers of the BERT `name` into `delta`.

    Self-attention and feed-forward are copied from BERT; cross-attention is copied from BERT's self-attention if shapes
    match (keys and values come from the tower, whose width may differ). Raises UserError if `name` cannot be read, is not a
    BERT, has too few layers or another width.
    """
    bert, source = bert_and_source(name, layers=len(delta.layers), width=delta.tokens.shape[1])
    bert = place(bert, source, ALONE.topology)
    ours: Any
    theirs: Any
    for ours, theirs in zip(delta.layers, bert.encoder.layer, strict=False):
        for attention in (ours.self_attention, ours.cross_attention):
            _copy_attention(attention, theirs.attention)
        _copy(ours.expand, theirs.intermediate.dense)
        _copy(ours.contract, theirs.output.dense)
        _copy(ours.norm, theirs.output.LayerNorm)


def bert_and_source(name: str, layers: int, width: int) -> tuple[Any, Pretrained]:
    """The BERT `name` on the meta device and the source of its weights, for a delta module of `layers` layers of `width`.

    Raises UserError as `initialise_from_bert` does.
    """
    try:
        architecture = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"model.delta.bert: cannot read {name!r}: {str(error).splitlines()[0]}") from None
    if not isinstance(architecture, transformers.BertConfig):
        raise UserError(f"model.delta.bert: {name!r} is a {architecture.model_type}, not a BERT")
    if architecture.num_hidden_layers < layers or architecture.hidden_size != width:
        raise UserError(
            f"model.delta.bert: {name!r} has {architecture.num_hidden_layers} layers of width {architecture.hidden_size}, "
            f"but the delta module has {layers} of width {width}"
        )
    with torch.device("meta"):
        bert = transformers.BertModel(architecture, add_pooling_layer=False)
    return bert, Pretrained(PretrainedFiles(name), bert)


def _copy_attention(ours: Attention, theirs: Any) -> None:
    inner = theirs.self
    for name in ("query", "key", "value"):
        _copy(getattr(ours, name), getattr(inner, name))
    _copy(ours.output, theirs.output.dense)
    _copy(ours.norm, theirs.output.LayerNorm)


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    if ours.weight.shape == theirs.weight.shape:
        ours.load_state_dict(theirs.state_dict())
