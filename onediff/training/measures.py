"""Measurements of a phase on held-out data between its steps, and the best step by them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from onediff.config.section import nearest
from onediff.config.training import BestConfig
from onediff.errors import UserError
from onediff.evaluation.metrics import chosen
from onediff.parallel.agreement import from_rank_zero, raise_on_all_ranks
from onediff.training.best import Best
from onediff.training.checkpoint.folder import BEST, name_of, point
from onediff.training.checkpoint.manifest import FILE
from onediff.training.engine import Engine
from onediff.training.evaluations import Evaluations
from onediff.training.stop import CutShort, StopRequest
from onediff.training.validation import Validation

log = logging.getLogger(__name__)


class Measures:
    """Validation and evaluation of a phase, and its best step.

    Measurements that decide the best step run before the step's checkpoint, so that the checkpoint stores the result. An
    evaluation that decides nothing runs after it, so that a failure there loses no steps.
    """

    def __init__(
        self,
        phase: str,
        judged_by: BestConfig | None,
        more_metrics: Sequence[str],
        validation: Validation,
        evaluations: Evaluations,
    ) -> None:
        """`judged_by` defines the best step; `more_metrics` are those of `evaluation.metrics`.

        Raises UserError for a metric that does not exist.
        """
        chosen(more_metrics)  # an unknown one is refused before training, even if only the final evaluation needs it
        self.validation, self.evaluations = validation, evaluations
        self.measured = 0
        """Newest step whose measurements `best` includes."""
        self.tracker: Any = None  # rank 0 has one
        self.stopped: str | None = None
        """The signal that ended the last measurement early."""
        if judged_by is not None:
            judged_by = directed(judged_by, phase, validation.names, more_metrics)
        self.best = Best(phase, judged_by)

    def heed(self, stop: StopRequest) -> None:
        """Makes a stop request end a measurement at its next batch, from now on."""
        self.validation.check = self.evaluations.check = stop.check

    def due(self, step: int) -> bool:
        """Whether anything is measured after this step."""
        return self.validation.due(step) or self.evaluations.due(step)

    def owed(self, step: int) -> bool:
        """Whether a stop request made this step's checkpoint be written without its measurements."""
        return step > self.measured and (self.validation.due(step) or self._awaits_scores(step))

    def before_saving(self, engine: Engine, step: int) -> bool:
        """Measures what this step's checkpoint must store; returns whether the step is the best so far. Collective.

        After a stop request, the step is still `owed` its measurements.
        """
        try:
            return self._measure(engine, step)
        except CutShort as signal:
            self.stopped = str(signal)
            return False

    def _measure(self, engine: Engine, step: int) -> bool:
        measured: dict[str, float] = {}
        if self.validation.due(step):
            measured |= self.validation.losses(engine, step)
            if self.tracker is not None:
                self.tracker.log(step, {name: value for name, value in measured.items() if math.isfinite(value)})
        if self._awaits_scores(step):
            scores: Any = from_rank_zero(self._scores(engine, step))
            measured |= scores
        self.measured = step
        is_best = self.best.judge(step, measured)
        if is_best and self.tracker is not None:
            self.tracker.tags({"best.step": step, "best.metric": self.best.in_words()})
        return is_best

    def after_saving(self, engine: Engine, step: int) -> None:
        """Takes the other measurements, unless a stop is requested meanwhile. Collective."""
        if self.evaluations.due(step) and not self._awaits_scores(step):
            try:
                self._scores(engine, step)
            except CutShort as signal:
                self.evaluations.forget(step)
                self.stopped = str(signal)

    def make_up(self, engine: Engine, step: int) -> None:
        """Takes the evaluation of a step that a stop request prevented after its checkpoint. Collective."""
        if self.evaluations.due(step) and from_rank_zero(self.evaluations.missed(step)):
            self.after_saving(engine, step)

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"measured": self.measured, "best": self.best.to_json()}

    def restore(self, stored: dict[str, Any] | None, folder: Path) -> None:
        """Restores the state from a checkpoint in `folder`; one of an earlier version has none. Collective."""
        self.measured = (stored or {}).get("measured", 0)
        self.best.restore((stored or {}).get("best"))
        if self.best.config is None:
            return
        step = self.best.step
        if step is not None and not from_rank_zero((folder / name_of(step) / FILE).is_file()):
            log.warning("the checkpoint of the best step, %d, is gone: the search for the best step starts over", step)
            self.best.restore(None)
        with raise_on_all_ranks():
            if dist.get_rank() == 0:
                # `best` may point to a step after this checkpoint.
                point(folder, BEST, self.best.step)

    def _awaits_scores(self, step: int) -> bool:
        by_scores = self.best.config is not None and self.best.config.is_kin_of("evaluation/")
        return by_scores and self.evaluations.due(step)

    def _scores(self, engine: Engine, step: int) -> dict[str, float]:
        found = self.evaluations.scores(engine, step)
        if found is None:
            return {}
        folder, scores = found
        measured = {f"evaluation/{name}": value for name, value in scores.items()}
        self.tracker.log(step, measured)
        self.tracker.artifact(folder / "report.html", f"evaluation/{folder.name}")
        return measured


def directed(best: BestConfig, phase: str, validated: Sequence[str], more_metrics: Sequence[str]) -> BestConfig:
    """`best` with the direction of its metric.

    Raises UserError if no such metric is measured: on the data sets `validated`, or by `more_metrics` and the usual ones.
    """
    if best.is_kin_of("validation/"):
        known, lower = ["validation/loss", *(f"validation/loss/{name}" for name in validated)], []
    else:
        metrics = chosen(more_metrics)
        known = [f"evaluation/{name}" for metric in metrics for name in metric.scores]
        lower = [f"evaluation/{name}" for metric in metrics for name in metric.lower_is_better]
    if best.metric not in known:
        raise UserError(f"phases.{phase}.best.metric: no {best.metric!r}{nearest(best.metric, known)}")
    if best.direction is None and best.metric in lower:
        return best.model_copy(update={"direction": "lower"})
    return best
