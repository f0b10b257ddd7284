"""A step whose gradients are not finite changes nothing; which steps are bad, and when there are too many."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from places import SUPPORT
from processes import run_ranks

from onediff.config.bad_steps import BadStepsConfig
from onediff.config.compose import load_run
from onediff.training.faults import StepWatch

WORKER = SUPPORT / "faults_worker.py"
NAN = float("nan")
# A part that is not cut: under tensor parallelism DeepSpeed counts its gradient on the first rank of a group only.
UNCUT = {"where": "projector.picture_in.weight", "value": "inf"}


def case(precision: str, stage: int, tensor: int, offload: str = "none", **more: str) -> dict[str, Any]:
    parallel = {"zero_stage": stage, "tensor": tensor, "offload_optimizer": offload}
    return {"training": {"precision": precision}, "parallel": parallel, **more}


def shown(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    run_ranks(WORKER, [json.dumps(cases), str(folder / "found.json")], 2, timeout=900)
    return json.loads((folder / "found.json").read_text())


def assert_nothing_changed(cases: list[dict[str, Any]], folder: Path) -> None:
    """Weights, moments and counts after the step are those before it, and the next step is as if it had not been taken."""
    for found in shown(cases, folder):
        assert found["figures"]["grad_norm"] == float("inf"), found
        assert found["unchanged"], found
        assert found["goes on alike"], found


def test_gradients_of_one_rank_that_are_not_finite_change_nothing_on_any(tmp_path):
    assert_nothing_changed([case("fp32", 0, 2, **UNCUT), case("bf16", 3, 2)], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("tensor", [1, 2])
def test_gradients_that_are_not_finite_change_nothing_at_every_stage(tensor, tmp_path):
    """With the optimizer where it is and in the memory of the host, by a loss of NaN and by one infinite number."""
    cases = [
        case(precision, stage, tensor, offload, **poison)
        for precision, stage, offload in product(("fp32", "bf16"), range(4), ("none", "cpu"))
        for poison in ({}, UNCUT)
        if stage or offload == "none"
    ]
    assert_nothing_changed(cases, tmp_path)


@pytest.mark.long
def test_gradients_that_are_not_finite_change_nothing_where_states_lie_on_nvme(tmp_path):
    from onediff.zero.lean import deepspeed

    if not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible():
        pytest.skip("DeepSpeed finds no libaio, or no C++ compiler; Debian's packages are libaio-dev and g++")
    cases = [case("fp32", 3, 1, "nvme"), case("bf16", 3, 1, "nvme")]
    for one in cases:
        one["parallel"]["nvme_folder"] = str(tmp_path / "nvme")
    assert_nothing_changed(cases, tmp_path)


def watched(
    losses: list[float], norms: list[float] | None = None, **config: Any
) -> tuple[StepWatch, list[int], list[int]]:
    """A watch that has seen these steps, and the steps at which a spike was over or skipped ones were too many."""
    watch = StepWatch(BadStepsConfig.model_validate(config))
    spikes, stops = [], []
    for step, loss in enumerate(losses, 1):
        watch.see(step, loss, norms[step - 1] if norms else 1.0)
        spikes += [step] * watch.spiked(step)
        stops += [step] * bool(watch.too_many(step))
    return watch, spikes, stops


def test_more_skipped_steps_than_configured_in_a_row_or_in_a_window_are_too_many():
    assert watched([NAN] * 4, skipped_in_a_row=3)[2] == [4]
    assert watched([1, NAN, NAN, 1, NAN, NAN, NAN], skipped_in_a_row=2)[2] == [7]
    few = [1, NAN, 1, 1, NAN, 1, 1, NAN, 1]
    assert watched(few, skipped_in_window=2, window=7)[2] == [8]
    assert watched(few, skipped_in_window=2, window=6)[2] == []
    assert watched([1, 1], norms=[1, float("inf")], skipped_in_a_row=0)[2] == [2]
    assert watched([NAN] * 9, skipped_in_a_row=5, window=2)[2] == [6, 7, 8, 9]


def test_a_spike_is_so_many_steps_in_a_row_above_so_many_times_the_median_of_good_ones():
    rule = {"spikes": {"loss": 2.0, "grad_norm": 5.0, "median_of": 3, "in_a_row": 2}}
    assert watched([1, 2, 3, 4.1, 4.1], **rule)[1] == [5]
    assert watched([1, 2, 3, 4.0, 4.1, 4.1], **rule)[1] == [], "4.0 is not above, and moves the median to 3"
    assert watched([1, 2, 3, 9, 1, 9, 1], **rule)[1] == [], "never two in a row"
    assert watched([1, 1, 9, 9], **rule)[1] == [], "too few good steps before the first 9"
    assert watched([2] * 5, norms=[1, 1, 1, 6, 6], **rule)[1] == [5]
    assert watched([2] * 5, norms=[1, 1, 1, float("inf"), 6], **rule)[1] == [5], "a skipped step counts"
    assert watched([2, 2, 2, 9, 9], **{"spikes": {**rule["spikes"], "loss": None}})[1] == []
    assert watched([1, 1, 1, 9, 9])[1] == [], "nobody asked for it"


def test_a_watch_goes_on_from_what_a_checkpoint_holds():
    rule = {"skipped_in_a_row": 9, "spikes": {"median_of": 3, "in_a_row": 3}}
    losses = [1.1, 1.2, NAN, 1.3, 9, NAN]
    before, _, _ = watched(losses, **rule)
    after = StepWatch(before.config)
    after.restore(json.loads(json.dumps(before.to_json())))
    assert after == before and after.skipped == 2 and after.first_bad == 5
    after.restore(None)
    assert after == StepWatch(before.config), "a checkpoint of an earlier version holds nothing"


def test_the_defaults_of_spikes_are_asked_for_by_name(tmp_path):
    assert load_run("configs/demo.yaml").training.bad_steps.spikes is None
    asked = load_run("configs/demo.yaml", ["training.bad_steps.spikes={}"]).training.bad_steps.spikes
    assert asked is not None and asked.in_a_row == 3
