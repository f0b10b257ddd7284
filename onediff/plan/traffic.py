"""Bytes that one rank sends in a step, by what they are for and by the link that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onediff.plan.architecture import Sizes
from onediff.plan.memory import Counts
from onediff.plan.setup import Setup
from onediff.plan.tape import Tape
from onediff.plan.walk import Shape


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank sends in one optimizer step; ring algorithms, as NCCL's."""

    gather: int
    """weights: gathered under ZeRO-3, or collected after the step at stages 1 and 2"""
    reduce: int
    """gradients"""
    tensor: int
    """activations and their gradients, summed over the tensor group or, with shared tokens, gathered and scattered"""
    data_inside: int
    """of `gather` and `reduce`, what stays inside the node"""
    data_between: int
    """of them, what goes through this rank's own network port"""
    tensor_between: int = 0
    """of `tensor`, what leaves the node"""
    context: int = 0
    """queries, keys, values and results of attention with their gradients, exchanged in the context group"""
    context_between: int = 0
    """of `context`, what leaves the node"""


def traffic_of(tape: Tape, sizes: Sizes, shape: Shape, setup: Setup) -> Traffic:
    """The traffic of one rank in one step."""
    counts = Counts.of(tape, setup)
    size, data, times = setup.itemsize, setup.copies, setup.accumulation
    others = (data - 1) / data
    everything = counts.trained + counts.frozen
    if setup.stage == 3:
        # Weights stay gathered from the forward to the backward pass where all of them may.
        passes = 1 if everything <= setup.live else 2
        gather = times * passes * size * (everything - counts.small) * others
        reduce = times * setup.reduced_itemsize * counts.trained * others
    else:
        gather = size * counts.trained * others if setup.stage else 0.0
        each = times if setup.stage == 2 else 1
        wide = 4 if setup.stage == 1 and setup.bf16 else setup.reduced_itemsize
        # At stages 1 and 2, too, DeepSpeed sums whole buckets on every rank, of which each keeps its part.
        reduce = 2 * each * wide * counts.trained * others
    tensor = times * _tensor_bytes(sizes, shape, setup)
    context = times * _context_bytes(sizes, shape, setup)
    # A tensor group takes neighbouring ranks; of the ranks that ZeRO shares out over, that many are in a node.
    together = max(1, min(data, setup.per_node // setup.tensor))
    volume = gather + reduce
    spans = data > together
    return Traffic(
        gather=int(gather),
        reduce=int(reduce),
        tensor=int(tensor),
        data_inside=int(volume if together > 1 else 0),
        data_between=int(volume / together if spans else 0),
        tensor_between=int(tensor if setup.tensor > setup.per_node else 0),
        context=int(context),
        context_between=int(context if setup.row_ranks > setup.per_node else 0),
    )


def _tensor_bytes(sizes: Sizes, shape: Shape, setup: Setup) -> float:
    """Of one micro-batch. To sum takes two rounds of a ring, to gather or to scatter sums one.

    Word embeddings are summed once more. What is no wider than an adapter, and gradients of norms, count as nothing.
    """
    if setup.tensor == 1:
        return 0.0
    again, layers = setup.checkpointing != "none", sizes.decoder.layers
    if setup.sequence:
        # Each layer gathers behind two norms and scatters two sums, the other way round backwards; the first layer's
        # gradient and the last norm's result are gathered.
        rounds = layers * (4 + 4 + 3 * again) + 2
    else:
        # Each layer sums twice; backwards each of its five matrices that are cut along outputs sums by itself.
        rounds = 2 * layers * (2 + 5 + again)
    tokens = shape.rows * shape.tokens / setup.context
    rows = tokens * sizes.decoder.width * setup.itemsize
    head = 2 * shape.targets / setup.context * (sizes.decoder.width * setup.itemsize + 3 * 4)
    return (setup.tensor - 1) / setup.tensor * (rows * (rounds + 2) + head)


def _context_bytes(sizes: Sizes, shape: Shape, setup: Setup) -> float:
    """Of one micro-batch: two exchanges a layer, of which a rank keeps its own part, and the hidden states of the targets.

    Heads of keys and values that C does not divide are sent several times.
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
