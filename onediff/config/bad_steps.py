"""Settings for steps with non-finite gradients, and for loss spikes."""

from __future__ import annotations

from pydantic import Field

from onediff.config.section import Section


class SpikesConfig(Section):
    """When a run rolls back to a checkpoint automatically and skips the samples that it has read since.

    A step is bad if its loss exceeds `loss` times the median loss of the last `median_of` good steps, if its gradient norm
    exceeds `grad_norm` times their median norm, or if either is not finite. After `in_a_row` bad steps in a row, the run
    rolls back to the newest checkpoint from before the first of them. If it has written no checkpoint since the last
    rollback, it uses the one before that. Weights, moments, learning rate and step count are restored from the checkpoint;
    the data continues after the samples already read.
    """

    loss: float | None = Field(3.0, gt=1)
    """A step is bad if its loss exceeds this multiple of the median; `null` ignores the loss."""
    grad_norm: float | None = Field(10.0, gt=1)
    """A step is bad if its gradient norm before clipping exceeds this multiple of the median; `null` ignores the norm."""
    median_of: int = Field(50, gt=0)
    """Number of good steps in the medians; a phase has no spikes until it has had that many."""
    in_a_row: int = Field(3, gt=0)
    """Bad steps in a row that trigger a rollback; a single bad step usually has no effect."""
    rollbacks: int = Field(3, ge=0)
    """Most rollbacks in a phase; the next spike stops the run with exit code 3."""


class BadStepsConfig(Section):
    """How a run handles non-finite gradients and loss spikes.

    A step with non-finite gradients changes neither weights nor moments, at any ZeRO stage, and the learning rate still
    follows the step count. Such steps are counted as `skipped_steps`.
    """

    skipped_in_a_row: int = Field(3, ge=0)
    """Most skipped steps in a row; one more stops the run with exit code 3."""
    skipped_in_window: int = Field(10, ge=0)
    """Most skipped steps among the last `window` steps; one more stops the run with exit code 3."""
    window: int = Field(500, gt=0)
    """Number of steps that `skipped_in_window` looks back."""
    spikes: SpikesConfig | None = None
    """When to roll back to a checkpoint automatically; by default never, because what counts as a spike depends on the
    model and the batch size, and a rollback loses the steps and samples since the checkpoint. `{}` uses the section's
    defaults."""
