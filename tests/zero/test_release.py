"""A finished phase frees its memory and restores torch's own functions."""

import json

import pytest
from places import SUPPORT
from processes import run_ranks
from small_run import overrides, render

WORKER = SUPPORT / "release_worker.py"


@pytest.mark.parametrize(("stage", "precision"), [(3, "fp32"), pytest.param(2, "bf16", marks=pytest.mark.long)])
def test_nothing_of_a_phase_is_alive_when_the_next_begins(tmp_path, stage, precision):
    data, out = render(tmp_path / "data", 20, 20), tmp_path / "found.json"
    more = {"parallel.zero_stage": stage, "training.precision": precision, "training.sample_captions": 0}
    run_ranks(WORKER, [str(tmp_path / "run"), str(out), *overrides(data, 2, **more)], 1)
    first, second = json.loads(out.read_text())
    assert second["alive"] == []
    assert second["linear"] == first["linear"]  # DeepSpeed's ZeRO-3 replaces it
    # The model has two million parameters; what stays is buffers and the like.
    assert second["bytes"] - first["bytes"] < 1e6
