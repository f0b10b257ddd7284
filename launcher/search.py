"""Search for good settings: Optuna proposes values, runs are submitted, bad runs are ended early.

The study is kept in `<folder>/study.log`, a journal that survives a kill at any time. Repeating the command continues it:
active runs are followed again, finished ones are not repeated. Needs `pip install "onediff[search]"`.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from launcher.space import Choice
from onediff.columns import in_columns
from onediff.config.difference import differences, flat, in_one_line
from onediff.errors import UserError
from onediff.tracking.journal import records
from onediff.tracking.overview import overview

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from onediff.config.run import RunConfig


class Going(Protocol):
    """A started run."""

    def state(self) -> str:
        """`going`, `finished`, or the reason why it ended."""

    def end(self) -> None:
        """End the run."""

    def leave(self) -> None:
        """Detach from the run because the search is interrupted; a continued search follows it again."""


Start = Callable[[Path, Sequence[str]], Going]
"""Starts the run of a folder with these overrides, or follows it if it was started before."""


@dataclass(frozen=True)
class Goal:
    """The metric by which runs are compared."""

    metric: str
    """A score of the final evaluation, or else a metric of `phase`."""
    phase: str
    """The last training phase; its metrics at equal steps decide which runs are ended early."""
    better: Literal["lower", "higher"]

    def __str__(self) -> str:
        return f"{self.better} {self.metric}"

    def curve(self, run: Path) -> dict[int, float]:
        """The metric at each step of the phase at which it was measured so far."""
        found: dict[int, float] = {}
        for _, record in records(run / "tracking" / f"phase-{self.phase}.jsonl"):
            value = record.get("metrics", {}).get(self.metric)
            if value is not None and math.isfinite(value):
                found[int(record["step"])] = value
        return found

    def value(self, run: Path) -> float:
        """The metric of a finished run. Raises UserError if it was not measured."""
        seen = overview(run)
        if self.metric in seen.scores:
            return seen.scores[self.metric]
        if curve := self.curve(run):
            return curve[max(curve)]
        known = sorted({*seen.scores, *seen.metrics})
        raise UserError(f"{run}: no metric {self.metric!r}; it has {', '.join(known) or 'none'}")


def open_study(folder: Path, goal: Goal, seed: int, pruning: bool) -> Study:
    """Create or continue the study of a folder. Raises UserError if its goal differs or Optuna is missing."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError('a search needs Optuna: pip install "onediff[search]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # With several runs at once, new proposals stay away from those still pending.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(
        study_name=folder.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if pruning else optuna.pruners.NopPruner(),
        direction="minimize" if goal.better == "lower" else "maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("goal")
    if before not in (None, str(goal)):
        raise UserError(f"{folder}: this search was started for a {before}, not a {goal}; choose another --name")
    study.set_user_attr("goal", str(goal))
    return study


def require_same(study: Study, folder: Path, base: RunConfig, space: Sequence[Choice]) -> None:
    """Raise UserError unless an earlier search in the folder had the same fixed settings and chose the same keys.

    Results under other settings cannot be compared, and would mislead the proposals. The bounds of a range may change.
    """
    now = {key: value for key, value in flat(base.model_dump(mode="json")).items() if not key.startswith("tracking.")}
    now |= {choice.key: choice.kind() for choice in space}
    if changed := differences(study.user_attrs.get("settings", now), now):
        raise UserError(
            f"{folder}: this search was started with other settings ({in_one_line(changed)}); use those, or choose "
            "another --name"
        )
    study.set_user_attr("settings", now)


class Search:
    """The search in a folder: `trials` runs in total, at most `at_most` at once."""

    def __init__(
        self, study: Study, folder: Path, goal: Goal, space: Sequence[Choice], start: Start, at_most: int, trials: int
    ) -> None:
        self.study, self.folder, self.goal, self.space, self.start = study, folder, goal, space, start
        self.at_most, self.trials = at_most, trials
        self.going: list[tuple[Trial, Going]] = []

    def run(self, pause: float) -> None:
        """Run until the last trial is over, polling the runs every `pause` seconds."""
        try:
            self.take_up()
            self.search(pause)
        except BaseException:
            for _, run in self.going:
                run.leave()
            raise

    def take_up(self) -> None:
        """Follow the runs that were active when the search was interrupted."""
        from optuna import Trial
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(states=[TrialState.RUNNING]):
            self.begin(Trial(self.study, frozen._trial_id))

    def search(self, pause: float) -> None:
        """Propose, start and follow runs until the last is over."""
        distributions = {choice.key: choice.distribution() for choice in self.space}
        while self.going or len(self.study.trials) < self.trials:
            while len(self.going) < self.at_most and len(self.study.trials) < self.trials:
                self.begin(self.study.ask(distributions))
            self.going = [(trial, run) for trial, run in self.going if not self.ended(trial, run)]
            if self.going:
                time.sleep(pause)

    def path(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / f"trial-{number:03d}"

    def begin(self, trial: Trial) -> None:
        """Start the run of a trial."""
        from optuna.trial import TrialState

        overrides = [f"{choice.key}={choice.text(trial.params[choice.key])}" for choice in self.space]
        print(f"trial {trial.number}: {' '.join(overrides)}", flush=True)
        try:
            self.going.append((trial, self.start(self.path(trial.number), overrides)))
        except UserError as error:
            trial.set_user_attr("why", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            raise

    def ended(self, trial: Trial, run: Going) -> bool:
        """Report a trial's progress to the study. Returns whether it is over."""
        from optuna.trial import TrialState

        path, state = self.path(trial.number), run.state()
        for step, value in self.goal.curve(path).items():
            if step not in self.study.trials[trial.number].intermediate_values:
                trial.report(value, step)
        if state == "going":
            if not trial.should_prune():
                return False
            run.end()
            return self.tell(trial, "ended early", TrialState.PRUNED)
        if state != "finished":
            return self.tell(trial, state, TrialState.FAIL)
        try:
            value = self.goal.value(path)
        except UserError as error:
            return self.tell(trial, str(error), TrialState.FAIL)
        return self.tell(trial, f"{self.goal.metric} {value:.6g}", TrialState.COMPLETE, value)

    def tell(self, trial: Trial, words: str, state: object, value: float | None = None) -> bool:
        """Finish a trial in the study and print a line about it. Returns True."""
        trial.set_user_attr("why", words)
        self.study.tell(trial, value, state=state)  # type: ignore[arg-type]
        print(f"trial {trial.number}: {words}", flush=True)
        return True


def best_first(study: Study, goal: Goal) -> list[FrozenTrial]:
    """Finished trials by value, then those ended early by their last value, then failed ones."""
    sign = 1 if goal.better == "lower" else -1

    def rank(trial: FrozenTrial) -> tuple[int, float]:
        last = trial.value
        if last is None and trial.intermediate_values:
            last = trial.intermediate_values[max(trial.intermediate_values)]
        order = ("COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL").index(trial.state.name)
        return order, math.inf if last is None else sign * last

    return sorted(study.trials, key=rank)


def table(study: Study, goal: Goal, space: Sequence[Choice]) -> str:
    """All trials as a text table, best first."""
    head = ["trial", *(choice.key for choice in space), "result"]
    rows = [
        [
            f"{trial.number:03d}",
            *(
                f"{value:.4g}" if isinstance(value, float) else str(value)
                for value in map(trial.params.get, head[1:-1])
            ),
            str(trial.user_attrs.get("why", trial.state.name.lower())),
        ]
        for trial in best_first(study, goal)
    ]
    return "\n".join(in_columns([head, *rows]))
