"""The training loop of one phase."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from onediff.config.bad_steps import BadStepsConfig
from onediff.config.training import PhaseConfig
from onediff.data.batch import Batch
from onediff.data.cursor import Cursor, LaneCursor
from onediff.data.loader import Share
from onediff.data.position import Position, stored_cursors
from onediff.data.stream import Stream
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.runs.folder import RunFolder
from onediff.training.checkpoint import CheckpointWriter, load_checkpoint, read_manifest
from onediff.training.checkpoint.back import go_back
from onediff.training.checkpoint.weights import must_keep_adapters
from onediff.training.engine import Engine, StepUnderWay
from onediff.training.faults import TrainingFault
from onediff.training.figures import Moment
from onediff.training.guard import GoBack, Guard
from onediff.training.measures import Measures
from onediff.training.meter import FlopCounter
from onediff.training.pace import StragglerMonitor
from onediff.training.samples import Samples, due
from onediff.training.stop import Stopped, StopRequest, signal_of

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0
"""Seconds between two plain progress lines, and between two writings of the status."""


@dataclass
class Given:
    """A step that was given to the device, and what was known when it was."""

    work: StepUnderWay
    after: Moment
    """When the step before it ended, or this one's data was first asked for."""
    waited: float
    """Seconds for which the host waited for data."""
    epochs: dict[str, float]
    """How many times each data set has been read."""
    cursor: Cursor
    """Where this rank's data goes on behind the step."""
    tflop: float | None
    """10¹² FLOPs of this rank's micro-batches."""
    micro_batches: list[Batch]
    """Kept until its figures are known, to be named where they are bad."""


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
        measures: Measures,
        pace: StragglerMonitor,
        meter: FlopCounter,
        log_every: int,
        save_in_background: bool,
        bad_steps: BadStepsConfig,
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
        self.measures = measures
        measures.heed(stop)
        self.pace = pace
        self.meter = meter
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
        self.guard = Guard(bad_steps, name, steps, engine, stream, folder, lambda: self._durable(self.writer.finish()))

    def resume(self, checkpoint: Path, other_order: bool = False) -> None:
        """Goes back to `checkpoint`: weights, moments, random states, data. Raises UserError where it does not fit."""
        with raise_on_all_ranks():
            must_keep_adapters(checkpoint, self.phase.lora, f"phases.{self.name}")
        extra = load_checkpoint(self.engine.sharded, checkpoint)
        self.position = Position.from_json(extra["position"], self.position.order, other_order)
        self.skipped = extra["skipped"]
        self.pace.before.update(extra.get("skipped_by_kind", {}))
        self.pace.cut_before.update(extra.get("cut_answers", {}))
        self._take_up(extra)

    def _take_up(self, extra: dict[str, Any]) -> None:
        """What belongs to the weights of a checkpoint, and not to the data that has been read. Collective."""
        self.step = extra["step"]
        self.guard.watch.restore(extra.get("bad_steps"))
        self.measures.restore(extra.get("measures"), self.writer.folder)

    def run(self, batches: Iterator[tuple[Batch, Cursor]]) -> dict[str, float]:
        """Steps until the end; returns the last figures.

        Raises Stopped after a stop request, with a checkpoint, and TrainingFault where numbers are not to be trusted.
        """
        self.cursor = self.position.cursor(self.share.lanes)
        try:
            while True:
                try:
                    return self._run(batches)
                except GoBack as spike:
                    self._go_back(spike)
        except TrainingFault:
            self._durable(self.writer.finish())  # the last good one, if it is still being written
            raise

    def _run(self, batches: Iterator[tuple[Batch, Cursor]]) -> dict[str, float]:
        measured: dict[str, float] = {}
        saved = self.step
        best = self.measures.best
        if self.measures.owed(self.step) and self.measures.before_saving(self.engine, self.step):
            self._save(best=True)
        for measured, settled, stopped in self._steps(batches) if not best.over else ():
            self._durable(self.writer.poll())
            if not settled:
                continue
            stops = stopped is not None and self.step < self.steps
            is_best = not stops and self.measures.due(self.step) and self.measures.before_saving(self.engine, self.step)
            if self.measures.stopped:
                stopped, stops = self.measures.stopped, True
            if self._saves_after(self.step) or stopped or is_best or best.over:
                self._save(best=is_best)
                saved = self.step
                if self.rank == 0:
                    self._write_status(self.step, measured)
            if due(self.samples_every, self.step, self.steps) or best.over:
                table = self.samples.table(self.engine)
                if self.rank == 0 and table:
                    self.tracker.table(self.step, "captions", table)
            if not stops:
                self.measures.after_saving(self.engine, self.step)
                stopped, stops = self.measures.stopped, self.measures.stopped is not None
            if best.over:
                break
            if stops:
                if saved < self.step:
                    self._save()
                self._durable(self.writer.finish())
                raise Stopped(f"{stopped} at step {self.step} of {self.steps}")
        if saved < self.step or self.step == 0:
            self._save()
        self._durable(self.writer.finish())
        if best.over:
            told = (self.name, self.step, self.steps, best.in_words(), best.since)
            log.info("phase %s ends at step %d of %d: best %s, none better in %d measurements since", *told)
        if self.skipped:
            log.warning(
                "phase %s passed over %d unreadable samples; the ranks' logs name them", self.name, self.skipped
            )
        if measured.get("cut_answers"):
            log.warning(
                "phase %s cut %d answers at data.max_tokens; cut_answers/<data set> counts them",
                self.name,
                measured["cut_answers"],
            )
        return measured

    def _saves_after(self, step: int) -> bool:
        return step % self.phase.checkpoint_every == 0 or step == self.steps

    def _steps(self, batches: Iterator[tuple[Batch, Cursor]]) -> Iterator[tuple[dict[str, float], bool, str | None]]:
        """Takes the steps; yields, after each, its metrics, whether it is the newest one, and a stop request.

        The figures of a step are read when the next one has been given to the device, so that the device never waits
        for the host; before a checkpoint, captions or a stop the last step is waited for.
        """
        given: deque[Given] = deque()
        before: Moment | None = None
        stopped: str | None = None
        self.last_line = time.monotonic()
        with tqdm(
            total=self.steps,
            initial=self.step,
            desc=f"phase {self.name}",
            unit="step",
            disable=None if self.rank == 0 else True,
        ) as bar:
            for step in range(self.step, self.steps):
                given.append(self._give(step, batches, before or Moment(self.engine.device)))
                before = given[-1].work.ended
                settles = self._saves_after(step + 1) or due(self.samples_every, step + 1, self.steps)
                settles = settles or self.measures.due(step + 1)
                while given and (len(given) > 1 or settles or stopped):
                    measured, stopped = self._take(given.popleft(), bar)
                    settles = settles or stopped is not None
                    yield measured, not given, stopped
                if not given:
                    before = None

    def _give(self, step: int, batches: Iterator[tuple[Batch, Cursor]], after: Moment) -> Given:
        """Gives one step to the device."""
        asked = time.perf_counter()
        micro_batches: list[Batch] = []
        for batch, cursor in islice(batches, self.share.micro_batches):
            micro_batches.append(batch)
            self.cursor = cursor
        waited = time.perf_counter() - asked
        work = self.engine.step(micro_batches, step, self.steps, self.stop.asked)
        lane = self.share.lanes[0]
        epochs = self.stream.epochs(lane, self.cursor.lanes[lane])
        return Given(
            work,
            after,
            waited,
            epochs,
            self.cursor,
            self.meter.tflop(micro_batches),
            micro_batches,
        )

    def _take(self, given: Given, bar: Any) -> tuple[dict[str, float], str | None]:
        """The figures of a step once it is done, shown and tracked, and a stop request."""
        measured, agreed = given.work.figures()
        self.step = given.work.step + 1
        self.guard.see(self.step, agreed)
        self.skipped += int(measured.pop("skipped"))
        # Data that came while the device was still at the step before has kept nobody waiting.
        waited = min(given.waited, given.after.seconds_until(given.work.began))
        total = given.after.seconds_until(given.work.ended)
        measured |= self._rates(measured, given, total, waited)
        measured |= self.pace.after(self.step, self.steps, total, waited, given.cursor.skipped, given.cursor.cut)
        measured = {name: value for name, value in measured.items() if math.isfinite(value)}
        if self.rank == 0:
            if self.step % self.log_every == 0 or self.step == self.steps:
                self.tracker.log(self.step, measured)
            bar.set_postfix(loss=f"{measured.get('loss', math.nan):.3f}", refresh=False)
            bar.update()
            if time.monotonic() - self.last_line > LINE_SECONDS or self.step == self.steps:
                self.last_line = time.monotonic()
                self._tell(self.step, measured, quiet=not bar.disable)
        self.guard.act(self.step, agreed, given.micro_batches)
        return measured, signal_of(agreed.asked)

    def _rates(self, measured: dict[str, float], given: Given, total: float, waited: float) -> dict[str, float]:
        rates = {
            "samples_per_second": measured["samples"] / total,
            "tokens_per_second": measured["tokens"] / total,
            "data_wait_share": waited / total,
            "step_seconds": total,
            "skipped_samples": float(self.skipped),
            "skipped_steps": float(self.guard.watch.skipped),
        }
        rates |= self.meter.rates(given.tflop, total)
        return rates | {f"epochs/{name}": epochs for name, epochs in given.epochs.items()}

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
            measured.get("loss", math.nan),
            measured.get("grad_norm", math.inf),
            measured["lr"],
            measured["samples_per_second"],
            100 * measured["data_wait_share"],
        )

    def _go_back(self, spike: GoBack) -> None:
        """Goes on with the weights, moments and step of a checkpoint, behind the data that has been read by now."""
        then = read_manifest(spike.checkpoint).extra
        data = self._data()
        passed_over = {
            "from_step": spike.step,
            "to_step": then["step"],
            "why": spike.why,
            "cursors": [stored_cursors(then["position"]), stored_cursors(data["position"])],
        }
        rollbacks = [*self.guard.watch.rollbacks, passed_over]
        bad_steps = {**then.get("bad_steps", {}), "rollbacks": rollbacks}
        self._take_up(go_back(self.engine.sharded, spike.checkpoint, {**data, "bad_steps": bad_steps}))
        self.guard.record({"step": spike.step, "kind": "rollback", **passed_over})
        if self.rank == 0:
            log.warning(
                "phase %s: %s; goes back to step %d and passes over the samples since then (rollback %d)",
                self.name,
                spike.why,
                self.step,
                len(rollbacks),
            )
            self.tracker.went_back(self.step, f"from step {spike.step}: {spike.why}", len(rollbacks))
            self.tracker.durable()

    def _save(self, best: bool = False) -> None:
        finished = self.writer.save(
            self.engine.sharded,
            step=self.step,
            best=best,
            extra={
                "step": self.step,
                "steps": self.steps,
                "phase": self.name,
                **self._data(),
                "bad_steps": self.guard.watch.to_json(),
                "measures": self.measures.to_json(),
                "lora": None if self.phase.lora is None else self.phase.lora.model_dump(mode="json"),
            },
        )
        self._durable(finished)

    def _data(self) -> dict[str, Any]:
        """How far the data has been read, for a checkpoint. Collective."""
        return {
            "skipped": self.skipped,
            "skipped_by_kind": self.pace.skipped(self.cursor.skipped),
            "cut_answers": self.pace.cut(self.cursor.cut),
            "position": self.position.moved(self._all_lanes()).to_json(),
        }

    def _durable(self, checkpoint: Path | None) -> None:
        """What a run can go back to needs its history on the disk."""
        if checkpoint is not None and self.rank == 0:
            self.tracker.durable()

    def _all_lanes(self) -> dict[int, LaneCursor]:
        """The cursor of every lane, from all ranks. Collective."""
        gathered: list[dict[int, LaneCursor]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, self.cursor.lanes)
        return {lane: cursor for lanes in gathered for lane, cursor in lanes.items()}
