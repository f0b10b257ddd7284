"""FLOPs of a micro-batch by part, accounting for frozen parts and recomputation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from onediff.config.training import Checkpointing
from onediff.plan.architecture import Sizes
from onediff.plan.tape import Op, Tape
from onediff.plan.walk import PARTS, Shape, Trained, walk


@dataclass(frozen=True)
class Flops:
    """FLOPs of one part: `forward` and `backward` of the model, `recompute` added by activation checkpointing."""

    forward: int = 0
    backward: int = 0
    recompute: int = 0

    @property
    def model(self) -> int:
        """FLOPs that count toward MFU: forward and backward, each once."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """All FLOPs computed."""
        return self.model + self.recompute

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.recompute + other.recompute)


def step_flops(
    sizes: Sizes, shape: Shape, trained: Trained, checkpointing: Checkpointing = "none", tensor: int = 1
) -> Mapping[str, Flops]:
    """FLOPs by part of one micro-batch on one of `tensor` ranks; only parts that train have a backward pass for weights.

    Equals the count of `torch.utils.flop_counter` with the `math` attention backend. Fused attention kernels recompute
    the scores in the backward pass; that is an implementation detail of the kernel and is not counted.
    """
    return flops_of(walk(sizes, shape, trained, tensor=tensor), checkpointing)


@lru_cache(maxsize=256)
def flops_of(tape: Tape, checkpointing: Checkpointing = "none") -> Mapping[str, Flops]:
    """FLOPs by part of the operations on a tape."""
    found = dict.fromkeys(PARTS, Flops())
    for op in tape.ops:
        found[op.part] += Flops(op.forward, op.backward)
    if checkpointing != "none":
        for ops in tape.by_layer().values():
            found[ops[0].part] += Flops(recompute=recomputed(ops, checkpointing))
    return found


def recomputed(ops: list[Op], checkpointing: Checkpointing) -> int:
    """FLOPs of recomputing a layer; torch stops at the last value that the backward pass needs.

    That value is reached before the operation that keeps it runs, so the last matrix product is never repeated.
    """
    total = pending = 0
    for op in ops:
        if op.keeps:
            total, pending = total + pending, 0
        pending += 0 if checkpointing == "selective" and op.is_product else op.forward
    return total


@dataclass(frozen=True)
class StepCost:
    """FLOPs of any micro-batch of a phase. They are linear in five counts, so one evaluation per count is enough."""

    per_token: int
    per_score: int
    per_image: int
    per_pair: int
    per_target: int

    @classmethod
    def of_phase(cls, sizes: Sizes, trained: Trained, tensor: int = 1, context: int = 1) -> StepCost:
        """The cost of a phase on one of `tensor` · `context` ranks, without recomputation."""

        def total(**counts: int) -> int:
            shape = Shape(**{"rows": 1, "tokens": 1, "images": 1, "pairs": 1, "targets": 0, "scores": 0, **counts})
            found = step_flops(sizes, shape, trained, tensor=tensor)
            return sum(part.model // (context if name == "language" else 1) for name, part in found.items())

        base = total()
        return cls(
            per_token=total(tokens=2) - base,
            per_score=total(scores=1) - base,
            per_image=total(images=2) - base,
            per_pair=total(pairs=2) - base,
            per_target=total(targets=1) - base,
        )

    def flops(self, shape: Shape) -> int:
        """Model FLOPs (forward and backward) of one micro-batch of this shape."""
        scores = shape.rows * shape.tokens**2 if shape.scores is None else shape.scores
        return (
            self.per_token * shape.rows * shape.tokens
            + self.per_score * scores
            + self.per_image * max(1, shape.images)
            + self.per_pair * max(1, shape.pairs)
            + self.per_target * shape.targets
        )
