"""Sequence parallelism (Megatron's, arXiv 2205.05198) for a language model that is cut already.

Between the cut layers, at the norms and on the way around them, every rank of a tensor group holds the same. Here each
holds its share of the tokens there instead: a norm's output is gathered for the layers that are cut, and their sums come
back as shares. Only training does so; generation leaves the layers as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from onediff.errors import UserError
from onediff.parallel.regions import TokenShares
from onediff.parallel.tensor import ColumnLayer, RowLayer
from onediff.parallel.topology import Mpu

NORMS = ("input_layernorm", "post_attention_layernorm")


def check_sequence(architecture: Any, where: str = "parallel.sequence") -> None:
    """Raises UserError for a model whose layers are not norm, attention, norm, feed-forward."""
    families = ("llama", "mistral", "qwen2", "qwen3")
    if architecture.model_type not in families:
        raise UserError(
            f"{where}: works for {', '.join(families)}, not for {architecture.model_type} models; turn it off"
        )


def share_tokens(model: Any, mpu: Mpu) -> None:
    """Lets the tensor group of a causal LM, cut and still on the meta device, share out its tokens.

    Raises UserError for a model that it does not fit.
    """
    check_sequence(model.config)
    base = model.base_model
    shares = TokenShares(mpu.get_tensor_model_parallel_group())

    def before_first(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (shares.share(inputs[0]), *inputs[1:]) if layer.training else None

    def behind_norm(norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return shares.gather(output) if norm.training else output

    def behind_last(norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return shares.gather_alike(output) if norm.training else output

    base.layers[0].register_forward_pre_hook(before_first)
    for layer in base.layers:
        for name in NORMS:
            norm = getattr(layer, name)
            norm.register_forward_hook(behind_norm)
            _sum_gradients(norm)
        for module in layer.modules():
            if isinstance(module, ColumnLayer):
                # The norm before it adds up the gradient of what it gathered.
                module.disable_grad_reduce, module.allreduce_dgrad = True, False
            elif isinstance(module, RowLayer):
                module.shares = shares
                if module.bias is not None:
                    module.bias.sum_gradient_over_tensor_group = True
            if hasattr(module, "base_layer"):
                # Of an adapter the matrix that is not cut: its gradient is of the rank's tokens, or of its outputs, alone.
                whole = module.lora_A if isinstance(module.base_layer, ColumnLayer) else module.lora_B
                _sum_gradients(whole)
    base.norm.register_forward_hook(behind_last)
    _sum_gradients(base.norm)


def _sum_gradients(module: Any) -> None:
    for parameter in module.parameters():
        parameter.sum_gradient_over_tensor_group = True
