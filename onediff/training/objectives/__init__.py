"""Objectives: what a phase minimises. An objective is one class in one file, selected by the phase's key `objective`.

Another package adds its own by an entry point:

    [project.entry-points."onediff.objectives"]
    preferences = "my_package.preferences:PreferenceObjective"
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from onediff.config.plugins import OBJECTIVES
from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.data.batch import Batch
from onediff.model.onediff import OneDiffModel


class Objective(Protocol):
    """Created once per phase; called for each micro-batch, within the engine's forward pass."""

    def __init__(self, phase: PhaseConfig, training: TrainingConfig) -> None:
        """Raises UserError for settings that it does not support."""

    def __call__(self, model: OneDiffModel, batch: Batch) -> Tensor:
        """The loss of each target of the batch, `[targets]` fp32, not reduced.

        A step minimises their sum over the global batch, divided by the number of targets. Under ZeRO-3, every rank must
        run the same layers in the same order, regardless of its batch.
        """


def build_objective(phase: PhaseConfig, training: TrainingConfig) -> Objective:
    """The objective of a phase. Raises UserError."""
    objective: Objective = OBJECTIVES.load(phase.objective)(phase, training)
    return objective
