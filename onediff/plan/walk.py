"""The forward pass of one micro-batch, operation by operation, as `onediff.model` computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from onediff.plan.architecture import DecoderSizes, Sizes, Tower
from onediff.plan.tape import Tape, Value

if TYPE_CHECKING:
    from onediff.config.training import PhaseConfig

PARTS = ("vision", "delta", "projector", "language")


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters on the language model's matrices."""

    rank: int
    targets: tuple[str, ...]
    dropout: bool = False


@dataclass(frozen=True)
class Trained:
    """What trains in a phase."""

    parts: tuple[str, ...]
    vision_last: int | None = None
    """If set, only this many last layers of the tower train."""
    adapters: Adapters | None = None
    """If set, only these train in the language model."""

    @classmethod
    def of(cls, phase: PhaseConfig) -> Trained:
        """What the configuration of a phase says."""
        lora = phase.lora
        adapters = None if lora is None else Adapters(lora.rank, lora.targets, lora.dropout > 0)
        return cls(phase.train, phase.vision_last, adapters)


@dataclass(frozen=True)
class Shape:
    """The size of one micro-batch of one rank."""

    rows: int
    tokens: int
    """Tokens per row, padding included."""
    images: int
    pairs: int
    targets: int
    scores: int | None = None
    """Attention scores computed; `rows · tokens²` by default, fewer if rows are packed."""

    def bytes(self, sizes: Sizes) -> int:
        """Bytes of the micro-batch on the device: pixels as bytes, three int64 per token, and token positions."""
        inputs = 3 * sizes.image**2 * sizes.views if sizes.patches is None else 3 * sizes.tower.patch**2 * sizes.patches
        places = self.images * sizes.image_tokens + self.pairs * sizes.delta.tokens + 3 * self.targets
        return self.images * inputs + 8 * (3 * self.rows * self.tokens + places)


