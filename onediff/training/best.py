"""The best step of a phase by a given metric, and when to stop waiting for a better one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from onediff.config.section import nearest
from onediff.config.training import BestConfig
from onediff.errors import UserError

log = logging.getLogger(__name__)


class Best:
    """The best measurement so far: the same on every rank, and stored in every checkpoint."""

    def __init__(self, phase: str, config: BestConfig | None) -> None:
        self.phase, self.config = phase, config
        self.value: float | None = None
        self.step: int | None = None
        self.since = 0
        """Measurements since the best one."""

    def judge(self, step: int, measured: Mapping[str, float]) -> bool:
        """Records the measurements of a step; returns whether they are the best so far.

        Neither a tie nor NaN is better. Raises UserError if other metrics of this kind were measured, but not this one.
        """
        if self.config is None or not any(self.config.is_kin_of(name) for name in measured):
            return False
        metric = self.config.metric
        if metric not in measured:
            raise UserError(f"phases.{self.phase}.best.metric: {metric!r} was not measured{nearest(metric, measured)}")
        new = measured[metric]
        better = self.value is None or (new < self.value if self.config.lower else new > self.value)
        if math.isfinite(new) and better:
            self.value, self.step, self.since = new, step, 0
            return True
        self.since += 1
        return False

    @property
    def over(self) -> bool:
        """Whether the phase should end here."""
        patience = None if self.config is None else self.config.stop_after
        return patience is not None and self.since >= patience

    def in_words(self) -> str:
        """`validation/loss 2.1034 at step 400`."""
        assert self.config is not None
        value = "not a number so far" if self.value is None else f"{self.value:.4f} at step {self.step}"
        return f"{self.config.metric} {value}"

    def to_json(self) -> dict[str, Any] | None:
        """For a checkpoint."""
        if self.config is None:
            return None
        rule = {"metric": self.config.metric, "lower": self.config.lower}
        return {**rule, "value": self.value, "step": self.step, "since": self.since}

    def restore(self, stored: Mapping[str, Any] | None) -> None:
        """Restores the state of a checkpoint; starts over if the checkpoint used another metric."""
        self.value, self.step, self.since = None, None, 0
        if self.config is None or stored is None:
            return
        if (stored["metric"], stored["lower"]) != (self.config.metric, self.config.lower):
            log.warning(
                "phase %s was judged by %s until now: the search for the best step starts over",
                self.phase,
                stored["metric"],
            )
            return
        self.value, self.step, self.since = stored["value"], stored["step"], stored["since"]
