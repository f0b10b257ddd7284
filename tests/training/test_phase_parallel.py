"""Phases with parallel settings of their own."""

import pytest
from small_run import PHASES, metrics, render, train

from onediff.training.checkpoint.manifest import read_manifest


@pytest.mark.long
def test_a_phase_at_another_zero_stage_has_the_same_losses_as_its_neighbours_at_one(tmp_path):
    data = render(tmp_path / "scenes")
    whole, mixed = tmp_path / "whole", tmp_path / "mixed"
    # The demo trains two of its phases unsharded; here the first run has one stage, the second three.
    stages = [dict.fromkeys(PHASES, 3), dict(zip(PHASES, (0, 3, 2), strict=True))]
    for run, stage_of in zip((whole, mixed), stages, strict=True):
        settings = {f"phases.{phase}.parallel.zero_stage": stage for phase, stage in stage_of.items()}
        done = train(run, data, 4, "--processes", "2", **settings)
        assert done.returncode == 0, done.stderr
        for phase, stage in stage_of.items():
            assert read_manifest(run / "checkpoints" / f"phase-{phase}" / "step-00000004").zero_stage == stage
    for phase in PHASES:
        assert list(metrics(mixed, phase).values()) == pytest.approx(list(metrics(whole, phase).values()), abs=1e-5)
