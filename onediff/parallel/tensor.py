"""Tensor parallelism for Hugging Face causal LMs, following their `base_model_tp_plan`, with Megatron-core's layers.

Layers keep their names and meaning: a rank's `q_proj.weight` is a block of the model's `q_proj.weight`. Parameters record
their block (`parameter.block`) for checkpoints, loading and export.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from onediff.errors import UserError
from onediff.model.families import check_divisible
from onediff.parallel.block import Block
from onediff.parallel.loss import Logits, by_chunks
from onediff.parallel.regions import TokenShares, gather_from_tensor_model_parallel_region
from onediff.parallel.topology import Mpu


class ColumnLayer(ColumnParallelLinear):
    """`[…, in]` → `[…, out / T]`: computes the rank's own outputs."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The rank's outputs; the gradient of `hidden` is summed over the tensor group."""
        return super().forward(hidden)[0]


class RowLayer(RowParallelLinear):
    """`[…, in / T]` → `[…, out]`: sums over the tensor group."""

    shares: TokenShares | None = None
    """With sequence parallelism, the division of the output's tokens during training."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The whole output, the same on every rank of the group, or the output for the rank's share of the tokens."""
        if not self.training or self.shares is None:
            return super().forward(hidden)[0]
        summed = self.shares.sum(F.linear(hidden, self.weight, None))
        return summed if self.bias is None else summed + self.bias

    def _forward_impl(self, input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        """A copy of the product. Megatron sums over the group in place, so if selective checkpointing kept the product
        itself, it would be summed twice."""
        part = super()._forward_impl(input, weight, **options)
        return part.clone() if self.training else part


class Words(VocabParallelEmbedding):
    """The token embedding, scaled if the model's own embedding is."""

    factor: float | None = None
    padding_id: int | None = None
    """An id without a gradient, as `padding_idx` of torch's `nn.Embedding`, which Megatron's embedding lacks."""

    def forward(self, ids: Tensor) -> Tensor:
        """`[…]` ids to `[…, width]`."""
        words = super().forward(ids)
        if self.padding_id is not None and words.requires_grad:
            padding = (ids == self.padding_id)[..., None]
            words.register_hook(lambda gradient: gradient.masked_fill(padding, 0))
        return words if self.factor is None else words * torch.tensor(self.factor, dtype=words.dtype)


class Head(ColumnParallelLinear):
    """The language model's head over a vocabulary padded to a multiple of T."""

    vocabulary: int
    """Size of the vocabulary without padding, which is at the end."""
    logits = Logits()
    """How the model turns this layer's output into logits."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """The output for the whole vocabulary, for generation; or with `targets`, the loss of each, `[targets]`.

        The loss is computed from each rank's part of the logits, `chunk` targets at a time.
        """
        if targets is not None:
            return by_chunks(self._loss, hidden, targets, chunk)
        output = gather_from_tensor_model_parallel_region(super().forward(hidden)[0], group=self.tp_group)
        return output[..., : self.vocabulary]

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        output = super().forward(hidden)[0]
        logits = self.logits(output)
        if self.padding:
            # The lowest number, so that padding does not contribute to a softmax.
            existing = logits.shape[-1] - self.padding
            lowest = logits.new_full((*logits.shape[:-1], self.padding), torch.finfo(output.dtype).min)
            logits = torch.cat([logits[..., :existing], lowest], dim=-1)
        # Megatron overwrites its argument, which in fp32 can be the layer's own output.
        return vocab_parallel_cross_entropy(logits.clone() if logits is output else logits, targets)

    @property
    def padding(self) -> int:
        """Number of padding entries in this rank's part."""
        per_rank = self.output_size_per_partition
        return min(per_rank, max(0, (self.tp_group.rank() + 1) * per_rank - self.vocabulary))


def cut_layers(model: Any, mpu: Mpu) -> None:
    """Replaces layers of a causal LM on the meta device by Megatron-core's. Its weights are loaded afterwards.

    Raises UserError if the plan contains an unknown style.
    """
    architecture, tp_size = model.config, mpu.get_tensor_model_parallel_world_size()
    check_divisible(architecture, tp_size)
    config = ModelParallelConfig(
        tensor_model_parallel_size=tp_size,
        params_dtype=model.dtype,
        perform_initialization=False,  # it would draw the whole weight; `_note` sets the attributes instead
        use_cpu_initialization=True,  # on the current default device, which is meta
    )
    base = model.base_model
    with torch.device("meta"):
        for name, layer in list(base.named_modules()):
            style = next((s for p, s in architecture.base_model_tp_plan.items() if fnmatch.fnmatchcase(name, p)), None)
            if style is not None:
                _replace(base, name, _cut(layer, style, config, mpu, name))
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        new_embedding = _cut_embedding(embedding, config, mpu)
        model.set_input_embeddings(new_embedding)
        model.set_output_embeddings(_cut_head(head, config, mpu))
        if head.weight is embedding.weight:
            model.get_output_embeddings().weight = new_embedding.weight


