"""Steps that must not be trusted: gradients that are not finite, spikes of loss or gradient norm. Torch-free."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from pydantic import Field

from onediff.config.section import Section


class TrainingFault(RuntimeError):
    """The numbers and not the machine keep a run from going on: it ends with exit code 3, its last checkpoint is good."""


class SpikesConfig(Section):
    """When a run goes back to a checkpoint by itself, and passes over the samples that it has read since.

    A step is bad when its loss is above `loss` times the median loss of the last `median_of` good steps, when its gradient
    norm is above `grad_norm` times their median norm, or when one of both is not finite. With `in_a_row` bad steps in a row
    the run goes back to the newest checkpoint from before the first of them, or to the one before that when it has written
    none since it went back last. Weights, moments, learning rate and step count are those of the checkpoint; the data goes
    on behind what has been read.
    """

    loss: float | None = Field(3.0, gt=1)
    """How many times the median loss a step's loss may be; `null` leaves the loss out."""
    grad_norm: float | None = Field(10.0, gt=1)
    """How many times the median norm a step's gradient norm, before clipping, may be; `null` leaves the norm out."""
    median_of: int = Field(50, gt=0)
    """Good steps whose medians count; until a phase has had so many, no step of it is a spike."""
    in_a_row: int = Field(3, gt=0)
    """Bad steps in a row that make the run go back: a single one is usually over by the next."""
    rollbacks: int = Field(3, ge=0)
    """How often a phase may go back; the next spike stops the run with exit code 3."""


class BadStepsConfig(Section):
    """What a run does about steps whose numbers are not to be trusted.

    A step whose gradients are not finite changes neither weights nor moments, at every ZeRO stage; the learning rate stays a
    function of the step. Such steps are counted as `skipped_steps`.
    """

    skipped_in_a_row: int = Field(3, ge=0)
    """So many skipped steps in a row are passed over; one more stops the run with exit code 3."""
    skipped_in_window: int = Field(10, ge=0)
    """So many skipped steps among the last `window` are passed over; one more stops the run with exit code 3."""
    window: int = Field(500, gt=0)
    """Steps that `skipped_in_window` counts in."""
    spikes: SpikesConfig | None = None
    """Going back to a checkpoint by itself; by default never. What is a spike depends on the model and on the size of the
    batch, and going back gives up the steps and samples since a checkpoint: a run is to do so where somebody asked for it.
    `{}` takes the defaults of the section."""


@dataclass
class Watch:
    """What the steps of a phase were like so far: the same on every rank, and a part of every checkpoint."""

    config: BadStepsConfig
    skipped: int = 0
    """Steps skipped since the phase began."""
    recent: list[int] = field(default_factory=list)
    """The latest of them."""
    losses: list[float] = field(default_factory=list)
    """Of the last good steps."""
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the same steps."""
    first_bad: int | None = None
    """First of the bad steps that the last step is one of, without a good one between them."""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """Where the phase went back: `from_step`, `to_step`, `why`, and `draws` by lane between which nothing was learned."""

    def see(self, step: int, loss: float, grad_norm: float) -> None:
        """Notes a step; numbers that are not finite stand for one that may have been skipped."""
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
        """In words, by what a step with these numbers is bad; empty where it is good."""
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
        """Whether `step`, the last one, ends as many bad steps as make the run go back."""
        spikes = self.config.spikes
        if spikes is None or self.first_bad is None or len(self.losses) < spikes.median_of:
            return False
        return step - self.first_bad + 1 >= spikes.in_a_row

    def too_many(self, step: int) -> str:
        """In words, of which limit there are more skipped steps, the last one being `step`; empty where there are not."""
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
        """Goes on from what a checkpoint holds; one from before there was a watch holds nothing."""
        vars(self).update(vars(Watch(self.config)) | (stored or {}))
