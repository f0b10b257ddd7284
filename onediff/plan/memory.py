"""Memory of one GPU by kind, from the tape of a micro-batch and what DeepSpeed 0.19 allocates at each ZeRO stage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from onediff.config.parallel import SUB_GROUP, SWAPPED_TENSORS
from onediff.plan.setup import Setup
from onediff.plan.tape import Op, Tape

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
"""What lies in the memory of a GPU."""

PEER_COPIES = 5
"""Times what a rank writes: two generations, on two nodes each, and the memory that they are written from."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the fullest moment of a step, and what lies in the memory of the host or on its disk instead."""

    moment: str
    """what is going on when it is fullest: `in the backward pass`, …; what is not there at that moment counts as 0"""
    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights, both moments, and the fp32 gradients that the optimizer is handed"""
    activations: int
    """what is kept for the backward pass, and what the backward pass of one operation needs beside it"""
    logits: int
    buffers: int
    """gathered weights of ZeRO-3, buckets of gradients on their way, micro-batches"""
    host: int = 0
    """what is offloaded, for each rank"""
    host_copy: int = 0
    """what a checkpoint is written from in the background, for each rank; there only while one is"""
    peer_copies: int = 0
    """copies in memory: this rank's share of `/dev/shm`, and what it is written from"""
    nvme: int = 0
    """for each rank"""

    @property
    def gpu(self) -> int:
        """All of it."""
        return sum(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True)
class Counts:
    """Parameters of this rank."""

    trained: int
    frozen: int
    small: int
    """of all, those in parameters that ZeRO-3 keeps gathered"""
    largest: int
    """the largest one"""
    group: int
    """those of the largest group that the optimizer steps on: the matrices of a part, or the rest of it"""

    @classmethod
    def of(cls, tape: Tape, setup: Setup) -> Counts:
        sizes = [(weight.numel, weight.trains) for weight in tape.weights]
        groups: dict[tuple[str, bool], int] = defaultdict(int)
        for weight in tape.weights:
            groups[weight.part, len(weight.shape) > 1] += weight.numel * weight.trains
        return cls(
            trained=sum(n for n, trains in sizes if trains),
            frozen=sum(n for n, trains in sizes if not trains),
            small=sum(n for n, _ in sizes if n < setup.persistent),
            largest=max(n for n, _ in sizes),
            group=max(groups.values()),
        )


def memory_of(tape: Tape, setup: Setup, micro_batch_bytes: int = 0) -> Memory:
    """The fullest moment: while the backward pass runs, while gradients are reduced, or while the optimizer steps.

    `micro_batch_bytes` is the size of one micro-batch on the device.
    """
    counts = Counts.of(tape, setup)
    # Those of the step before stay until its metrics are known; one more is copied ahead.
    batches = (2 * setup.accumulation + 1) * micro_batch_bytes
    written = _written(tape, setup)
    resident = {
        **_resident(counts, setup),
        "host_copy": written if setup.copies_checkpoints else 0,
        "peer_copies": PEER_COPIES * written if setup.peer_copies else 0,
    }
    activations, logits, gradients = backward_peak(tape, setup)
    # With fp32 gradients at stage 1 DeepSpeed takes its bf16 optimizer, which reduces them where they are.
    elements = 0 if setup.stage == 1 and setup.bf16 else min(setup.bucket, counts.trained)
    bucket, averaged = elements * setup.itemsize, elements * setup.reduced_itemsize
    # ZeRO-3 gives back only what it will not need again soon.
    gathered = setup.itemsize * min(counts.trained + counts.frozen, setup.live) if setup.stage == 3 else 0
    backward = Memory(
        "in the backward pass",
        **resident,
        gradients=gradients,
        activations=activations,
        logits=logits,
        buffers=(bucket if setup.stage else 0) + gathered + batches,
    )
    stepping = _stepping(counts, setup, resident, batches + (bucket + gathered if setup.stage == 3 else 0))
    # The last bucket of gradients is averaged, which takes a copy of it, while those before have been added up. At stage 3
    # it is also scattered, which leaves this rank's share of it.
    wide = 4 if setup.bf16 else setup.itemsize
    buffers = batches + bucket + averaged
    if setup.stage == 3:
        buffers += gathered + averaged // setup.copies
    reducing = Memory(
        "while gradients are reduced",
        **resident,
        gradients=int(wide * counts.trained / setup.copies),
        activations=0,
        logits=0,
        buffers=buffers,
    )
    moments = [backward, stepping] + [reducing] * (setup.stage > 0 and setup.offload_optimizer == "none")
    return max(moments, key=lambda memory: memory.gpu)


def _resident(counts: Counts, setup: Setup) -> dict[str, int]:
    """Weights and optimizer states between two steps, and the bytes of them on the host and on NVMe."""
    size, data = setup.itemsize, setup.copies
    share = counts.trained / data if setup.stage else counts.trained
    everything = counts.trained + counts.frozen
    weights = size * everything / data if setup.stage == 3 else size * everything
    # DeepSpeed keeps a master copy in fp32 runs too, but where stage 3 has nothing to share out.
    copied = setup.stage in (1, 2) or (setup.stage == 3 and setup.copies > 1)
    master = 4 * share if setup.bf16 or copied else 0
    optimizer = master + 8 * share
    host = nvme = 0.0
    if setup.offload_optimizer == "nvme":
        # Gradients are added up on the host; there is room for one sub-group of what is swapped and its gradients.
        nvme = 4 * SWAPPED_TENSORS * share
        host += 4 * share + 4 * (SWAPPED_TENSORS + 1) * min(share, SUB_GROUP)
        optimizer = 0
    elif setup.offload_optimizer == "cpu":
        host += optimizer + 4 * share
        optimizer = 0
    if setup.offload_parameters != "none":
        host += weights
        weights = 0
    return {"weights": int(weights), "optimizer": int(optimizer), "host": int(host), "nvme": int(nvme)}


