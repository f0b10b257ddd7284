"""Bytes that one rank sends in a step, by purpose and by link."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onediff.plan.architecture import Sizes
from onediff.plan.memory import Counts
from onediff.plan.setup import Setup
from onediff.plan.tape import Op, Tape
from onediff.plan.walk import Shape


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank sends in one optimizer step, assuming ring algorithms as in NCCL."""

    gather: int
    """Weights: gathered at ZeRO-3, or all-gathered after the step at stages 1 and 2."""
    reduce: int
    """Gradients."""
    tensor: int
    """Activations and their gradients, all-reduced in the tensor group, or gathered and scattered if sequence parallel."""
    data_inside: int
    """The part of `gather` and `reduce` that stays inside the node."""
    data_between: int
    """The part of `gather` and `reduce` that goes through this rank's own network port."""
    tensor_between: int = 0
    """The part of `tensor` that leaves the node."""
    context: int = 0
    """Queries, keys, values and outputs of attention with their gradients, exchanged in the context group."""
    context_between: int = 0
    """The part of `context` that leaves the node."""


def traffic_of(tape: Tape, sizes: Sizes, shape: Shape, setup: Setup) -> Traffic:
    """The traffic of one rank in one step."""
    counts = Counts.of(tape, setup)
    size, data, times = setup.itemsize, setup.copies, setup.accumulation
    others = (data - 1) / data
    if setup.stage == 3:
        gathers = times * gathered(tape, setup)
        # If nodes keep copies, trained weights come from all nodes once per step, and frozen ones only in the first step.
        far = counts.gathered_trained if setup.sharing else gathers
        near = (gathers - far) * (setup.sharing - 1) / setup.sharing if setup.sharing else 0.0
        gather_far, gather = size * far * others, size * (far * others + near)
        reduce = times * setup.reduced_itemsize * counts.trained * others
    else:
        gather = gather_far = size * counts.trained * others if setup.stage else 0.0
        each = times if setup.stage == 2 else 1
        # DeepSpeed all-reduces whole buckets at stages 1 and 2 as well, and each rank keeps its part.
        reduce = 2 * each * setup.reduced_itemsize * counts.trained * others
    tensor = times * _tensor_bytes(sizes, shape, setup)
    context = times * _context_bytes(sizes, shape, setup)
    # A tensor group takes neighbouring ranks, so this many of the ranks that ZeRO partitions over share a node.
    together = max(1, min(data, setup.per_node // setup.tensor))
    spans = data > together
    return Traffic(
        gather=int(gather),
        reduce=int(reduce),
        tensor=int(tensor),
        data_inside=int(gather + reduce if together > 1 else 0),
        data_between=int((gather_far + reduce) / together if spans else 0),
        tensor_between=int(tensor if setup.tensor > setup.per_node else 0),
        context=int(context),
        context_between=int(context if setup.row_ranks > setup.per_node else 0),
    )


def gathered(tape: Tape, setup: Setup) -> int:
    """Elements of weights that ZeRO-3 gathers for a micro-batch, once DeepSpeed has recorded their order of use.

    Each weight is gathered for the forward pass, and again for the backward pass if its operation has one. Up to `live`
    elements of the last weights in the forward pass are still gathered by then. When a layer is recomputed, DeepSpeed
    releases frozen weights too early (`ds_recompute_parameters` of its `PartitionedParameterCoordinator`) and gathers them a
    third time, except those of the layer's last product, whose backward pass comes first.
    """

    def elements(ops: Iterable[Op], frozen: bool = False) -> int:
        weights = [weight for op in ops for weight in op.weights if not (frozen and weight.trains)]
        return sum(weight.numel for weight in weights if weight.numel >= setup.persistent)

    backwards = [op for op in reversed(tape.ops) if op.out.grad]
    still_there = 0
    for op in backwards:
        if still_there >= setup.live:
            break
        still_there += elements([op])
    again = 0
    if setup.checkpointing != "none":
        for ops in tape.by_layer().values():
            products = [op for op in ops if op.out.grad and op.weights]
            again += elements(products[:-1], frozen=True)
    return elements(tape.ops) + elements(backwards) - still_there + again


def _tensor_bytes(sizes: Sizes, shape: Shape, setup: Setup) -> float:
    """Tensor-group bytes of one micro-batch. An all-reduce takes two rounds of the ring, a gather or reduce-scatter one.

    Word embeddings add one all-reduce. Tensors as narrow as an adapter, and gradients of norms, count as zero.
    """
    if setup.tensor == 1:
        return 0.0
    again, layers = setup.checkpointing != "none", sizes.decoder.layers
    if setup.sequence:
        # Each layer gathers after two norms and reduce-scatters twice, and the reverse in the backward pass; the first
        # layer's gradient and the last norm's result are gathered.
        rounds = layers * (4 + 4 + 3 * again) + 2
    else:
        # Each layer all-reduces twice; in the backward pass each of its five column-parallel matrices does so separately.
        rounds = 2 * layers * (2 + 5 + again)
    tokens = shape.rows * shape.tokens / setup.context
    rows = tokens * sizes.decoder.width * setup.itemsize
    head = 2 * shape.targets / setup.context * (sizes.decoder.width * setup.itemsize + 3 * 4)
    return (setup.tensor - 1) / setup.tensor * (rows * (rounds + 2) + head)


def _context_bytes(sizes: Sizes, shape: Shape, setup: Setup) -> float:
    """Context-group bytes of one micro-batch: two all-to-alls per layer, and the hidden states of the targets.

    If C does not divide the key/value heads, they are sent several times.
    """
    if setup.context == 1:
        return 0.0
    decoder, context = sizes.decoder, setup.context
    heads, kv_heads = decoder.heads / setup.tensor, max(1, decoder.kv_heads // setup.tensor)
    repeated = math.lcm(kv_heads, context)
    passes = 2 + (setup.checkpointing != "none")
    share = shape.rows * shape.tokens / context
    exchanged = passes * decoder.layers * share * (2 * heads + 2 * repeated) * decoder.head_size
    targets = 2 * shape.targets * decoder.width
    return (context - 1) / context * (exchanged + targets) * setup.itemsize
