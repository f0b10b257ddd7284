"""A forward pass recorded as operations on shapes: what each computes, keeps for the backward pass, and trains.

A tape follows the rules of torch's autograd for the operations in this model: an operation whose inputs need no gradient
keeps nothing; a matrix product costs its forward FLOPs again for each input that needs a gradient. FLOPs follow
`torch.utils.flop_counter`: two per multiply-add of matrix products, convolutions and attention (all scores, even if half
are masked); everything else counts as zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod


@dataclass(eq=False)
class Value:
    """A tensor, represented by its shape. A value kept by two operations is kept once."""

    shape: tuple[int, ...]
    itemsize: int
    grad: bool = False
    """Whether its gradient is needed."""

    @cached_property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True)
class Weight:
    """A parameter on this rank."""

    part: str
    shape: tuple[int, ...]
    trains: bool
    cut: bool
    """Whether it is split over the tensor group; the whole parameter is then T times as large."""

    @cached_property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(eq=False)
class Op:
    """An operation: its FLOPs, the values it keeps for the backward pass, and its result."""

    part: str
    kind: str
    out: Value
    forward: int = 0
    backward: int = 0
    kept: tuple[Value, ...] = ()
    weights: tuple[Weight, ...] = ()
    layer: int | None = None
    """The layer it belongs to, if activation checkpointing may recompute it."""
    by_frozen: tuple[Value, ...] = ()
    """The input of a linear layer with a frozen weight: torch does not need it in the backward pass, but DeepSpeed's
    ZeRO-3 linear function (`LinearFunctionForZeroStage3`) keeps it."""

    def kept_at(self, stage: int) -> tuple[Value, ...]:
        """The values it keeps for the backward pass at a ZeRO stage."""
        return self.kept + self.by_frozen * (stage == 3)

    @property
    def keeps(self) -> bool:
        """Whether the backward pass needs anything from it, even if only a weight."""
        return self.out.grad and (bool(self.kept) or self.kind in ("linear", "attention", "norm"))

    @property
    def is_product(self) -> bool:
        """Whether selective checkpointing keeps its result instead of recomputing it."""
        return self.kind in ("linear", "attention")


@dataclass(eq=False)
class Tape:
    """Operations in the order of the forward pass; new ones are assigned to the current `part` and `layer`.

    A tape does not change once `walk` has returned it, so results computed from it may be cached.
    """

    itemsize: int
    part: str = ""
    trains: bool = False
    """Whether the parameters of the current part train."""
    ops: list[Op] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    layer: int | None = None
    layers: int = 0
    layer_inputs: dict[int, Value] = field(default_factory=dict)

    def by_layer(self) -> dict[int, list[Op]]:
        """The operations of each recomputable layer."""
        found: dict[int, list[Op]] = defaultdict(list)
        for op in self.ops:
            if op.layer is not None:
                found[op.layer].append(op)
        return found

    def value(self, *shape: int, grad: bool = False, itemsize: int | None = None) -> Value:
        """A tensor that is an input of the tape."""
        return Value(shape, itemsize or self.itemsize, grad)

    def weight(self, *shape: int, cut: bool = False, trains: bool | None = None) -> Weight:
        """A parameter; it belongs to the operation it is passed to, or to none."""
        made = Weight(self.part, shape, self.trains if trains is None else trains, cut)
        self.weights.append(made)
        return made

    @contextmanager
    def recomputable(self, x: Value) -> Iterator[None]:
        """A layer with the input `x` that activation checkpointing may recompute in the backward pass."""
        self.layer, self.layers = self.layers, self.layers + 1
        self.layer_inputs[self.layer] = x
        yield
        self.layer = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Operations whose parameters train, even if the rest of the part is frozen."""
        trains, self.trains = self.trains, True
        yield
        self.trains = trains

    @contextmanager
    def without_backward(self) -> Iterator[None]:
        """Operations whose result is unused: their parameters may train, but get no gradient."""
        trains, first, self.trains = self.trains, len(self.weights), False
        yield
        self.trains = trains
        self.weights[first:] = [replace(weight, trains=trains) for weight in self.weights[first:]]

    def linear(
        self, x: Value, out: int, bias: bool = True, *, cut: str = "", tied: Weight | None = None, plain: bool = False
    ) -> Value:
        """`[…, in]` → `[…, out]`. `cut` is `column` or `row` if the tensor group splits the weight; with `plain`, torch's
        linear function runs anyway, not Megatron's."""
        weight = tied or self.weight(out, x.shape[-1], cut=bool(cut))
        weights: tuple[Weight, ...] = (weight,) if tied is None else ()
        if bias:
            weights += (self.weight(out, cut=cut == "column"),)
        flops = 2 * x.numel * out
        kept = (x,) * weight.trains
        result = Value((*x.shape[:-1], out), self.itemsize, x.grad or weight.trains)
        self._add("linear", result, flops, flops * (x.grad + weight.trains), kept, weights)
        if result.grad and not weight.trains and (plain or not cut):
            self.ops[-1].by_frozen = (x,)
        return result

    def convolution(self, pixels: Value, out: int, kernel: int, bias: bool) -> Value:
        """Patches of `[images, channels, side, side]` → `[images, tokens, out]`, stride = kernel."""
        images, channels, side, _ = pixels.shape
        weights: tuple[Weight, ...] = (self.weight(out, channels, kernel, kernel),)
        weights += (self.weight(out),) if bias else ()
        tokens = (side // kernel) ** 2
        flops = 2 * images * tokens * out * channels * kernel * kernel
        result = Value((images, tokens, out), self.itemsize, self.trains)
        return self._add("convolution", result, flops, flops * self.trains, (pixels,) * self.trains, weights)

    def attention(self, q: Value, k: Value, v: Value, heads: int, kv_heads: int, scores: int | None = None) -> Value:
        """`[batch, queries, heads·size]` over `[batch, keys, kv_heads·size]`; `scores` is their number if rows are packed.

        Grouped keys and values are not repeated in memory. As in flash-attention, only the logsumexp of the scores is kept.
        """
        batch, queries, width = q.shape
        one = 2 * (scores if scores is not None else batch * queries * k.shape[1]) * width
        scored = q.grad or k.grad
        result = Value(q.shape, self.itemsize, scored or v.grad)
        sums = Value((batch, heads, queries), 4)
        backward = one * (q.grad + k.grad + scored + v.grad)
        return self._add("attention", result, 2 * one, backward, (q, k, v, result, sums))

    def layer_norm(self, x: Value) -> Value:
        """torch's fused layer norm: keeps its input."""
        weights = (self.weight(x.shape[-1]), self.weight(x.shape[-1]))
        return self._add("norm", self._like(x, x.grad or self.trains), kept=(x,), weights=weights)

    def rms_norm(self, x: Value, cut: bool = False) -> Value:
        """transformers' RMS norm, plain torch in fp32: keeps its fp32 input, and the normalised values for the weight."""
        weight = self.weight(x.shape[-1], cut=cut)
        wide = x if x.itemsize == 4 else Value(x.shape, 4, x.grad)
        normed = Value(x.shape, self.itemsize, x.grad)
        kept = ((wide,) if x.grad else ()) + ((normed,) if self.trains else ())
        return self._add("norm", self._like(x, x.grad or self.trains), kept=kept, weights=(weight,))

    def elementwise(
        self, x: Value, *others: Value, keeps: tuple[Value, ...] = (), weights: tuple[Weight, ...] = ()
    ) -> Value:
        """An operation without FLOPs whose result has the shape of `x`; `keeps` is what its backward pass needs."""
        grad = x.grad or any(o.grad for o in others) or any(w.trains for w in weights)
        return self._add("elementwise", self._like(x, grad), kept=keeps, weights=weights)

    def activation(self, x: Value, kind: str) -> Value:
        """The activation function of a feed-forward."""
        if kind == "quick_gelu":
            return self.elementwise(x, keeps=(x, self._like(x, False)))
        return self.elementwise(x, keeps=(x,))

    def loss(self, logits: Value) -> Value:
        """Cross-entropy of each row in fp32; keeps the log-softmax."""
        return self._add("loss", Value(logits.shape[:1], 4, logits.grad), kept=(Value(logits.shape, 4, logits.grad),))

    def place(self, out: Value, *kept: Value, weights: tuple[Weight, ...] = ()) -> Value:
        """An operation that only moves values, with the result `out`."""
        return self._add("move", out, kept=kept, weights=weights)

    def _like(self, x: Value, grad: bool) -> Value:
        return Value(x.shape, self.itemsize, grad)

    def _add(
        self,
        kind: str,
        out: Value,
        forward: int = 0,
        backward: int = 0,
        kept: tuple[Value, ...] = (),
        weights: tuple[Weight, ...] = (),
    ) -> Value:
        self.ops.append(Op(self.part, kind, out, forward, backward, kept if out.grad else (), weights, self.layer))
        return out
