"""Sequence parallelism (Megatron's, arXiv 2205.05198) for a language model that is already split.

With tensor parallelism alone, all ranks of a group hold the same activations between the split layers, at norms and
residuals. With sequence parallelism, each rank holds its share of the tokens there: a norm's output is gathered for the
split layers, whose sums are scattered again. Applies only to training, not to generation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from onediff.model.families import check_sequence
from onediff.parallel.regions import TokenShares
from onediff.parallel.tensor import ColumnLayer, RowLayer, sum_gradients
from onediff.parallel.topology import Mpu

NORMS = ("input_layernorm", "post_attention_layernorm")


def share_tokens(model: Any, mpu: Mpu) -> None:
    """Adds sequence parallelism to a causal LM that is split and still on the meta device.

    Raises UserError for an unsupported model.
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
            sum_gradients(norm)
        for module in layer.modules():
            if isinstance(module, ColumnLayer):
                # The gather after the preceding norm already sums this gradient.
                module.disable_grad_reduce, module.allreduce_dgrad = True, False
            elif isinstance(module, RowLayer):
                module.shares = shares
                if module.bias is not None:
                    module.bias.sum_gradient_over_tensor_group = True
            if hasattr(module, "base_layer"):
                # An adapter's unsplit matrix has a gradient from the rank's own tokens or outputs only.
                whole = module.lora_A if isinstance(module.base_layer, ColumnLayer) else module.lora_B
                sum_gradients(whole)
    base.norm.register_forward_hook(behind_last)
    sum_gradients(base.norm)
