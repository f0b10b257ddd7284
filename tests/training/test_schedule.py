"""The learning rate by step."""

import math
from itertools import pairwise

import pytest

from onediff.config.training import OptimizerConfig
from onediff.training.optimizer import lr_multiplier


def rates(steps: int = 100, **options: object) -> list[float]:
    config = OptimizerConfig(**options)
    return [lr_multiplier(config, step, steps) for step in range(steps)]


def test_warm_up_is_linear_from_the_first_step():
    made = rates(warmup=0.1)
    assert made[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert made[10] == 1.0
    assert rates(warmup=0.0)[0] == 1.0


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_shapes(schedule, half):
    made = rates(schedule=schedule, warmup=0.0)
    assert made[50] == pytest.approx(half)
    assert all(a >= b for a, b in pairwise(made))
    assert made[-1] > 0
    assert made[25] == pytest.approx(
        {"cosine": (1 + math.cos(math.pi / 4)) / 2, "linear": 0.75, "constant": 1}[schedule]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_end_is_a_share_of_the_peak(schedule):
    made = rates(1000, schedule=schedule, warmup=0.1, final_lr=0.2)
    assert made[-1] == pytest.approx(0.2, abs=2e-3)
    assert min(made[100:]) >= 0.2
    assert max(made) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_phases_of_a_few_steps(steps):
    assert all(0 < share <= 1 for share in rates(steps))
    assert all(0 < share <= 1 for share in rates(steps, warmup=0.9))
