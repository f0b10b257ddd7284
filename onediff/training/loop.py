"""The training loop of one phase."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.training.faults import TrainingFault
from onediff.training.guard import GoBack
from onediff.training.phase import Phase
from onediff.training.report import ProgressBar, begin_step, report, write_status
from onediff.training.state import copy, go_back, save
from onediff.training.stop import Stopped

log = logging.getLogger(__name__)


def train_phase(phase: Phase, batches: Iterator[tuple[Batch, Cursor]]) -> dict[str, float]:
    """Trains to the last step, or until no better step is expected; returns the last metrics. Collective.

    The metrics of a step are read after the next one has been submitted, so the device never waits for the host. Before a
    checkpoint, a measurement, captions or a stop, the loop waits for the step in progress.

    Raises Stopped after a stop request, with a checkpoint, and TrainingFault if the numbers cannot be trusted.
    """
    try:
        measure_what_is_owed(phase)
        step, previous = phase.step, None
        with ProgressBar(phase) as progress:
            while step < phase.steps and not phase.measures.best.over:
                with phase.around_step(step + 1):
                    running = begin_step(phase, step, batches, previous)
                step += 1
                try:
                    asked = report(phase, previous, progress) if previous is not None else None
                    previous = running
                    if not (asked or phase.due(step)):
                        continue
                    asked, previous = report(phase, running, progress), None
                except GoBack as spike:
                    step, previous = go_back(phase, spike), None
                    progress.goes_on_from(step)
                    measure_what_is_owed(phase)
                    continue
                between_steps(phase, asked)
        if phase.saved < phase.step or phase.step == 0:
            save(phase)
    except TrainingFault:
        phase.make_durable(phase.writer.finish())  # the last good checkpoint, if it is still being written
        raise
    phase.make_durable(phase.writer.finish())
    tell_what_was_left_out(phase)
    return phase.metrics


def between_steps(phase: Phase, asked: str | None) -> None:
    """Does what is due after a step, while the device is idle: measurements, a checkpoint, captions, a stop."""
    measures, engine, step = phase.measures, phase.engine, phase.step
    stops = asked is not None and step < phase.steps
    is_best = not stops and measures.due(step) and measures.before_saving(engine, step)
    if measures.stopped:
        asked, stops = measures.stopped, True
    if phase.checkpoint_due(step) or asked or is_best or measures.best.over:
        save(phase, best=is_best)
        if phase.rank == 0:
            write_status(phase)
    if phase.copy_due(step) and not stops:
        copy(phase)
    if phase.captions_due(step) or measures.best.over:
        table = phase.samples.table(engine)
        if phase.rank == 0 and table:
            phase.tracker.table(step, "captions", table)
    if not stops:
        measures.after_saving(engine, step)
        # A request that arrived meanwhile needs neither another step nor another checkpoint.
        asked = measures.stopped or (phase.stop.agreed() if step < phase.steps else None)
        stops = asked is not None
    if stops and not measures.best.over:
        if phase.saved < step:
            save(phase)
        phase.make_durable(phase.writer.finish())
        raise Stopped(f"{asked} at step {step} of {phase.steps}")


def measure_what_is_owed(phase: Phase) -> None:
    """Takes the measurements of this step that a stop request prevented."""
    if phase.measures.owed(phase.step) and phase.measures.before_saving(phase.engine, phase.step):
        save(phase, best=True)
    phase.measures.make_up(phase.engine, phase.step)


def tell_what_was_left_out(phase: Phase) -> None:
    """Logs why the phase ended early, if it did, and how many samples were skipped or cut."""
    best, name = phase.measures.best, phase.name
    if best.over:
        told = (name, phase.step, phase.steps, best.in_words(), best.since)
        log.info("phase %s ends at step %d of %d: best %s, no better one in %d measurements since", *told)
    if phase.skipped:
        log.warning("phase %s skipped %d unreadable samples; the ranks' logs name them", name, phase.skipped)
    if cut := phase.metrics.get("cut_answers"):
        log.warning("phase %s cut %d answers at data.max_tokens; cut_answers/<data set> counts them", name, cut)