def _written(tape: Tape, setup: Setup) -> int:
    """Bytes of this rank's file of a checkpoint: equal parts of what several ranks hold, which frozen weights are, too."""
    sizes = ((12 if w.trains else setup.itemsize) * w.numel / (1 if w.cut else setup.tensor) for w in tape.weights)
    return int(sum(sizes) / setup.copies)


def held_gradients(counts: Counts, setup: Setup) -> int:
    """Bytes of the gradients that are added up over micro-batches, whole or this rank's share."""
    if setup.offload_optimizer != "none":
        return 0
    wide = 4 if setup.bf16 and setup.stage else setup.itemsize
    share = counts.trained / setup.copies if setup.stage >= 2 else counts.trained
    return int(wide * share)


def _stepping(counts: Counts, setup: Setup, resident: dict[str, int], staying: int) -> Memory:
    """While the optimizer steps: fp32 gradients beside those of the backward pass, and its temporaries.

    Stage 0 has a copy of all gradients in bf16 runs, and flattens them in fp32 ones. DeepSpeed's bf16 optimizer, at stage 1,
    flattens and copies all of them whatever D is. The others copy this rank's share group by group; at stage 3 the group
    that was copied is there still.
    `staying` buffers are never given back.
    """
    gradients = held_gradients(counts, setup)
    if setup.offload_optimizer != "none":
        extra = 0.0
    elif setup.stage == 0:
        extra = 4 * counts.trained + (8 * counts.largest if setup.bf16 else 0)
    elif setup.stage == 1 and setup.bf16:
        extra = 8 * counts.trained
    else:
        extra = (8 if setup.stage == 3 else 4) * counts.group / setup.copies
    moment = "while the optimizer steps"
    return Memory(moment, **resident, gradients=gradients, activations=0, logits=0, buffers=int(extra) + staying)


def backward_peak(tape: Tape, setup: Setup) -> tuple[int, int, int]:
    """Bytes of activations, of logits and of gradients at the fullest moment of the backward pass.

    Walks backwards: what operations before keep is still there, gradients of the parameters behind are there already.
    """
    kept, logits = kept_bytes(tape, setup)
    counts = Counts.of(tape, setup)
    held = held_gradients(counts, setup)
    # ZeRO-3 has a place for its share from the beginning; elsewhere gradients take memory as they are made.
    collects = setup.stage == 3 or setup.accumulation > 1 or (setup.stage == 1 and setup.bf16)
    spread = setup.copies if setup.stage == 2 else 1
    wide = held // max(1, counts.trained // spread)
    best = (0, 0, held)
    alive, behind = sum(kept), 0
    recomputed = _recomputed_bytes(tape, setup)
    for op, own in zip(reversed(tape.ops), reversed(kept), strict=True):
        working = _working_bytes(op, setup.itemsize) if op.out.grad else 0
        if op.layer is not None and op.out.grad:
            working += recomputed[op.layer]
        behind += sum(weight.numel for weight in op.weights if weight.trains)
        gradients = held if collects else behind * wide // spread
        if alive + working + gradients > sum(best):
            of_logits = min(logits, alive)
            best = (alive - of_logits + working, of_logits, gradients)
        alive -= own
        if op.kind == "loss":
            logits = 0
    return best


def kept_bytes(tape: Tape, setup: Setup) -> tuple[list[int], int]:
    """Bytes that each operation is the first to keep until the backward pass, and how many of all are logits."""
    checkpointing, chunk = setup.checkpointing, setup.loss_chunk
    seen: set[int] = set()
    found: list[int] = []
    logits = 0
    for op in tape.ops:
        kept = op.kept_at(setup.stage)
        if op.layer is not None and checkpointing != "none":
            kept = (tape.layer_inputs[op.layer],) if op.out.grad else ()
            if checkpointing == "selective" and op.is_product and op.out.grad:
                kept += (op.out,)
        own = 0
        for value in kept:
            if id(value) not in seen:
                seen.add(id(value))
                own += value.bytes
        if op.kind == "loss":
            # By chunks, only the one that is being computed has logits.
            own = own if chunk is None else int(own * min(1.0, chunk / max(1, op.out.numel)))
            logits += own
        found.append(own)
    return found, logits


def _recomputed_bytes(tape: Tape, setup: Setup) -> dict[int, int]:
    """Bytes that each layer keeps once it has been computed again."""
    found: dict[int, int] = defaultdict(int)
    if setup.checkpointing == "none":
        return found
    for layer, ops in tape.by_layer().items():
        values = {id(value): value for op in ops for value in op.kept_at(setup.stage)}
        values.pop(id(tape.layer_inputs[layer]), None)
        if setup.checkpointing == "selective":
            for op in ops:
                if op.is_product:
                    values.pop(id(op.out), None)
        found[layer] = sum(value.bytes for value in values.values())
    return found


def _working_bytes(op: Op, itemsize: int) -> int:
    """What the backward pass of one operation needs: the gradient of its result, and of what it was computed from."""
    inputs = sum(value.numel for value in op.kept if value.grad)
    return (op.out.numel + inputs) * itemsize