def _replace(root: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, layer)


def _cut(layer: nn.Module, style: str, config: ModelParallelConfig, mpu: Mpu, name: str) -> nn.Module:
    """The parallel layer for one entry of the plan."""
    if hasattr(layer, "base_layer"):
        # A layer with adapters (peft): split the layer, and of each adapter the matrix on the split side. The other
        # matrix computes the same on every rank of the group and gets the same gradient.
        adapted: Any = layer
        adapted.base_layer = _cut(adapted.base_layer, style, config, mpu, name)
        halves = adapted.lora_B if style == "colwise" else adapted.lora_A
        for key in halves:
            halves[key] = _cut(halves[key], style, config, mpu, name)
        return layer
    if style == "replicated_with_grad_allreduce":
        # A norm inside attention sees only the rank's own heads, so its gradient is the sum over the group.
        sum_gradients(layer)
        return layer
    if not isinstance(layer, nn.Linear) or style not in ("colwise", "rowwise"):
        raise UserError(f"parallel.tensor: cannot split {name!r} ({style}); use parallel.tensor=1")
    sizes, options = (layer.in_features, layer.out_features), {"config": config, "init_method": None}
    bias = layer.bias is not None
    if style == "colwise":
        column = ColumnLayer(*sizes, bias=bias, **options)
        _note(column.weight, layer.weight.shape, 0, mpu)
        if bias:
            _note(column.bias, (layer.out_features,), 0, mpu)
        return column
    row = RowLayer(*sizes, bias=bias, input_is_parallel=True, skip_bias_add=False, **options)
    _note(row.weight, layer.weight.shape, 1, mpu)
    return row


def sum_gradients(module: Any) -> None:
    """Marks parameters whose gradients are sums over the tensor group."""
    for parameter in module.parameters():
        parameter.sum_gradient_over_tensor_group = True


def _cut_embedding(layer: nn.Embedding, config: ModelParallelConfig, mpu: Mpu) -> nn.Module:
    rows = padded_vocabulary(layer.num_embeddings, mpu.get_tensor_model_parallel_world_size())
    cut = Words(rows, layer.embedding_dim, init_method=None, config=config)
    if type(layer) is not nn.Embedding:
        # Gemma and similar models only add a factor.
        cut.factor = float(vars(layer)["scalar_embed_scale"])
    cut.padding_id = layer.padding_idx
    _note(cut.weight, layer.weight.shape, 0, mpu)
    return cut


def _cut_head(layer: nn.Linear, config: ModelParallelConfig, mpu: Mpu) -> nn.Module:
    rows = padded_vocabulary(layer.out_features, mpu.get_tensor_model_parallel_world_size())
    cut = Head(layer.in_features, rows, config=config, init_method=None, bias=layer.bias is not None)
    cut.vocabulary = layer.out_features
    _note(cut.weight, layer.weight.shape, 0, mpu)
    if layer.bias is not None:
        _note(cut.bias, (layer.out_features,), 0, mpu)
    return cut


def padded_vocabulary(size: int, tp_size: int) -> int:
    """`size` rounded up to a multiple of T."""
    return -(-size // tp_size) * tp_size


def _note(parameter: nn.Parameter | None, shape: Sequence[int], dim: int, mpu: Mpu) -> None:
    """Records a parameter's block, and that DeepSpeed must sum its norm over the tensor group.

    Without the latter, the global norm would miss other ranks' blocks, and clipping would be wrong.
    """
    assert parameter is not None
    size = parameter.shape[dim]
    parameter.block = Block(tuple(shape), dim, size * mpu.get_tensor_model_parallel_rank(), size)  # type: ignore[attr-defined]
    if not hasattr(parameter, "tensor_model_parallel"):
        set_tensor_model_parallel_attributes(parameter, True, dim, 1)
