"""The loss on fixed held-out rows, every few steps: the same rows and numbers for any number of ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist

from onediff.config.data import DataConfig
from onediff.config.run import RunConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.rows import Processor, collate
from onediff.data.sample import BadSample
from onediff.data.splits import validated_sets
from onediff.data.stream import Source, Stream
from onediff.errors import UserError
from onediff.parallel.agreement import from_rank_zero, raise_on_all_ranks
from onediff.parallel.topology import Topology
from onediff.runs.section import beat, section
from onediff.training.engine import Engine
from onediff.training.objectives.captions import CaptionObjective
from onediff.training.stop import no_check

log = logging.getLogger(__name__)

Chosen = list[tuple[int, int]]
"""A row's stream, and its index in the stream's only lane."""


class Validation:
    """Held-out rows of a phase, rebuilt each time by the rank that computes their loss.

    Rows are built as in the phase, coupled if it couples, but not packed. Neither the number of ranks nor `pack` affects
    which rows share a batch or the order in which losses are added.
    """

    def __init__(self, config: RunConfig, phase_name: str, processor: Processor, topology: Topology) -> None:
        """Collective. Raises UserError on every rank if there are no such rows."""
        phase = config.phases[phase_name]
        # Whatever the phase minimises, runs are compared by the loss on captions.
        self.objective = CaptionObjective(phase, config.training)
        self.phase, self.every, self.topology = phase_name, phase.validate_every, topology
        self.check: Callable[[torch.device], None] = no_check
        self.names: list[str] = []
        self.batches: list[Chosen] = []
        self.spare: Batch | None = None
        if self.every is None:
            return
        with raise_on_all_ranks():
            self.names = validated_sets(config.data, phase, phase_name)
            self.streams = [held_out(config.data, phase, name, processor) for name in self.names]
        chosen: Chosen = []
        with raise_on_all_ranks():
            # Choosing reads every row once, so one rank does it.
            if topology.ranks.rank == 0:
                chosen = [row for number in range(len(self.names)) for row in self._chosen(number, phase)]
        chosen = from_rank_zero(chosen)  # type: ignore[assignment]
        rows = phase.micro_batch * (phase.pack // config.data.max_tokens if phase.pack else 1)
        self.batches = [chosen[start : start + rows] for start in range(0, len(chosen), rows)]
        with raise_on_all_ranks():
            # Under ZeRO-3 all ranks run the same layers: a rank without rows runs this batch, and its loss is not counted.
            self.spare = next((made for row in chosen if (made := self._batch([row])) is not None), None)
            if self.spare is None:
                raise UserError(f"phases.{phase_name}.validation: none of the {len(chosen)} held-out rows can be read")

    def due(self, step: int) -> bool:
        """Whether this step is followed by a validation."""
        return self.every is not None and step % self.every == 0

    @section("validation")
    @torch.no_grad()
    def losses(self, engine: Engine, step: int) -> dict[str, float]:
        """`validation/loss`, the mean over all targets, and `validation/loss/<data set>`, on every rank. Collective.

        Costs the forward passes of the rows; changes no random state, and waits for the device once, at the end. All ranks
        call `check` before each batch; what it raises must be raised on every rank.
        """
        assert self.spare is not None
        rank, ranks = self.topology.dp_rank, self.topology.dp_size
        sums = torch.zeros(len(self.batches), 2, len(self.names), dtype=torch.float64, device=engine.device)
        engine.model.eval()
        try:
            with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
                for first in range(0, len(self.batches), ranks):
                    self.check(engine.device)
                    beat(first, len(self.batches))
                    number = first + rank
                    made = None
                    if number < len(self.batches) and self.topology.reads:
                        made = self._batch(self.batches[number])
                    made = self.topology.from_reader(made)
                    batch = (made or self.spare).to(engine.device)
                    of_targets = engine.model(batch, self.objective).double()
                    if made is not None:
                        sums[number, 0].index_add_(0, batch.target_sources, of_targets)
                        sums[number, 1].index_add_(0, batch.target_sources, torch.ones_like(of_targets))
        finally:
            engine.model.train()
        # Each batch has its own slot, so the order of additions does not depend on which rank computed it.
        dist.all_reduce(sums, group=engine.sharded.data_group)
        # The ranks of a context group have the same batches.
        losses, targets = (sums.sum(0) / self.topology.cp_size).tolist()
        measured = {"validation/loss": sum(losses) / max(1.0, sum(targets))}
        measured |= {
            f"validation/loss/{name}": loss / count
            for name, loss, count in zip(self.names, losses, targets, strict=True)
            if count
        }
        if self.topology.ranks.rank == 0:
            log.info("phase %s step %d: validation loss %.4f", self.phase, step, measured["validation/loss"])
        return measured

    def _chosen(self, number: int, phase: PhaseConfig) -> Chosen:
        """Random readable rows of one data set, longest first so that rows in a batch have similar lengths."""
        stream = self.streams[number]
        lengths: list[tuple[int, int]] = []
        samples = stream.sources[0].lanes.samples
        for index in range(samples):
            if len(lengths) == phase.validation.rows:
                break
            try:
                lengths.append((stream.tokens(0, index), index))
            except BadSample as bad:
                log.warning("unreadable sample of %s, left out of the validation: %s", self.names[number], bad)
        if not lengths:
            raise UserError(f"phases.{self.phase}.validation: {self.names[number]}: no readable sample in its split")
        return [(number, index) for _, index in sorted(lengths, key=lambda row: (-row[0], row[1]))]

    def _batch(self, chosen: Chosen) -> Batch | None:
        """A batch of these rows, without those whose images cannot be decoded; None if no row is left."""
        rows = []
        for number, index in chosen:
            try:
                row = self.streams[number].one(0, index)
            except BadSample as bad:
                log.warning("unreadable sample of %s, left out of the validation: %s", self.names[number], bad)
                continue
            row.source = number
            rows.append(row)
        return collate(rows) if rows else None


def held_out(data: DataConfig, phase: PhaseConfig, name: str, processor: Processor) -> Stream:
    """The held-out rows of one data set, in the order of a single lane that is shuffled as a whole."""
    data_set = data.sets[name]
    folder = data_set.model_copy(update={"split": phase.validation.split}).folder
    # A coupling rule reads the captions of a whole block, so a block must be smaller than the split.
    block = data.block if isinstance(phase.couple, str) else 1 << 40
    source = Source.open(name, folder, 1, data.seed, block, task=data_set.task, cache=data.cache)
    return Stream([source], processor, phase.couple, data.seed, data.bad_in_a_row)
