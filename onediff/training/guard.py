"""Watches for bad steps: logs and records them and, if there are too many, stops the run or rolls it back."""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from onediff.config.bad_steps import BadStepsConfig
from onediff.data.batch import Batch
from onediff.data.lanes import SamplePlace
from onediff.data.named import name_of
from onediff.data.stream import Stream
from onediff.errors import UserError
from onediff.parallel.agreement import from_rank_zero, gathered
from onediff.runs.folder import RunFolder
from onediff.training.blame import not_finite
from onediff.training.checkpoint.folder import checkpoints, step_of
from onediff.training.engine import Agreed, Engine
from onediff.training.faults import StepWatch, TrainingFault

log = logging.getLogger(__name__)

FILE = "bad-steps.jsonl"
"""A file in the phase's folder: one line per skipped step, with its samples, and one per rollback."""


@dataclass
class GoBack(Exception):
    """A spike: the phase must continue from an earlier checkpoint. Raised on every rank."""

    step: int
    """The last step of the spike."""
    checkpoint: Path
    why: str


class Guard:
    """Judges each step of a phase. Decisions depend only on numbers that are the same on all ranks."""

    def __init__(
        self, config: BadStepsConfig, phase: str, steps: int, engine: Engine, stream: Stream, folder: RunFolder
    ) -> None:
        self.watch = StepWatch(config)
        self.why = ""
        """Why the last step is bad."""
        self.phase, self.steps = phase, steps
        self.engine, self.stream, self.folder = engine, stream, folder

    def see(self, step: int, agreed: Agreed) -> None:
        """Judges a step by its metrics."""
        self.why = self.watch.excess(agreed.loss, agreed.grad_norm)
        self.watch.see(step, agreed.loss, agreed.grad_norm)

    def act(self, step: int, agreed: Agreed, micro_batches: list[Batch], finish_checkpoint: Callable[[], None]) -> None:
        """Acts on the step just judged; `micro_batches` are this rank's. Collective if the step is bad.

        `finish_checkpoint` waits for the checkpoint in progress.

        Raises on every rank: GoBack for a spike, TrainingFault if the run cannot continue.
        """
        watch, spikes = self.watch, self.watch.config.spikes
        if not (math.isfinite(agreed.loss) and math.isfinite(agreed.grad_norm)):
            self._tell_skipped(step, agreed, micro_batches)
        elif self.why:
            log.warning("phase %s step %d: %s", self.phase, step, self.why)
        if spikes is not None and watch.spiked(step):
            why = f"{step - (watch.first_bad or step) + 1} bad steps in a row, the last one step {step}: {self.why}"
            if len(watch.rollbacks) >= spikes.rollbacks:
                limit = f"training.bad_steps.spikes.rollbacks {spikes.rollbacks}"
                raise TrainingFault(f"{why}; the phase was already rolled back {len(watch.rollbacks)} times ({limit})")
            finish_checkpoint()
            if (target := self._target()) is not None:
                raise GoBack(step, target, why)
            log.warning("phase %s: %s; there is no earlier checkpoint to go back to", self.phase, why)
            watch.first_bad = None
        if too_many := watch.too_many(step):
            raise TrainingFault(self._blame(step, too_many, micro_batches))

    def record(self, event: dict[str, Any]) -> None:
        """Appends a line to the phase's file of bad steps, on rank 0."""
        if dist.get_rank() == 0:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": int(time.time()), **event}, ensure_ascii=False) + "\n")

    @property
    def _file(self) -> Path:
        return self.folder.phase(self.phase) / FILE

    def _target(self) -> Path | None:
        """The newest checkpoint from before the spike, or the one before it if none was written since the last rollback."""
        first, rollbacks = self.watch.first_bad or 0, self.watch.rollbacks
        found = [path for path in checkpoints(self.folder.checkpoints(self.phase)) if step_of(path) < first]
        if len(found) > 1 and rollbacks and step_of(found[-1]) <= rollbacks[-1]["to_step"]:
            found.pop()
        target = from_rank_zero(str(found[-1]) if found else None)
        return None if target is None else Path(str(target))

    def _tell_skipped(self, step: int, agreed: Agreed, micro_batches: list[Batch]) -> None:
        log.warning(
            "phase %s step %d: %s (skipped_steps %d); its samples are in %s",
            self.phase,
            step,
            "its loss is not finite"
            if math.isfinite(agreed.grad_norm)
            else "gradients are not finite, so the step is skipped",
            self.watch.skipped,
            self._file,
        )
        ranks = gathered([self._names(batch) for batch in micro_batches])
        samples = list(dict.fromkeys(name for rank in ranks for micro_batch in rank for name in micro_batch))
        loss = agreed.loss if math.isfinite(agreed.loss) else None
        self.record({"step": step, "kind": "skipped", "loss": loss, "samples": samples})

    def _blame(self, step: int, too_many: str, micro_batches: list[Batch]) -> str:
        """The error that stops the run: the reason, the micro-batch that caused it, and how to look at its samples."""
        bad = not_finite(self.engine, micro_batches, step - 1, self.steps)
        ranks = gathered([(is_bad, self._names(batch)) for is_bad, batch in zip(bad, micro_batches, strict=True)])
        found = [
            (rank, number, names)
            for rank, of_rank in enumerate(ranks)
            for number, (is_bad, names) in enumerate(of_rank, 1)
            if is_bad
        ]
        told = f"gradients are not finite in {too_many}, the last one step {step}"
        if not found:
            return f"{told}; they were finite when that step was repeated; its samples are in {self._file}"
        rank, number, names = found[0]
        every = sum(map(len, ranks))
        among = "the only one" if len(found) == 1 else f"one of {len(found)}"
        told += f"; micro-batch {number} of rank {rank} causes it, {among} of the {every} in the step"
        if len(found) == every > 1:
            told += " (since all do, suspect the weights or settings rather than the samples)"
        run, samples = shlex.quote(str(self.folder.path)), " ".join(map(shlex.quote, names))
        return f"{told}; look at its samples: onediff data show {run} --phase {self.phase} --sample {samples}"

    def _names(self, batch: Batch) -> list[str]:
        return [self._name(source, places) for source, places in batch.info["places"]]

    def _name(self, source: int, places: tuple[SamplePlace, ...]) -> str:
        try:
            return name_of(self.stream, source, places)
        except (UserError, OSError):  # a shard may be out of reach now; one rank must not fail alone
            shards = self.stream.sources[source].shards.names
            return "+".join(f"{self.stream.sources[source].name}/{shards[at.shard]}:#{at.sample}" for at in places)
