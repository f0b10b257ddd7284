"""Figures of a step that was given to the device before they are read."""

from __future__ import annotations

import torch

from onediff.training.engine import Agreed, StepUnderWay
from onediff.training.metrics import Moment, OnTheWay

CPU = torch.device("cpu")


def step(loss_sums: list[float], counts: list[float]) -> StepUnderWay:
    numbers = torch.tensor(
        [sum(counts), 90.0, 1.0, 12.0, 100.0, 2.0, 0.5, 0.0, 1.0, 0.0, *loss_sums, *counts], dtype=torch.float64
    )
    return StepUnderWay(6, {"lr": 1e-3, "lr/delta": 1e-3}, ["a", "b"], OnTheWay(numbers), Moment(CPU), Moment(CPU))


def test_metrics_are_means_over_the_global_batch_and_a_source_without_targets_has_none():
    measured, agreed = step([8.0, 0.0], [4.0, 0.0]).metrics()
    assert measured == {
        "loss": 2.0,
        "grad_norm": 0.5,
        "lr": 1e-3,
        "lr/delta": 1e-3,
        "targets": 4.0,
        "tokens": 90.0,
        "skipped": 1.0,
        "samples": 12.0,
        "real_token_share": 0.9,
        "loss/a": 2.0,
    }
    assert agreed == Agreed(loss=2.0, grad_norm=0.5, asked=[0.0, 1.0, 0.0])


def test_moments_are_in_order():
    first = Moment(CPU)
    assert first.seconds_until(Moment(CPU)) >= 0
