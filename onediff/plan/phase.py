"""The plan of one phase: memory, traffic, FLOPs and time."""

from __future__ import annotations

from dataclasses import dataclass

from onediff.config.parallel import check_heads, ranks_within
from onediff.config.run import RunConfig
from onediff.errors import UserError
from onediff.plan.architecture import Sizes, sizes_of
from onediff.plan.duration import Duration, duration_of
from onediff.plan.flops import Flops, flops_of
from onediff.plan.gpus import Gpu
from onediff.plan.memory import Memory, memory_of
from onediff.plan.rows import TEXT, Rows, rows_of, shapes_of
from onediff.plan.setup import Setup
from onediff.plan.tape import Tape
from onediff.plan.traffic import Traffic, traffic_of
from onediff.plan.walk import PARTS, Shape, Trained, walk

CONTEXT_GB = 2.0
"""Bytes used by the driver, NCCL and libraries before the first tensor is allocated."""
FRAGMENTS = 0.05
"""Fraction of GPU memory lost to fragmentation."""


@dataclass(frozen=True)
class PhasePlan:
    """The plan of one phase."""

    name: str
    setup: Setup
    rows: Rows
    parameters: dict[str, tuple[int, int]]
    """Total and trained parameters of each part, for the whole model at any T."""
    memory: Memory
    flops: dict[str, Flops]
    """FLOPs of one step by part, summed over all ranks."""
    traffic: Traffic
    duration: Duration
    usable_bytes: int
    """Memory that tensors may use on one GPU."""
    mfu: tuple[float, float]
    checkpoint_bytes: int
    images_per_second: float
    """The rate that all loaders together must deliver."""

    @property
    def fits(self) -> bool:
        return self.memory.gpu <= self.usable_bytes

    @property
    def hours(self) -> float | None:
        """Expected hours of the phase, or None if its length is unknown."""
        return None if self.rows.steps is None else self.rows.steps * self.duration.expected / 3600


def setup_of(config: RunConfig, name: str, gpus: int, per_node: int) -> Setup:
    """How the configuration runs the phase `name` on `gpus` GPUs. Raises UserError if it cannot."""
    phase, parallel = config.phases[name], config.of_phase(name).parallel
    size, keys = parallel.row_ranks, parallel.row_keys
    if gpus % size:
        raise UserError(f"{keys}: {gpus} GPUs cannot be split into groups of {size}")
    if size > min(gpus, per_node) and not parallel.across_nodes:
        raise UserError(f"{keys}: groups of {size} do not fit into nodes with {per_node} GPUs")
    rows = phase.micro_batch * gpus // size
    if phase.global_batch % rows:
        raise UserError(
            f"phases.{name}.global_batch: {phase.global_batch} cannot be split over {gpus} GPUs with "
            f"{keys} {size} in micro-batches of {phase.micro_batch}; make it a multiple of {rows}, or "
            "let --suggest choose"
        )
    return Setup(
        world=gpus,
        per_node=min(per_node, gpus),
        tensor=parallel.tensor,
        context=parallel.context,
        stage=parallel.zero_stage,
        sharing=ranks_within(parallel.shard_within, parallel.tensor, gpus, per_node),
        micro_batch=phase.micro_batch,
        global_batch=phase.global_batch,
        bf16=config.training.precision == "bf16",
        checkpointing=config.checkpointing_of(phase),
        offload_optimizer=parallel.offload_optimizer,
        offload_parameters=parallel.offload_parameters,
        loss_chunk=config.training.loss_chunk,
        sequence=parallel.sequence,
        save_in_background=config.training.save_in_background,
        peer_copies=config.training.peer_copies is not None,
    ).with_keys_of(parallel)


def usable_bytes(gpu: Gpu) -> int:
    """Bytes of a GPU's memory that tensors may use."""
    return int((gpu.memory_gb * (1 - FRAGMENTS) - CONTEXT_GB) * 1e9)


def check_cut(sizes: Sizes, tensor: int, context: int = 1) -> None:
    """Raises UserError unless `tensor` divides the language model's sizes, and `tensor` · `context` its heads."""
    decoder = sizes.decoder
    counts = {
        "attention heads": decoder.heads,
        "key/value heads": decoder.kv_heads,
        "feed-forward units": decoder.intermediate,
    }
    for what, count in counts.items():
        if count % tensor:
            raise UserError(f"parallel.tensor: {count} {what} cannot be split into {tensor} equal parts")
    check_heads(decoder.heads, tensor, context)


def plan_phase(config: RunConfig, name: str, setup: Setup, gpu: Gpu, text: int = TEXT) -> PhasePlan:
    """The plan of the phase `name` with `setup` on `gpu`.

    Raises UserError if the model cannot be split that way or its architecture is unknown.
    """
    sizes, phase = sizes_of(config.model), config.phases[name]
    check_cut(sizes, setup.tensor, setup.context)
    rows = rows_of(config.model, config.data, phase, text)
    usual, largest = shapes_of(sizes, rows, setup.micro_batch, config.data.max_tokens, text, phase.pack)

    def tape_of(sizes: Sizes, shape: Shape, tensor: int, context: int) -> Tape:
        options = {"tensor": tensor, "sequence": setup.sequence, "context": context}
        return walk(sizes, shape, Trained.of(phase), itemsize=setup.itemsize, **options)

    memory = memory_of(tape_of(sizes, largest, setup.tensor, setup.context), setup, usual.bytes(sizes.usual()))
    tape = tape_of(sizes.usual(), usual, setup.tensor, setup.context)
    traffic = traffic_of(tape, sizes, usual, setup)
    own = flops_of(tape, setup.checkpointing)
    hardware = setup.accumulation * sum(part.hardware for part in own.values())
    duration = duration_of(tape, setup, traffic, hardware, sizes.decoder.width, gpu)
    whole = tape_of(sizes.usual(), usual, 1, 1)
    times = setup.accumulation * setup.data
    flops = {
        part: Flops(f.forward * times, f.backward * times, f.recompute * times)
        for part, f in flops_of(whole, setup.checkpointing).items()
    }
    model_flops = sum(part.model for part in flops.values())
    most = setup.world * gpu.tflops * 1e12
    parameters = {
        part: (
            sum(weight.numel for weight in whole.weights if weight.part == part),
            sum(weight.numel for weight in whole.weights if weight.part == part and weight.trains),
        )
        for part in PARTS
    }
    total, trained = (sum(count[i] for count in parameters.values()) for i in (0, 1))
    return PhasePlan(
        name=name,
        setup=setup,
        rows=rows,
        parameters=parameters,
        memory=memory,
        flops=flops,
        traffic=traffic,
        duration=duration,
        usable_bytes=usable_bytes(gpu),
        mfu=(model_flops / most / duration.worst, model_flops / most / duration.best),
        checkpoint_bytes=12 * trained + setup.itemsize * (total - trained),
        images_per_second=rows.images * setup.global_batch / duration.expected,
    )