@lru_cache(maxsize=256)
def walk(
    sizes: Sizes,
    shape: Shape,
    trained: Trained,
    *,
    itemsize: int = 2,
    tensor: int = 1,
    sequence: bool = False,
    context: int = 1,
) -> Tape:
    """The tape of one micro-batch on one of `tensor` · `context` ranks.

    `itemsize` belongs to the compute precision: 2 for bf16, 4 for fp32. With `sequence`, a tensor group splits the tokens
    between parallel layers.
    """
    tape = Tape(itemsize)
    # A batch without images or pairs gets a blank one (`OneDiffModel.embed`).
    images, pairs = max(1, shape.images), max(1, shape.pairs)

    language = "language" in trained.parts and trained.adapters is None
    tape.part, tape.trains = "language", language
    vocabulary = -(-sizes.decoder.vocabulary // tensor)
    embedding = tape.weight(vocabulary, sizes.decoder.width, cut=tensor > 1)
    words = tape.place(
        tape.value(shape.rows, shape.tokens, sizes.decoder.width, grad=tape.trains), weights=(embedding,)
    )

    tape.part, tape.trains = "vision", "vision" in trained.parts
    levels, output = _tower(tape, sizes, images, trained.vision_last)
    tape.part, tape.trains = "delta", "delta" in trained.parts
    deltas = _delta(tape, sizes, levels, pairs)
    tape.part, tape.trains = "projector", "projector" in trained.parts
    image_tokens, delta_tokens = _projector(tape, sizes.decoder.width, output, deltas)

    tape.part, tape.trains = "language", language
    x = words
    for tokens in (image_tokens, delta_tokens):
        x = tape.place(Value(x.shape, itemsize, x.grad or tokens.grad))
    own = _Shares(shape, context)
    x = own.first(tape, x)
    hidden = _decoder(tape, sizes.decoder, x, own, tensor, sequence and tensor > 1, trained.adapters)
    chosen = tape.place(Value((own.targets, sizes.decoder.width), itemsize, hidden.grad))
    tied = embedding if sizes.decoder.tied else None
    logits = tape.linear(chosen, vocabulary, False, cut="column" if tensor > 1 else "", tied=tied)
    tape.loss(logits)
    return tape


def _tower(tape: Tape, sizes: Sizes, images: int, last: int | None) -> tuple[list[Value], Value]:
    """Hidden states of the levels and of the output level; if `last` is given, only the last `last` layers train."""
    tower, width, views = sizes.tower, sizes.tower.width, images * sizes.views
    trains, tape.trains = tape.trains, tape.trains and last is None
    if sizes.patches is None:
        pixels = tape.value(views, tower.channels, sizes.image, sizes.image)
        patches = tape.convolution(pixels, width, tower.patch, bias=tower.kind != "clip_vision_model")
    else:
        patches = tape.linear(tape.value(views, sizes.patches, tower.channels * tower.patch**2), width)
    extra = tower.extra
    places = (tower.image_size // tower.patch) ** 2 + extra
    weights = [tape.weight(places, width)] + [tape.weight(width) for _ in range(extra)]
    if tower.kind == "dinov2":
        tape.weight(width)  # the mask token, never used
    x = tape.place(Value((views, patches.shape[1] + extra, width), tape.itemsize, tape.trains), weights=tuple(weights))
    if tower.kind == "clip_vision_model":
        x = tape.layer_norm(x)
    states = [x]
    deepest = max(*sizes.levels, sizes.output_level)
    for number in range(deepest):
        tape.trains = trains and (last is None or number >= tower.layers - last)
        with tape.recomputable(x):
            x = _tower_layer(tape, tower, x)
        states.append(x)
    tape.trains = trains
    with tape.without_backward():
        x = Value(x.shape, x.itemsize)
        for _ in range(deepest, tower.layers):
            x = _tower_layer(tape, tower, x)
    tape.trains = trains and last is None
    with tape.without_backward():
        if tower.kind == "clip_vision_model":
            x = tape.value(views, width)
        x = tape.layer_norm(x)
        if tower.head:
            _siglip_head(tape, tower, x)
    # The class token is sliced off; a slice keeps the whole tensor alive.
    cut = {
        level: Value((images, sizes.image_tokens, width), states[level].itemsize, states[level].grad)
        for level in (*sizes.levels, sizes.output_level)
    }
    if sizes.views > 1 or sizes.patches is not None:
        # The selected tokens are copied.
        cut = {level: tape.place(tokens) for level, tokens in cut.items()}
    return [cut[level] for level in sizes.levels], cut[sizes.output_level]


def _tower_layer(tape: Tape, tower: Tower, x: Value) -> Value:
    scaled = tower.kind == "dinov2"
    y = tape.layer_norm(x)
    q, k, v = (tape.linear(y, tower.width, tower.qkv_bias) for _ in range(3))
    y = tape.linear(tape.attention(q, k, v, tower.heads, tower.heads), tower.width)
    x = tape.elementwise(x, _layer_scale(tape, y) if scaled else y)
    y = tape.layer_norm(x)
    if tower.gated:
        gate, up = tape.linear(y, tower.intermediate), tape.linear(y, tower.intermediate)
        y = tape.linear(_gated(tape, gate, up), tower.width)
    else:
        y = tape.linear(tape.activation(tape.linear(y, tower.intermediate), tower.activation), tower.width)
    return tape.elementwise(x, _layer_scale(tape, y) if scaled else y)


def _layer_scale(tape: Tape, x: Value) -> Value:
    """DINOv2's learned scale of a residual branch."""
    weight = tape.weight(x.shape[-1])
    # If frozen, only the scale is kept for the gradient of `x`: negligible.
    return tape.elementwise(x, keeps=(x,) if weight.trains else (tape.value(1),), weights=(weight,))


def _siglip_head(tape: Tape, tower: Tower, x: Value) -> None:
    """Attention pooling, whose result is unused."""
    width = tower.width
    query = tape.place(tape.value(x.shape[0], 1, width), weights=(tape.weight(1, 1, width),))
    q, k, v = tape.linear(query, width), tape.linear(x, width), tape.linear(x, width)
    y = tape.layer_norm(tape.linear(tape.attention(q, k, v, tower.heads, tower.heads), width))
    tape.linear(tape.activation(tape.linear(y, tower.intermediate), tower.activation), width)


def _delta(tape: Tape, sizes: Sizes, levels: list[Value], pairs: int) -> Value:
    config, width, tokens = sizes.delta, sizes.delta.width, sizes.image_tokens
    dropout = config.dropout > 0
    learned = (tape.weight(config.tokens, width), tape.weight(config.tokens, width))
    # Images outside pairs are not part of this.
    paired = [Value((2 * pairs, *level.shape[1:]), level.itemsize, level.grad) for level in levels]
    normed = [tape.layer_norm(level) for level in paired]
    x = tape.place(Value((pairs, config.tokens, width), tape.itemsize, tape.trains), weights=learned)
    for number in range(config.layers):
        level = normed[number * len(levels) // config.layers]
        x = _delta_attention(tape, x, tape.linear(x, width), tape.linear(x, width), config.heads, dropout)
        roles = (tape.weight(2, width), tape.weight(2, width))
        keys, values = tape.linear(level, width), tape.linear(level, width)
        # A pair's tokens are already adjacent. Multiplied values are recomputed in the backward pass.
        side_by_side = (pairs, 2 * tokens, width)
        k = tape.place(Value(side_by_side, tape.itemsize, keys.grad or tape.trains), weights=roles[:1])
        v = tape.place(Value(side_by_side, tape.itemsize, values.grad or tape.trains), weights=roles[1:])
        x = _delta_attention(tape, x, k, v, config.heads, dropout, places=True)
        y = tape.linear(tape.activation(tape.linear(x, config.intermediate), "gelu"), width)
        x = tape.layer_norm(tape.elementwise(x, _dropout(tape, y) if dropout else y))
    if config.kind != "residual":
        return x
    value = tape.linear(normed[-1], width, bias=False)
    images = 2 * pairs
    k = tape.place(Value((images, tokens, width), tape.itemsize))
    v = Value((images, tokens, width), tape.itemsize, value.grad)
    q = tape.place(Value((images, config.tokens, width), tape.itemsize, tape.trains))
    around = tape.attention(q, k, v, config.heads, config.heads)
    difference = tape.elementwise(Value(x.shape, tape.itemsize, around.grad))
    return tape.elementwise(x, difference)


def _delta_attention(
    tape: Tape, x: Value, k: Value, v: Value, heads: int, dropout: bool, places: bool = False
) -> Value:
    q = tape.linear(x, x.shape[-1])
    if places:
        # The learned positions are added to the queries.
        q = tape.place(Value(q.shape, q.itemsize, q.grad or tape.trains))
    y = tape.linear(tape.attention(q, k, v, heads, heads), x.shape[-1])
    return tape.layer_norm(tape.elementwise(x, _dropout(tape, y) if dropout else y))


def _dropout(tape: Tape, x: Value) -> Value:
    return tape.elementwise(x, keeps=(Value(x.shape, 1),))


def _projector(tape: Tape, width: int, images: Value, deltas: Value) -> tuple[Value, Value]:
    first = tape.linear(images, width)
    images_out = tape.linear(tape.activation(first, "gelu"), width)
    second = tape.linear(deltas, width)
    return images_out, tape.linear(tape.activation(second, "gelu"), width)


@dataclass(frozen=True)
class _Shares:
    """One context rank's share of a micro-batch in the language model."""

    shape: Shape
    context: int

    @property
    def tokens(self) -> int:
        """Tokens per row; with context parallelism the rows are concatenated first."""
        shape = self.shape
        return shape.tokens if self.context == 1 else -(-shape.rows * shape.tokens // self.context)

    @property
    def targets(self) -> int:
        return -(-self.shape.targets // self.context)

    def first(self, tape: Tape, x: Value) -> Value:
        """The embeddings of this rank's tokens."""
        return x if self.context == 1 else tape.place(Value((1, self.tokens, x.shape[-1]), x.itemsize, x.grad))

    def attention(self, tape: Tape, q: Value, k: Value, v: Value, heads: int, kv_heads: int) -> Value:
        """Attention over all tokens for this rank's share of the heads."""
        context, shape = self.context, self.shape
        if context == 1:
            return tape.attention(q, k, v, heads, kv_heads, shape.scores)
        tokens, out = shape.rows * shape.tokens, q.shape
        here, kv_here = heads // context, kv_heads // math.gcd(kv_heads, context)

        def of_heads(x: Value, count: int, of: int) -> Value:
            return tape.place(Value((1, tokens, x.shape[-1] // of * count), x.itemsize, x.grad))

        q, k, v = of_heads(q, here, heads), of_heads(k, kv_here, kv_heads), of_heads(v, kv_here, kv_heads)
        scores = shape.rows * shape.tokens**2 if shape.scores is None else shape.scores
        mixed = tape.attention(q, k, v, here, kv_here, scores)
        return tape.place(Value(out, mixed.itemsize, mixed.grad))


def _decoder(
    tape: Tape, decoder: DecoderSizes, x: Value, own: _Shares, tensor: int, sequence: bool, adapters: Adapters | None
) -> Value:
    heads, kv_heads = decoder.heads // tensor, max(1, decoder.kv_heads // tensor)
    column, row = ("column", "row") if tensor > 1 else ("", "")

    def with_tokens(x: Value, tokens: int) -> Value:
        return tape.place(Value((x.shape[0], tokens, x.shape[2]), x.itemsize, x.grad)) if sequence else x

    def gathered(x: Value) -> Value:
        return with_tokens(x, own.tokens)

    def shared(x: Value) -> Value:
        return with_tokens(x, -(-own.tokens // tensor))

    def linear(x: Value, out: int, bias: bool, cut: str) -> Value:
        y = tape.linear(x, out, bias, cut=cut, plain=sequence and cut == "row")
        return shared(y) if cut == "row" else y

    def matrix(name: str, x: Value, out: int, bias: bool, cut: str) -> Value:
        y = linear(x, out, bias, cut)
        if adapters is None or name not in adapters.targets:
            return y
        with tape.training():
            x = _dropout(tape, x) if adapters.dropout else x
            inner = linear(x, adapters.rank, False, cut if cut == "row" else "")
            return tape.elementwise(y, linear(inner, out, False, cut if cut == "column" else ""))

    for number in range(decoder.layers):
        with tape.recomputable(x):
            x = shared(x) if number == 0 else x
            y = gathered(tape.rms_norm(x))
            q, k, v = (
                matrix(name, y, count * decoder.head_size, decoder.qkv_bias, column)
                for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads))
            )
            if decoder.head_norms:
                q, k = (_head_norm(tape, z, decoder.head_size) for z in (q, k))
            q, k = tape.elementwise(q, keeps=(tape.value(1),)), tape.elementwise(k, keeps=(tape.value(1),))  # rotated
            mixed = own.attention(tape, q, k, v, heads, kv_heads)
            x = tape.elementwise(x, matrix("o_proj", mixed, decoder.width, decoder.out_bias, row))
            y = gathered(tape.rms_norm(x))
            gate, up = (
                matrix(name, y, decoder.intermediate // tensor, decoder.mlp_bias, column)
                for name in ("gate_proj", "up_proj")
            )
            y = matrix("down_proj", _gated(tape, gate, up), decoder.width, decoder.mlp_bias, row)
            x = tape.elementwise(x, y)
    return gathered(tape.rms_norm(x))


def _head_norm(tape: Tape, x: Value, head_size: int) -> Value:
    split = Value((*x.shape[:-1], x.shape[-1] // head_size, head_size), x.itemsize, x.grad)
    normed = tape.rms_norm(split)
    return Value(x.shape, normed.itemsize, normed.grad)


def _gated(tape: Tape, gate: Value, up: Value) -> Value:
    gate = tape.activation(gate, "silu")
    return tape.elementwise(gate, up, keeps=(gate, up))
