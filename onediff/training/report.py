"""The metrics of each step, read one step late: displayed, tracked and checked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

from tqdm import tqdm

from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.training.engine import StepUnderWay
from onediff.training.metrics import Moment
from onediff.training.phase import Phase
from onediff.training.stop import signal_of

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0
"""Seconds between plain progress lines, and between updates of the status file."""


@dataclass
class Running:
    """A submitted step, and what the host recorded when it submitted it."""

    work: StepUnderWay
    after: Moment
    """when the previous step ended, or this one's data was first requested"""
    waited: float
    """seconds for which the host waited for data"""
    epochs: dict[str, float]
    """how many times each data set has been read"""
    cursor: Cursor
    """this rank's position in the data after the step"""
    tflop: float | None
    """10¹² FLOPs of this rank's micro-batches"""
    micro_batches: list[Batch]
    """kept until the step's metrics are read, so that bad ones can be named"""


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A bar on rank 0's terminal, or occasional lines without a terminal, and the phase's status file."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.bar = tqdm(
            total=phase.steps,
            initial=phase.step,
            desc=f"phase {phase.name}",
            unit="step",
            disable=None if phase.rank == 0 else True,
        )
        self.last_line = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def goes_on_from(self, step: int) -> None:
        """Goes back to an earlier step."""
        self.bar.n = step
        self.bar.refresh()

    def advance(self) -> None:
        """Shows the metrics of the phase's step."""
        phase, metrics = self.phase, self.phase.metrics
        self.bar.set_postfix(loss=f"{metrics.get('loss', math.nan):.3f}", refresh=False)
        self.bar.update()
        if time.monotonic() - self.last_line <= LINE_SECONDS and phase.step < phase.steps:
            return
        self.last_line = time.monotonic()
        write_status(phase)
        log.log(
            logging.INFO if self.bar.disable else logging.DEBUG,
            "phase %s step %d/%d loss %.4f grad norm %.3f lr %.2e %.1f samples/s data wait %.0f %%",
            phase.name,
            phase.step,
            phase.steps,
            metrics.get("loss", math.nan),
            metrics.get("grad_norm", math.inf),
            metrics["lr"],
            metrics["samples_per_second"],
            100 * metrics["data_wait_share"],
        )


def begin_step(phase: Phase, step: int, batches: Iterator[tuple[Batch, Cursor]], previous: Running | None) -> Running:
    """Submits one step to the device, which may still be computing the previous one. Does not wait. Collective."""
    after = Moment(phase.engine.device) if previous is None else previous.work.ended
    asked = time.perf_counter()
    micro_batches: list[Batch] = []
    for batch, cursor in islice(batches, phase.share.micro_batches):
        micro_batches.append(batch)
        phase.cursor = cursor
    waited = time.perf_counter() - asked
    work = phase.engine.step(micro_batches, step, phase.steps, phase.stop.asked)
    lane = phase.share.lanes[0]
    epochs = phase.stream.epochs(lane, phase.cursor.lanes[lane])
    return Running(work, after, waited, epochs, phase.cursor, phase.flops.tflop(micro_batches), micro_batches)


def report(phase: Phase, running: Running, progress: ProgressBar) -> str | None:
    """Waits for a step, displays and tracks its metrics; returns the signal that asked any rank to stop.

    Collective. Raises on every rank: GoBack after a spike, TrainingFault if the run cannot continue.
    """
    metrics, agreed = running.work.metrics()
    phase.step = running.work.step + 1
    phase.guard.see(phase.step, agreed)
    phase.skipped += int(metrics.pop("skipped"))
    # Data that arrived while the device was still computing the previous step delayed nothing.
    waited = min(running.waited, running.after.seconds_until(running.work.began))
    seconds = running.after.seconds_until(running.work.ended)
    metrics |= rates(phase, running, metrics, seconds, waited)
    metrics |= phase.stragglers.after(
        phase.step, phase.steps, seconds, waited, running.cursor.skipped, running.cursor.cut
    )
    phase.metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if phase.rank == 0:
        if phase.step % phase.training.log_every == 0 or phase.step == phase.steps:
            phase.tracker.log(phase.step, phase.metrics)
        progress.advance()
    phase.guard.act(phase.step, agreed, running.micro_batches, lambda: phase.make_durable(phase.writer.finish()))
    phase.make_durable(phase.writer.poll())
    return signal_of(agreed.asked)


def rates(phase: Phase, running: Running, metrics: dict[str, float], seconds: float, waited: float) -> dict[str, float]:
    """Throughput of a step that took `seconds`, including `waited` seconds for data."""
    found = {
        "samples_per_second": metrics["samples"] / seconds,
        "tokens_per_second": metrics["tokens"] / seconds,
        "data_wait_share": waited / seconds,
        "step_seconds": seconds,
        "skipped_samples": float(phase.skipped),
        "skipped_steps": float(phase.guard.watch.skipped),
    }
    found |= phase.flops.rates(running.tflop, seconds)
    return found | {f"progress/epochs/{name}": epochs for name, epochs in running.epochs.items()}


def write_status(phase: Phase) -> None:
    """Writes the phase's progress to the run's folder."""
    phase.folder.write_status(
        phase=phase.name,
        step=phase.step,
        steps_total=phase.steps,
        loss=phase.metrics.get("loss"),
        tokens_per_second=phase.metrics.get("tokens_per_second"),
        state="running",
        reason=None,
    )
