"""One forward pass written down as operations on shapes: what each computes, keeps for the backward pass, and trains.

A tape has the rules of torch's autograd for the operations that this model is made of: an operation whose inputs need no
gradient keeps nothing; a matrix product costs its forward FLOPs again for each of its two inputs that needs a gradient.
FLOPs follow `torch.utils.flop_counter`: two for each multiply-add of matrix products, convolutions and attention (the
whole square of scores, also where half is masked); everything else counts as nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod


@dataclass(eq=False)
class Value:
    """A tensor as its shape. Two operations that keep the same value keep it once."""

    shape: tuple[int, ...]
    itemsize: int
    grad: bool = False
    """whether a gradient with respect to it is needed"""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True)
class Weight:
    """One parameter of this rank."""

    part: str
    shape: tuple[int, ...]
    trains: bool
    cut: bool
    """over the tensor group: the whole parameter is T times as large"""

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(eq=False)
class Op:
    """One operation: its FLOPs, what it keeps for the backward pass, what it makes."""

    part: str
    kind: str
    out: Value
    forward: int = 0
    backward: int = 0
    kept: tuple[Value, ...] = ()
    weights: tuple[Weight, ...] = ()
    layer: int | None = None
    """number of the layer that activation checkpointing may recompute, if any"""
    by_frozen: tuple[Value, ...] = ()
    """what torch's linear function multiplies by a frozen weight: the backward pass needs none of it, but DeepSpeed's linear
    function for ZeRO-3 (`LinearFunctionForZeroStage3`) keeps it"""

    def kept_at(self, stage: int) -> tuple[Value, ...]:
        """What it keeps for the backward pass at a ZeRO stage."""
        return self.kept + self.by_frozen * (stage == 3)

    @property
    def keeps(self) -> bool:
        """Whether the backward pass asks for anything of it, were it only a weight."""
        return self.out.grad and (bool(self.kept) or self.kind in ("linear", "attention", "norm"))

    @property
    def is_product(self) -> bool:
        """Whether selective checkpointing keeps its result instead of computing it again."""
        return self.kind in ("linear", "attention")


@dataclass
class Tape:
    """Operations in the order of the forward pass; `part` and `layer` say to whom the next ones belong."""

    itemsize: int
    part: str = ""
    trains: bool = False
    """whether the parameters of the part that is being written train"""
    ops: list[Op] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    layer: int | None = None
    layers: int = 0
    layer_inputs: dict[int, Value] = field(default_factory=dict)

    def by_layer(self) -> dict[int, list[Op]]:
        """The operations of each layer that may be recomputed."""
        found: dict[int, list[Op]] = defaultdict(list)
        for op in self.ops:
            if op.layer is not None:
                found[op.layer].append(op)
        return found

    def value(self, *shape: int, grad: bool = False, itemsize: int | None = None) -> Value:
        """A tensor that comes from outside."""
        return Value(shape, itemsize or self.itemsize, grad)

    def weight(self, *shape: int, cut: bool = False, trains: bool | None = None) -> Weight:
        """A parameter, used by the operation that gets it or by none."""
        made = Weight(self.part, shape, self.trains if trains is None else trains, cut)
        self.weights.append(made)
        return made

    @contextmanager
    def recomputable(self, x: Value) -> Iterator[None]:
        """A layer with the input `x` that activation checkpointing may compute again in the backward pass."""
        self.layer, self.layers = self.layers, self.layers + 1
        self.layer_inputs[self.layer] = x
        yield
        self.layer = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Operations whose parameters train, whatever the rest of the part does."""
        trains, self.trains = self.trains, True
        yield
        self.trains = trains

    @contextmanager
    def without_backward(self) -> Iterator[None]:
        """Operations that nothing reads: their parameters may train, but get no gradient."""
        trains, first, self.trains = self.trains, len(self.weights), False
        yield
        self.trains = trains
        self.weights[first:] = [replace(weight, trains=trains) for weight in self.weights[first:]]

    def linear(
        self, x: Value, out: int, bias: bool = True, *, cut: str = "", tied: Weight | None = None, plain: bool = False
    ) -> Value:
        """`[…, in]` → `[…, out]`; `cut` is `column` or `row` where the tensor group shares the weight, `plain` says that
        torch's function multiplies all the same, not Megatron's."""
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
        """`[batch, queries, heads·size]` over `[batch, keys, kv_heads·size]`; `scores` where packing leaves fewer.

        Grouped keys and values are not repeated in memory. Flash-like: the scores are not kept, their logsumexp is.
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
        """transformers' norm, in fp32 and plain torch: keeps its input in fp32, and the normed values for the weight."""
        weight = self.weight(x.shape[-1], cut=cut)
        wide = x if x.itemsize == 4 else Value(x.shape, 4, x.grad)
        normed = Value(x.shape, self.itemsize, x.grad)
        kept = ((wide,) if x.grad else ()) + ((normed,) if self.trains else ())
        return self._add("norm", self._like(x, x.grad or self.trains), kept=kept, weights=(weight,))

    def elementwise(
        self, x: Value, *others: Value, keeps: tuple[Value, ...] = (), weights: tuple[Weight, ...] = ()
    ) -> Value:
        """Any operation with a result like `x` that costs no FLOPs; `keeps` is what its backward pass needs."""
        grad = x.grad or any(o.grad for o in others) or any(w.trains for w in weights)
        return self._add("elementwise", self._like(x, grad), kept=keeps, weights=weights)

    def activation(self, x: Value, kind: str) -> Value:
        """The function between the two layers of a feed-forward."""
        if kind == "quick_gelu":
            return self.elementwise(x, keeps=(x, self._like(x, False)))
        return self.elementwise(x, keeps=(x,))

    def loss(self, logits: Value) -> Value:
        """Cross-entropy of each row in fp32; keeps the logarithm of the softmax."""
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
