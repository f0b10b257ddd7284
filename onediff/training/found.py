"""Resolves the address of a run to a checkpoint.

An address without a phase means the newest phase that has a checkpoint; without a step, the newest checkpoint. The address
of a saved model is its folder.
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
    """The checkpoint that an address means. Raises UserError that lists the existing ones if there is no such checkpoint."""
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
        why = f"phases.{phase}.best is not set, or was never measured" if which == BEST else "it may have been deleted"
        steps = ", ".join(map(str, there))
        raise UserError(f"{address}: phase {phase} has no checkpoint {which} ({why}); it has steps {steps}")
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
            f"{address}: write a phase, a step, `best` or PHASE:STEP after @; phases with checkpoints: {', '.join(phases)}"
        )
    return phase, which
