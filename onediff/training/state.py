"""The state of a phase in its checkpoints: saved, resumed, and rolled back to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from onediff.config.data import DataConfig
from onediff.data.position import Position, stored_cursors
from onediff.parallel.agreement import gathered, raise_on_all_ranks
from onediff.training.checkpoint import load_checkpoint, read_manifest
from onediff.training.checkpoint.back import go_back as go_back_to
from onediff.training.checkpoint.weights import must_keep_adapters
from onediff.training.guard import GoBack
from onediff.training.phase import Phase

log = logging.getLogger(__name__)


def save(phase: Phase, best: bool = False) -> None:
    """Starts a checkpoint of the last step; `best` marks it as the best so far. Collective."""
    lora = phase.config.lora
    finished = phase.writer.save(
        phase.engine.sharded,
        step=phase.step,
        best=best,
        extra={
            "step": phase.step,
            "steps": phase.steps,
            "phase": phase.name,
            **data_state(phase),
            "bad_steps": phase.guard.watch.to_json(),
            "measures": phase.measures.to_json(),
            "lora": None if lora is None else lora.model_dump(mode="json"),
        },
    )
    phase.make_durable(finished)
    phase.saved = phase.step


def resume(phase: Phase, checkpoint: Path, data: DataConfig) -> None:
    """Restores weights, moments, random states and the position in the data from `checkpoint`. Collective.

    Raises UserError on every rank when the checkpoint does not fit.
    """
    with raise_on_all_ranks():
        must_keep_adapters(checkpoint, phase.config.lora, f"phases.{phase.name}")
    extra = load_checkpoint(phase.engine.sharded, checkpoint)
    phase.position = Position.from_json(extra["position"], phase.position.order, data.other_order)
    phase.cursor = phase.position.cursor(phase.share.lanes)
    phase.skipped = extra["skipped"]
    phase.stragglers.before.update(extra.get("skipped_by_kind", {}))
    phase.stragglers.cut_before.update(extra.get("cut_answers", {}))
    take_up(phase, extra)
    log.info("phase %s goes on from step %d", phase.name, phase.step)


def go_back(phase: Phase, spike: GoBack) -> int:
    """Restores weights, moments and step of a checkpoint, and continues after the data read so far.

    Collective. Returns the step.
    """
    then = read_manifest(spike.checkpoint).extra
    data = data_state(phase)
    passed_over = {
        "from_step": spike.step,
        "to_step": then["step"],
        "why": spike.why,
        "cursors": [stored_cursors(then["position"]), stored_cursors(data["position"])],
    }
    rollbacks = [*phase.guard.watch.rollbacks, passed_over]
    bad_steps = {**then.get("bad_steps", {}), "rollbacks": rollbacks}
    take_up(phase, go_back_to(phase.engine.sharded, spike.checkpoint, {**data, "bad_steps": bad_steps}))
    phase.guard.record({"step": spike.step, "kind": "rollback", **passed_over})
    if phase.rank == 0:
        log.warning(
            "phase %s: %s; goes back to step %d and skips the samples since then (rollback %d)",
            phase.name,
            spike.why,
            phase.step,
            len(rollbacks),
        )
        phase.tracker.went_back(phase.step, f"from step {spike.step}: {spike.why}", len(rollbacks))
        phase.tracker.durable()
    return phase.step


def take_up(phase: Phase, extra: dict[str, Any]) -> None:
    """The state that goes with a checkpoint's weights, as opposed to the data that has been read. Collective."""
    phase.step = phase.saved = extra["step"]
    phase.guard.watch.restore(extra.get("bad_steps"))
    phase.measures.restore(extra.get("measures"), phase.writer.folder)


def data_state(phase: Phase) -> dict[str, Any]:
    """How far the data has been read, for a checkpoint. Collective."""
    lanes = {lane: cursor for of_rank in gathered(phase.cursor.lanes) for lane, cursor in of_rank.items()}
    return {
        "skipped": phase.skipped,
        "skipped_by_kind": phase.stragglers.skipped(phase.cursor.skipped),
        "cut_answers": phase.stragglers.cut(phase.cursor.cut),
        "position": phase.position.moved(lanes).to_json(),
    }
