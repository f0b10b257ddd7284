"""Memory of one GPU by kind, from the tape of a micro-batch and the allocations of DeepSpeed 0.19 at each ZeRO stage."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from onediff.config.parallel import SUB_GROUP, SWAPPED_TENSORS
from onediff.plan.setup import Setup
from onediff.plan.tape import Op, Tape

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
"""The kinds of data in GPU memory."""

PEER_COPIES = 5
"""Memory for peer copies, in multiples of what a rank writes: two generations on two nodes each, plus the staging buffer."""


@dataclass(frozen=True)
class Memory:
    """Bytes in use on one GPU at the peak of a step, and bytes kept in host memory or on disk instead."""

    moment: str
    """When the peak occurs: `in the backward pass`, …; kinds not allocated at that moment are 0."""
    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights, both moments, and the fp32 gradients passed to the optimizer."""
    activations: int
    """Values kept for the backward pass, plus the working memory of the operation being differentiated."""
    logits: int
    buffers: int
    """Weights gathered by ZeRO-3, gradient buckets in flight, micro-batches."""
    host: int = 0
    """Offloaded state, per rank."""
    host_copy: int = 0
    """Staging copy for a checkpoint written in the background, per rank; allocated only during the write."""
    peer_copies: int = 0
    """In-memory checkpoints: this rank's share of `/dev/shm`, plus the staging copy."""
    nvme: int = 0
    """Bytes on NVMe, per rank."""

    @property
    def gpu(self) -> int:
        """Total bytes on the GPU."""
        return sum(getattr(self, kind) for kind in KINDS)


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters on this rank."""

    trained: int
    frozen: int
    gathered_trained: int
    """Trained parameters that ZeRO-3 gathers for each use."""
    largest: int
    """Size of the largest tensor."""
    group: int
    """Size of the largest optimizer group: the matrices of a part, or its other parameters."""

    @classmethod
    def of(cls, tape: Tape, setup: Setup) -> Counts:
        return _counts(tape, setup.persistent)


@lru_cache(maxsize=256)
def _counts(tape: Tape, persistent: int) -> Counts:
    sizes = [(weight.numel, weight.trains) for weight in tape.weights]
    groups: dict[tuple[str, bool], int] = defaultdict(int)
    for weight in tape.weights:
        groups[weight.part, len(weight.shape) > 1] += weight.numel * weight.trains
    return Counts(
        trained=sum(n for n, trains in sizes if trains),
        frozen=sum(n for n, trains in sizes if not trains),
        gathered_trained=sum(n for n, trains in sizes if trains and n >= persistent),
        largest=max(n for n, _ in sizes),
        group=max(groups.values()),
    )


def memory_of(tape: Tape, setup: Setup, micro_batch_bytes: int = 0) -> Memory:
    """The peak of a step: in the backward pass, while gradients are reduced, or while the optimizer steps.

    `micro_batch_bytes` is the size of one micro-batch on the device.
    """
    counts = Counts.of(tape, setup)
    # The previous step's micro-batches stay until its metrics are known; one more is copied ahead.
    batches = (2 * setup.accumulation + 1) * micro_batch_bytes
    written = _written(tape, setup)
    resident = {
        **_resident(counts, setup),
        "host_copy": written if setup.copies_checkpoints else 0,
        "peer_copies": PEER_COPIES * written if setup.peer_copies else 0,
    }
    activations, logits, gradients = backward_peak(tape, setup)
    # With fp32 gradients at stage 1 DeepSpeed uses its bf16 optimizer, which reduces them in place.
    elements = 0 if setup.stage == 1 and setup.bf16 else min(setup.bucket, counts.trained)
    bucket, averaged = elements * setup.itemsize, elements * setup.reduced_itemsize
    # ZeRO-3 releases only weights that it will not need again soon, and gathers a tensor whole even if it exceeds the limit.
    live = min(counts.trained + counts.frozen, max(setup.live, counts.largest))
    gathered = setup.itemsize * live if setup.stage == 3 else 0
    backward = Memory(
        "in the backward pass",
        **resident,
        gradients=gradients,
        activations=activations,
        logits=logits,
        buffers=(bucket if setup.stage else 0) + gathered + batches,
    )
    stepping = _stepping(counts, setup, resident, batches + (bucket + gathered if setup.stage == 3 else 0))
    # The last gradient bucket is averaged, which copies it, while the earlier ones are already accumulated. Stage 3 also
    # scatters it, which leaves this rank's share of it.
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
    """Bytes of weights and optimizer states between two steps: on the GPU, on the host and on NVMe."""
    size, data = setup.itemsize, setup.copies
    share = counts.trained / data if setup.stage else counts.trained
    everything = counts.trained + counts.frozen
    weights = size * everything / data if setup.stage == 3 else size * everything
    if setup.sharing:  # the node's copy
        weights += size * everything / setup.sharing
    # DeepSpeed keeps a master copy in fp32 runs too, unless stage 3 has nothing to partition.
    copied = setup.stage in (1, 2) or (setup.stage == 3 and setup.copies > 1)
    master = 4 * share if setup.bf16 or copied else 0
    optimizer = master + 8 * share
    host = nvme = 0.0
    if setup.offload_optimizer == "nvme":
        # Gradients accumulate in host memory, which also holds one sub-group of swapped state and its gradients.
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
    """Bytes of this rank's checkpoint file: state held by several ranks, frozen weights included, is split evenly."""
    sizes = ((12 if w.trains else setup.itemsize) * w.numel / (1 if w.cut else setup.tensor) for w in tape.weights)
    return int(sum(sizes) / setup.copies)


def held_gradients(counts: Counts, setup: Setup) -> int:
    """Bytes of the gradients accumulated over micro-batches, whole or this rank's share."""
    if setup.offload_optimizer != "none":
        return 0
    wide = 4 if setup.bf16 and setup.stage else setup.itemsize
    share = counts.trained / setup.copies if setup.stage >= 2 else counts.trained
    return int(wide * share)


def _stepping(counts: Counts, setup: Setup, resident: dict[str, int], staying: int) -> Memory:
    """Memory while the optimizer steps: fp32 gradients in addition to those of the backward pass, and temporaries.

    Stage 0 copies all gradients in bf16 runs and flattens them in fp32 runs. DeepSpeed's bf16 optimizer, used at stage 1,
    flattens and copies all of them for any D. The other stages copy this rank's share group by group; at stage 3 the
    copied group is still allocated.
    `staying` is the size of the buffers that are never released.
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
    """Bytes of activations, logits and gradients at the peak of the backward pass.

    Walks the tape backwards: what earlier operations keep is still allocated, and so are the gradients of later ones.
    """
    kept, logits = kept_bytes(tape, setup)
    counts = Counts.of(tape, setup)
    held = held_gradients(counts, setup)
    # ZeRO-3 allocates its share up front; the other stages allocate gradients as they are produced.
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
    """Bytes that each operation is the first to keep until the backward pass, and how many bytes in total are logits."""
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
            # With a chunked loss, logits exist for the current chunk only.
            own = own if chunk is None else int(own * min(1.0, chunk / max(1, op.out.numel)))
            logits += own
        found.append(own)
    return found, logits


def _recomputed_bytes(tape: Tape, setup: Setup) -> dict[int, int]:
    """Bytes that each layer keeps once it has been recomputed."""
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
    """Working memory of one operation's backward pass: the gradients of its result and of its inputs."""
    inputs = sum(value.numel for value in op.kept if value.grad)
    return (op.out.numel + inputs) * itemsize
