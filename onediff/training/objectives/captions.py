"""The paper's objective: next-token cross-entropy on captions and answers."""

from __future__ import annotations

from torch import Tensor

from onediff.config.training import PhaseConfig, TrainingConfig
from onediff.data.batch import Batch
from onediff.model.language import target_losses
from onediff.model.onediff import OneDiffModel


class CaptionObjective:
    """See `Objective`. Only the logits of `training.loss_chunk` targets exist at a time."""

    def __init__(self, phase: PhaseConfig, training: TrainingConfig) -> None:
        self.chunk = training.loss_chunk

    def __call__(self, model: OneDiffModel, batch: Batch) -> Tensor:
        """`[targets]` fp32."""
        return target_losses(model.language, model.embed(batch), batch, self.chunk)
