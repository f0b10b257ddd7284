"""Detects bad steps: gradients that are not finite, spikes of loss or gradient norm. Torch-free."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from onediff.config.bad_steps import BadStepsConfig


class TrainingFault(RuntimeError):
    """The run cannot continue because of its numbers, not its machine. It exits with code 3; its last checkpoint is good."""


@dataclass
class StepWatch:
    """The history of bad steps in a phase: the same on every rank, and part of every checkpoint."""

    config: BadStepsConfig
    skipped: int = 0
    """Steps skipped since the phase began."""
    recent: list[int] = field(default_factory=list)
    """The most recently skipped steps."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last good steps."""
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the same steps."""
    first_bad: int | None = None
    """The first of the consecutive bad steps up to the last step."""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """For each rollback `from_step`, `to_step`, `why`, and the `cursors` of all lanes at both ends of the skipped data."""

    def see(self, step: int, loss: float, grad_norm: float) -> None:
        """Records a step. If the gradient norm is not finite, the step was skipped."""
        seen = max(self.config.window, self.config.skipped_in_a_row + 1)
        self.recent = [one for one in self.recent if one > step - seen]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped += 1
            self.recent.append(step)
        spikes = self.config.spikes
        if spikes is None:
            return
        if self.excess(loss, grad_norm):
            self.first_bad = self.first_bad or step
            return
        self.first_bad = None
        self.losses = [*self.losses, loss][-spikes.median_of :]
        self.norms = [*self.norms, grad_norm][-spikes.median_of :]

    def excess(self, loss: float, grad_norm: float) -> str:
        """Why a step with these values is bad, as text; empty for a good step."""
        spikes = self.config.spikes
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "the gradients are not finite"
        if spikes is None or len(self.losses) < spikes.median_of:
            return ""
        for name, value, limit, before in (
            ("loss", loss, spikes.loss, self.losses),
            ("gradient norm", grad_norm, spikes.grad_norm, self.norms),
        ):
            if limit is not None and value > limit * median(before):
                return f"{name} {value:.4g} is above {limit:g} times the median {median(before):.4g}"
        return ""

    def spiked(self, step: int) -> bool:
        """Whether the bad steps up to `step`, the last one, are enough for a rollback."""
        spikes = self.config.spikes
        if spikes is None or self.first_bad is None or len(self.losses) < spikes.median_of:
            return False
        return step - self.first_bad + 1 >= spikes.in_a_row

    def too_many(self, step: int) -> str:
        """Which limit on skipped steps is exceeded at `step`, as text; empty if none is."""
        if not self.recent or self.recent[-1] != step:
            return ""
        row = next(n for n, one in enumerate([*reversed(self.recent), -1]) if one != step - n)
        if row > self.config.skipped_in_a_row:
            return f"{row} steps in a row (training.bad_steps.skipped_in_a_row {self.config.skipped_in_a_row})"
        in_window = sum(one > step - self.config.window for one in self.recent)
        if in_window > self.config.skipped_in_window:
            return (
                f"{in_window} of the last {self.config.window} steps "
                f"(training.bad_steps.skipped_in_window {self.config.skipped_in_window})"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {key: value for key, value in asdict(self).items() if key != "config"}

    def restore(self, stored: dict[str, Any] | None) -> None:
        """Restores the state from a checkpoint; checkpoints of earlier versions have none."""
        vars(self).update(vars(StepWatch(self.config)) | (stored or {}))
