"""Which weights of which run: `RUN`, `RUN@PHASE`, `RUN@STEP`, `RUN@best`, `RUN@PHASE:STEP`, `RUN@PHASE:best`.

Without a phase the newest one that has a checkpoint is meant, without more its newest checkpoint. A saved model has
nothing behind its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from onediff.config.compose import load_run
from onediff.config.tree import RunConfig
from onediff.errors import UserError
from onediff.training.folder import RunFolder, require_model

BEST = "best"


class Address(NamedTuple):
    """A folder, and what stands behind its `@`."""

    folder: Path
    at: str | None

    def __str__(self) -> str:
        return str(self.folder) if self.at is None else f"{self.folder}@{self.at}"

    @classmethod
    def of(cls, text: str | Path) -> Address:
        """Reads an address; a folder that is there may have an `@` in its own name."""
        path = Path(text)
        if path.exists() or "@" not in path.name:
            return cls(path, None)
        folder, _, at = path.name.rpartition("@")
        return cls(path.with_name(folder) if folder else path, at)

    @property
    def is_run(self) -> bool:
        """Whether the folder is that of a run, not a saved model."""
        return RunFolder(self.folder).config.is_file()

    def require(self) -> None:
        """Raises UserError unless a saved model or a run with a checkpoint is there. Needs no torch."""
        require_model(self.folder)
        if self.at is not None and not self.is_run:
            raise UserError(f"{self}: a saved model holds one set of weights; leave out @{self.at}")


def require_sources(config: RunConfig, run: Path) -> None:
    """Raises UserError where `init` names what is not there; a run that has a checkpoint needs it no longer."""
    if config.init is not None and not any(run.glob("checkpoints/*/step-*")):
        for address in dict.fromkeys(config.init.addresses.values()):
            Address.of(address).require()


class Found(NamedTuple):
    """One checkpoint of a run."""

    phase: str
    step: int
    checkpoint: Path


def found(address: Address) -> Found:
    """The checkpoint that an address of a run means. Raises UserError where there is none, saying what there is."""
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
    return Found(phase, step_of(checkpoint), checkpoint)


def _read(address: Address, phases: list[str]) -> tuple[str, str | None]:
    """The phase, and a step or `best` in it, of an address. Raises UserError."""
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
