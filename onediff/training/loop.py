"""The training loop of one phase."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from onediff.data.batch import Batch
from onediff.data.loader import Share
from onediff.data.position import Position
from onediff.data.stream import Stream
from onediff.parallel.agreement import together
from onediff.parallel.shared_batches import SharedBatches
from onediff.training.checkpoint import CheckpointWriter, load_checkpoint
from onediff.training.checkpoint.weights import must_keep_adapters
from onediff.training.config import PhaseConfig
from onediff.training.engine import Engine, LossIsNotANumber
from onediff.training.folder import RunFolder
from onediff.training.pace import Pace
from onediff.training.samples import Samples, due
from onediff.training.stop import Stopped, StopRequest

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0
"""Seconds between two plain progress lines, and between two writings of the status."""


@dataclass
class Clock:
    """What a step spent its time on."""

    waiting: float = 0.0
    """Seconds in which the step waited for data."""
    total: float = 0.0
    """Seconds of the whole step."""


class PhaseLoop:
    """One phase from its first step, or from a checkpoint, to its last."""

    def __init__(
        self,
        name: str,
        phase: PhaseConfig,
        steps: int,
        engine: Engine,
        stream: Stream,
        share: Share,
        block: int,
        folder: RunFolder,
        stop: StopRequest,
        samples: Samples,
        samples_every: int | None,
        pace: Pace,
        log_every: int,
        save_in_background: bool,
    ) -> None:
        self.name = name
        self.phase = phase
        self.steps = steps
        self.engine = engine
        self.stream = stream
        self.share = share
        self.folder = folder
        self.tracker: Any = None  # rank 0 has one
        self.stop = stop
        self.samples = samples
        self.samples_every = samples_every
        self.pace = pace
        self.log_every = log_every
        self.rank = dist.get_rank()
        self.step = 0
        self.skipped = 0
        """Unreadable samples passed over by all ranks since the phase began."""
        self.position = Position.start(stream, phase.global_batch, block)
        self.writer = CheckpointWriter(
            folder.checkpoints(name),
            keep_last=phase.keep_checkpoints,
            keep_every=phase.keep_every,
            background=save_in_background,
        )

    def resume(self, checkpoint: Path, other_order: bool = False) -> None:
        """Goes back to `checkpoint`: weights, moments, random states, data. Raises UserError where it does not fit."""
        with together():
            must_keep_adapters(checkpoint, self.phase.lora, f"phases.{self.name}")
        extra = load_checkpoint(self.engine.engine, checkpoint)
        self.position = Position.from_json(extra["position"], self.position.order, other_order)
        self.step = extra["step"]
        self.skipped = extra["skipped"]
        self.pace.before.update(extra.get("skipped_by_kind", {}))

    def run(self, loader: SharedBatches) -> dict[str, float]:
        """Steps until the end; returns the last figures. Raises Stopped after a stop request, with a checkpoint."""
        try:
            return self._run(loader)
        except LossIsNotANumber:
            self._durable(self.writer.finish())  # the last good one, if it is still being written
            raise

    def _run(self, loader: SharedBatches) -> dict[str, float]:
        batches = iter(loader)
        measured: dict[str, float] = {}
        saved = self.step
        for step, measured in self._steps(batches, loader):
            self.step = step
            self._durable(self.writer.poll())
            stopped = self.stop.agreed(self.engine.device)
            if self.step % self.phase.checkpoint_every == 0 or self.step == self.steps or stopped:
                self._save(loader)
                saved = self.step
                if self.rank == 0:
                    self._write_status(self.step, measured)
            if due(self.samples_every, self.step, self.steps):
                table = self.samples.table(self.engine)
                if self.rank == 0 and table:
                    self.tracker.table(self.step, "captions", table)
            if stopped and self.step < self.steps:
                self._durable(self.writer.finish())
                raise Stopped(f"{stopped} at step {self.step} of {self.steps}")
        if saved < self.step or self.step == 0:
            self._save(loader)
        self._durable(self.writer.finish())
        if self.skipped:
            log.warning(
                "phase %s passed over %d unreadable samples; the ranks' logs name them", self.name, self.skipped
            )
        return measured

    def _steps(self, batches: Iterator[Batch], loader: SharedBatches) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields (steps done, figures) after each step, with the progress shown and tracked."""
        last_line = time.monotonic()
        with tqdm(
            total=self.steps,
            initial=self.step,
            desc=f"phase {self.name}",
            unit="step",
            disable=None if self.rank == 0 else True,
        ) as bar:
            for step in range(self.step, self.steps):
                clock = Clock()
                started = time.perf_counter()
                micro_batches = [next(batches) for _ in range(self.share.micro_batches)]
                clock.waiting = time.perf_counter() - started
                measured = self.engine.step(micro_batches, step, self.steps)
                clock.total = time.perf_counter() - started
                self.skipped += int(measured.pop("skipped"))
                measured |= self._rates(measured, clock, loader)
                measured |= self.pace.after(step + 1, self.steps, clock.total, clock.waiting, loader.skipped)
                if self.rank == 0:
                    if (step + 1) % self.log_every == 0 or step + 1 == self.steps:
                        self.tracker.log(step + 1, measured)
                    bar.set_postfix(loss=f"{measured['loss']:.3f}", refresh=False)
                    bar.update()
                    if time.monotonic() - last_line > LINE_SECONDS or step + 1 == self.steps:
                        last_line = time.monotonic()
                        self._tell(step + 1, measured, quiet=not bar.disable)
                yield step + 1, measured

    def _rates(self, measured: dict[str, float], clock: Clock, loader: SharedBatches) -> dict[str, float]:
        rates = {
            "samples_per_second": self.phase.global_batch / clock.total,
            "tokens_per_second": measured["tokens"] / clock.total,
            "data_wait_share": clock.waiting / clock.total,
            "step_seconds": clock.total,
            "skipped_samples": float(self.skipped),
        }
        lane = self.share.lanes[0]
        return rates | {
            f"epochs/{name}": epochs for name, epochs in self.stream.epochs(lane, loader.draws[lane]).items()
        }

    def _write_status(self, step: int, measured: dict[str, float]) -> None:
        self.folder.write_status(
            phase=self.name,
            step=step,
            steps_total=self.steps,
            loss=measured.get("loss"),
            tokens_per_second=measured.get("tokens_per_second"),
            state="running",
            reason=None,
        )

    def _tell(self, step: int, measured: dict[str, float], quiet: bool) -> None:
        self._write_status(step, measured)
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "phase %s step %d/%d loss %.4f grad norm %.3f lr %.2e %.1f samples/s data wait %.0f %%",
            self.name,
            step,
            self.steps,
            measured["loss"],
            measured["grad_norm"],
            measured["lr"],
            measured["samples_per_second"],
            100 * measured["data_wait_share"],
        )

    def _save(self, loader: SharedBatches) -> None:
        position = Position(self.position.order, self._all_draws(loader))
        finished = self.writer.save(
            self.engine.engine,
            step=self.step,
            extra={
                "step": self.step,
                "steps": self.steps,
                "phase": self.name,
                "skipped": self.skipped,
                "skipped_by_kind": self.pace.skipped(loader.skipped),
                "position": position.to_json(),
                "lora": None if self.phase.lora is None else self.phase.lora.model_dump(mode="json"),
            },
        )
        self._durable(finished)

    def _durable(self, checkpoint: Path | None) -> None:
        """What a run can go back to needs its history on the disk."""
        if checkpoint is not None and self.rank == 0:
            self.tracker.durable()

    def _all_draws(self, loader: SharedBatches) -> tuple[int, ...]:
        """Draws of every lane, from all ranks."""
        gathered: list[dict[int, int]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, loader.draws)
        merged = {lane: draw for draws in gathered for lane, draw in draws.items()}
        return tuple(merged[lane] for lane in range(self.phase.global_batch))
