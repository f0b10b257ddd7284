"""Submit and follow a run from Python:

import launcher

run = launcher.submit("configs/onediff_7b.yaml", nodes="8", profile="my-cluster", overrides=["optimizer.lr=3e-4"])
run.wait()
print(run.explain())
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.follow import PhaseState, explanation, phase_states
from launcher.local_chain import run_folder
from launcher.profile import ClusterProfile, load_profile
from launcher.record import Record
from launcher.submission import Submission, checked, queue, run_here
from onediff.config.compose import load_run
from onediff.config.run import RunConfig
from onediff.errors import UserError

GOING = ("running", "waiting")


class Run:
    """A submitted run, identified by its folder; offers what `onediff launch status` and `explain` print."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = Record(path)

    @classmethod
    def open(cls, name: str | Path) -> Run:
        """The run in a folder, or the one with that name in `runs/`. Raises UserError if there is none."""
        return cls(run_folder(str(name)))

    def status(self) -> list[PhaseState]:
        """The current state of each phase."""
        return phase_states(self.record)

    def finished(self) -> bool:
        """Whether every phase has finished."""
        return all(phase.state == "finished" for phase in self.status())

    def wait(self, timeout: float | None = None, pause: float = 30.0) -> list[PhaseState]:
        """Wait until no phase is running or waiting, polling every `pause` seconds. Returns the states.

        Raises TimeoutError after `timeout` seconds, and UserError with the reason if a phase did not finish.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            states = self.status()
            if ended := next((one for one in states if one.state in ("failed", "cancelled")), None):
                raise UserError(f"{self.path}: phase {ended.phase} {ended.state}: {ended.why}")
            if not any(one.state in GOING for one in states):
                return states
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.path}: still {', '.join(f'{one.phase} {one.state}' for one in states)}")
            time.sleep(pause)

    def explain(self) -> str:
        """What happened so far, as text."""
        return explanation(self.record)


def submit(
    config: str | Path | RunConfig,
    overrides: Iterable[str] = (),
    *,
    run: str | Path | None = None,
    profile: str | ClusterProfile = "default",
    nodes: int | str = 1,
    phases: Sequence[str] | None = None,
    spares: int = 0,
    comment: str | None = None,
) -> Run:
    """Check, freeze and queue a run as `onediff launch submit` does, and return it immediately.

    With a local profile the phases run before it returns. Raises UserError if a check fails.
    """
    said = list(overrides)
    if isinstance(config, RunConfig):
        if said:
            raise UserError(
                "overrides: need the name of a configuration file; with a RunConfig, change its values instead"
            )
        loaded, typed = config, []
    else:
        loaded, typed = load_run(str(config), said), [str(config), *said]
    folder = Path(run or Path("runs") / loaded.name).resolve()
    asked = Submission(
        loaded,
        folder,
        load_profile(profile, folder) if isinstance(profile, str) else profile,
        str(nodes),
        None if phases is None else ",".join(phases),
        spares=spares,
        comment=comment,
        said=typed,
    )
    ready = checked(asked)
    if ready.phases and ready.profile.scheduler == "local":
        run_here(ready)
    elif ready.phases:
        queue(ready)
    return Run(folder)
