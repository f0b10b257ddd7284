"""The state of a phase in its checkpoints: saved, resumed, and rolled back to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
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
from onediff.training.stop import during_reads
from onediff.training.stragglers import added

log = logging.getLogger(__name__)


def save(phase: Phase, best: bool = False) -> None:
    """Starts a checkpoint of the last step; `best` marks it as the best so far. Collective."""
    extra = joined(phase_state(phase), gathered(own_state(phase)))
    finished = phase.writer.save(phase.engine.sharded, step=phase.step, best=best, extra=extra)
    phase.make_durable(finished)
    phase.saved = phase.step


def copy(phase: Phase) -> None:
    """Begins a copy of the last step in the memory of two nodes. Collective."""
    assert phase.copies is not None
    durable = phase.tracker.durable if phase.rank == 0 else lambda: None
    phase.copies.take(phase.engine.sharded, phase.step, phase_state(phase), own_state(phase), durable)


def resume(phase: Phase, checkpoint: Path, data: DataConfig) -> None:
    """Restores weights, moments, random states and the data position from `checkpoint`. Collective.

    Raises UserError on every rank if the checkpoint does not fit, and Stopped on a stop request.
    """
    with raise_on_all_ranks():
        must_keep_adapters(checkpoint, phase.config.lora, f"phases.{phase.name}")
    with during_reads(phase.stop) as heed:
        extra = load_checkpoint(phase.engine.sharded, checkpoint, heed=heed)
    phase.position = Position.from_json(extra["position"], phase.position.order, data.other_order)
    phase.cursor = phase.position.cursor(phase.share.lanes)
    phase.skipped = extra["skipped"]
    phase.stragglers.before.update(extra.get("skipped_by_kind", {}))
    phase.stragglers.cut_before.update(extra.get("cut_answers", {}))
    take_up(phase, extra)
    log.info("phase %s continues from step %d", phase.name, phase.step)


def go_back(phase: Phase, spike: GoBack) -> int:
    """Restores weights, moments and step from a checkpoint, and continues after the data read so far.

    Collective. Returns the step.
    """
    if phase.copies is not None:
        phase.copies.forget()
    then = read_manifest(spike.checkpoint).extra
    now = joined(phase_state(phase), gathered(own_state(phase)))
    # The step after the spike may be in progress: its metrics are never read, but its samples are.
    phase.skipped = now["skipped"] = max(phase.skipped, sum(now["skipped_by_kind"].values()))
    data = {key: now[key] for key in ("skipped", "skipped_by_kind", "cut_answers", "position")}
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
            "phase %s: %s; rolling back to step %d and skipping the samples since then (rollback %d)",
            phase.name,
            spike.why,
            phase.step,
            len(rollbacks),
        )
        phase.tracker.went_back(phase.step, f"from step {spike.step}: {spike.why}", len(rollbacks))
        phase.tracker.durable()
    return phase.step


def take_up(phase: Phase, extra: dict[str, Any]) -> None:
    """Restores the state that belongs to a checkpoint's weights, not to the data read so far. Collective."""
    phase.step = phase.saved = extra["step"]
    phase.guard.watch.restore(extra.get("bad_steps"))
    phase.measures.restore(extra.get("measures"), phase.writer.folder)


def phase_state(phase: Phase) -> dict[str, Any]:
    """The phase's state that all ranks share, for a checkpoint, with counts and cursors of the beginning of this start."""
    lora = phase.config.lora
    return {
        "step": phase.step,
        "steps": phase.steps,
        "phase": phase.name,
        "skipped": phase.skipped,
        "skipped_by_kind": dict(phase.stragglers.before),
        "cut_answers": dict(phase.stragglers.cut_before),
        "position": phase.position.to_json(),
        "bad_steps": phase.guard.watch.to_json(),
        "measures": phase.measures.to_json(),
        "lora": None if lora is None else lora.model_dump(mode="json"),
    }


def own_state(phase: Phase) -> dict[str, Any]:
    """This rank's own state: the cursors of its lanes, and its counts since the beginning of this start."""
    return {"lanes": dict(phase.cursor.lanes), **phase.stragglers.counts(phase.cursor.skipped, phase.cursor.cut)}


def joined(state: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of a phase with every rank's own state added. The keys in `ranks` may be strings, from JSON."""
    lanes = {int(lane): cursor for rank in ranks for lane, cursor in rank["lanes"].items()}
    return {
        **state,
        "skipped_by_kind": dict(added(ranks, "skipped", Counter(state["skipped_by_kind"]))),
        "cut_answers": dict(added(ranks, "cut", Counter(state["cut_answers"]))),
        "position": {**state["position"], "cursors": [lanes[lane] for lane in range(len(lanes))]},
    }
