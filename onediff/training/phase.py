"""One phase on this rank: its parts and its progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.data.cursor import Cursor
from onediff.data.loader import RankShare
from onediff.data.position import Position
from onediff.data.stream import Stream
from onediff.model.build import build_processor
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.topology import Topology
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import CheckpointWriter
from onediff.training.checkpoint.copies import PeerCopies
from onediff.training.checkpoint.folder import checkpoints, step_of
from onediff.training.data import phase_steps, phase_stream
from onediff.training.engine import Engine
from onediff.training.evaluations import Evaluations
from onediff.training.guard import Guard
from onediff.training.measures import Measures
from onediff.training.metrics import FlopCounter
from onediff.training.optimizer import trainable
from onediff.training.samples import Samples
from onediff.training.start import starting_model
from onediff.training.stop import StopRequest
from onediff.training.stragglers import StragglerMonitor
from onediff.training.validation import Validation

log = logging.getLogger(__name__)


@dataclass
class Phase:
    """The parts that `train_phase` works with, and the state that checkpoints store."""

    name: str
    config: PhaseConfig
    training: TrainingConfig
    steps: int
    """the last step"""
    engine: Engine
    stream: Stream
    share: RankShare
    """the part of each global batch that this rank reads"""
    folder: RunFolder
    stop: StopRequest
    samples: Samples
    measures: Measures
    stragglers: StragglerMonitor
    flops: FlopCounter
    writer: CheckpointWriter
    guard: Guard
    position: Position
    """where the phase began to read on this start"""
    cursor: Cursor
    """this rank's position in the data after the last submitted step"""
    rank: int
    copies: PeerCopies | None = None
    """copies in the memory of two nodes, if enabled"""
    tracker: Any = None
    """on rank 0"""
    around_step: Callable[[int], AbstractContextManager[object]] = nullcontext
    """a context around the host's work for a step, by its number"""
    step: int = 0
    """steps whose metrics are known"""
    saved: int = 0
    """the last step with a checkpoint"""
    skipped: int = 0
    """unreadable samples that all ranks have skipped since the phase began"""
    metrics: dict[str, float] = field(default_factory=dict)
    """of `step`"""

    def captions_due(self, step: int) -> bool:
        """Whether captions are due after `step`: at the phase's end, and every few steps if set."""
        every = self.training.captions_every
        return step == self.steps or (every is not None and step % every == 0)

    def checkpoint_due(self, step: int) -> bool:
        """Whether `step` is followed by a checkpoint, regardless of measurements."""
        return step % self.config.checkpoint_every == 0 or step == self.steps

    def copy_due(self, step: int) -> bool:
        """Whether `step` is followed by a copy in memory."""
        return self.copies is not None and self.copies.due(step) and step < self.steps

    def due(self, step: int) -> bool:
        """Whether anything happens between `step` and the next one."""
        return self.checkpoint_due(step) or self.captions_due(step) or self.measures.due(step) or self.copy_due(step)

    def make_durable(self, checkpoint: Path | None) -> None:
        """Writes to disk the tracked history up to a finished checkpoint, if there is one."""
        if checkpoint is not None and self.rank == 0:
            self.tell_checkpoints()
            self.tracker.durable()

    def tell_checkpoints(self) -> None:
        """Records which checkpoints are on disk. On rank 0."""
        kept = checkpoints(self.folder.checkpoints(self.name))
        self.tracker.checkpoints(self.name, [step_of(path) for path in kept])


def build_phase(
    config: RunConfig,
    name: str,
    folder: RunFolder,
    topology: Topology,
    stop: StopRequest,
    *,
    resumes: bool,
    swap: Path | None = None,
) -> tuple[Phase, dict[str, object]]:
    """A phase before its first step, and tags that name its origin. Collective.

    A phase that `resumes` gets its weights later, from its checkpoint. `swap` is the folder for optimizer states on NVMe.
    Raises UserError on every rank.
    """
    phase = config.phases[name]
    with raise_on_all_ranks():
        processor, tokenizer = build_processor(config.model, config.data, folder.tokenizer)
        stream = phase_stream(config.data, phase, processor)
        share = RankShare.of_rank(phase.global_batch, phase.micro_batch, topology.dp_rank, topology.dp_size)
        steps = phase_steps(phase, stream)
        samples = Samples(config.data, config.evaluation, config.training.sample_captions, processor, tokenizer)
        evaluations = Evaluations(config, name, processor, tokenizer, topology, folder.path)
    validation = Validation(config, name, processor, topology)
    with raise_on_all_ranks():
        measures = Measures(name, phase.best, config.evaluation.metrics, validation, evaluations)
    measures.heed(stop)
    model, started_from = starting_model(config, name, folder, topology, resumes=resumes, stop=stop)
    engine = Engine(model, config, phase, topology, swap)
    kernels = {"kernels.norms": model.norms, "kernels.optimizer": engine.optimizer_kernel}
    if topology.ranks.rank == 0:
        counts = ", ".join(f"{part} {trains:,} of {total:,}" for part, (total, trains) in trainable(model).items())
        log.info("phase %s: %d steps of %d rows; trains %s", name, steps, phase.global_batch, counts)
        log.info("kernels: norms by %s; steps by %s", *kernels.values())
    # A copy in memory of swapped states would defeat the swapping.
    writer = checkpoint_writer(folder, name, phase, config.training.save_in_background and swap is None)
    position = Position.start(stream, phase.global_batch, config.data.block)
    made = Phase(
        name=name,
        config=phase,
        training=config.training,
        steps=steps,
        engine=engine,
        stream=stream,
        share=share,
        folder=folder,
        stop=stop,
        samples=samples,
        measures=measures,
        stragglers=straggler_monitor(config.training.log_every, config.data.workers, topology, engine),
        flops=FlopCounter(config.model, phase, topology.tp_size, config.training.precision, topology.cp_size),
        writer=writer,
        guard=Guard(config.training.bad_steps, name, steps, engine, stream, folder),
        position=position,
        cursor=position.cursor(share.lanes),
        rank=topology.ranks.rank,
    )
    return made, started_from | kernels


def straggler_monitor(log_every: int, workers: int, topology: Topology, engine: Engine) -> StragglerMonitor:
    """The monitor of this rank's steps; `workers` processes load its data."""
    return StragglerMonitor(
        log_every, engine.device, loads_itself=workers == 0, counts_skipped=topology.reads, ranks=topology.ranks
    )


def checkpoint_writer(folder: RunFolder, name: str, phase: PhaseConfig, background: bool) -> CheckpointWriter:
    """The writer of a phase's checkpoints."""
    return CheckpointWriter(
        folder.checkpoints(name), keep_last=phase.keep_checkpoints, keep_every=phase.keep_every, background=background
    )
