"""What a run does about steps whose numbers cannot be trusted."""

from __future__ import annotations

from pydantic import Field

from onediff.config.section import Section


class SpikesConfig(Section):
    """When a run goes back to a checkpoint automatically and skips the samples that it has read since.

    A step is bad when its loss is above `loss` times the median loss of the last `median_of` good steps, when its
    gradient norm is above `grad_norm` times their median norm, or when one of both is not finite. With `in_a_row` bad
    steps in a row the run goes back to the newest checkpoint from before the first of them, or to the one before that
    when it has written none since it went back last. Weights, moments, learning rate and step count are those of the
    checkpoint; the data goes on behind what has been read.
    """

    loss: float | None = Field(3.0, gt=1)
    """How many times the median loss a step's loss may be; `null` leaves the loss out."""
    grad_norm: float | None = Field(10.0, gt=1)
    """How many times the median norm a step's gradient norm, before clipping, may be; `null` leaves the norm out."""
    median_of: int = Field(50, gt=0)
    """Good steps whose medians count; until a phase has had that many, no step of it is a spike."""
    in_a_row: int = Field(3, gt=0)
    """Bad steps in a row that make the run go back: a single one is usually over by the next."""
    rollbacks: int = Field(3, ge=0)
    """How often a phase may go back; the next spike stops the run with exit code 3."""


class BadStepsConfig(Section):
    """What a run does about steps whose numbers cannot be trusted.

    A step whose gradients are not finite changes neither weights nor moments, at every ZeRO stage; the learning rate
    stays a function of the step. Such steps are counted as `skipped_steps`.
    """

    skipped_in_a_row: int = Field(3, ge=0)
    """How many skipped steps in a row a run survives; one more stops it with exit code 3."""
    skipped_in_window: int = Field(10, ge=0)
    """How many skipped steps among the last `window` a run survives; one more stops it with exit code 3."""
    window: int = Field(500, gt=0)
    """Steps that `skipped_in_window` counts in."""
    spikes: SpikesConfig | None = None
    """When to go back to a checkpoint automatically; by default never. What counts as a spike depends on the model
    and the batch size, and going back gives up the steps and samples since a checkpoint, so it has to be asked
    for. `{}` takes the defaults of the section."""
