"""The checkpoint that an address of a run means.

Without a phase, an address means the newest phase that has a checkpoint; without a step, the newest checkpoint. A saved
model is addressed by its folder alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onediff.config.compose import load_run
from onediff.errors import UserError
from onediff.runs.address import Address
from onediff.runs.folder import RunFolder

BEST = "best"


class FoundCheckpoint(NamedTuple):
    """One checkpoint of a run."""

    phase: str
    step: int
    checkpoint: Path


def found(address: Address) -> FoundCheckpoint:
    """The checkpoint that an address of a run means. Raises UserError, listing those that exist, when there is none."""
    from onediff.training.checkpoint import best_checkpoint, checkpoints, latest_checkpoint
    from onediff.training.checkpoint.folder import step_of

    address.require()
    folder = RunFolder(address.folder)
    phases = [name for name in load_run(folder.config).phases if latest_checkpoint(folder.checkpoints(name))]
    if not phases:
        raise UserError(f"{address.folder}: this run has no checkpoint yet; train it with `onediff train`")
    phase, which = _read(address, phases)
    there = {step_of(path): path for path in checkpoints(folder.checkpoints(phase))}
    if which is None:
        checkpoint = latest_checkpoint(folder.checkpoints(phase))
    elif which == BEST:
        checkpoint = best_checkpoint(folder.checkpoints(phase))
    else:
        checkpoint = there.get(int(which))
    if checkpoint is None:
        why = (
            f"phases.{phase}.best names no metric, or was not reached" if which == BEST else "it may have been deleted"
        )
        steps = ", ".join(map(str, there))
        raise UserError(f"{address}: phase {phase} has no checkpoint {which} ({why}); there are steps {steps}")
    return FoundCheckpoint(phase, step_of(checkpoint), checkpoint)


def _read(address: Address, phases: list[str]) -> tuple[str, str | None]:
    """The phase of an address, and the step or `best` in it. Raises UserError."""
    at = address.at
    if at is None:
        return phases[-1], None
    if at in phases:
        return at, None
    phase, colon, which = at.rpartition(":")
    phase = phase if colon else phases[-1]
    if phase not in phases or not (which == BEST or which.isdecimal()):
        raise UserError(
            f"{address}: behind @ stands a phase, a step or `best`, or two of them as PHASE:STEP; phases that have "
            f"checkpoints: {', '.join(phases)}"
        )
    return phase, which
