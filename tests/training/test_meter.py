"""Achieved FLOP/s."""

from dataclasses import replace

import pytest
from models import batch

from onediff.config.compose import load_run
from onediff.data.segments import Segments
from onediff.plan.architecture import sizes_of
from onediff.plan.flops import step_flops
from onediff.plan.gpus import GPUS, gpu_named, gpu_of_device
from onediff.plan.walk import Shape, Trained
from onediff.training.metrics import FlopCounter, shape_of


def test_the_rate_is_the_models_flops_by_the_seconds_of_the_step():
    config = load_run("configs/demo.yaml")
    phase = config.phases["two"]
    made = batch("pair", "single")
    meter = FlopCounter(config.model, phase, tp_size=1, precision=config.training.precision)
    rates = meter.rates(meter.tflop([made, made]), seconds=0.5)
    flops = step_flops(sizes_of(config.model), shape_of(made, 4), Trained.of(phase))
    assert rates["tflops_per_rank"] == pytest.approx(4 * sum(part.model for part in flops.values()) / 1e12)
    assert "mfu" not in rates  # nobody knows the peak of this processor


def test_samples_of_a_packed_row_look_at_themselves_only():
    made = batch("pair", "single")
    rows, tokens = made.token_ids.shape
    assert shape_of(made, 4) == Shape(rows, tokens, 3, 1, made.targets, None)
    assert shape_of(replace(made, segments=Segments.of([5, 3, 4])), 4).scores == 5**2 + 3**2 + 4**2


def test_a_gpu_is_known_by_the_name_that_its_driver_gives():
    assert gpu_of_device("NVIDIA H100 80GB HBM3") == gpu_named("h100-80g")
    assert gpu_of_device("NVIDIA H100 NVL") == gpu_named("h100-94g-nvl")
    assert gpu_of_device("NVIDIA A100-SXM4-40GB") == gpu_named("a100-40g")
    assert gpu_of_device("NVIDIA GeForce GTX 1080") is None
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
