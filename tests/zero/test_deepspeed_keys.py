"""`parallel.deepspeed`: DeepSpeed's keys are passed on; unknown keys and those set elsewhere are refused."""

from pathlib import Path

import pytest
from small_run import config

from onediff.errors import UserError
from onediff.zero.settings import deepspeed_config


def told(**parallel):
    words = {f"parallel.{key}": value for key, value in parallel.items()}
    run = config(Path("data"), 10, **{"training.precision": "bf16"}, **words)
    return deepspeed_config(run, run.phases["two"], 1)


def test_keys_of_deepspeed_and_reduction_in_fp32_reach_it():
    plain = told()
    assert plain["communication_data_type"] is None
    keys = "{reduce_bucket_size: 1000, stage3_prefetch_bucket_size: 500}"
    found = told(deepspeed=keys, reduce_in="fp32")
    assert found["communication_data_type"] == "fp32"
    assert found["zero_optimization"] == plain["zero_optimization"] | {
        "reduce_bucket_size": 1000,
        "stage3_prefetch_bucket_size": 500,
    }


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("{stage: 2}", "deepspeed: stage cannot be set here; use parallel.zero_stage"),
        (
            "{offload_param: {device: cpu}}",
            "deepspeed: offload_param cannot be set here; use parallel.offload_parameters",
        ),
        ("{zero_hpz_partition_size: 8}", "zero_hpz_partition_size cannot be set here; use parallel.shard_within=node"),
        ("{reduce_buket_size: 5}", r"parallel.deepspeed: .* no 'reduce_buket_size'.*reduce_bucket_size"),
        ("{reduce_bucket_size: many}", "parallel.deepspeed: reduce_bucket_size: "),
    ],
)
def test_other_keys_and_values_are_refused_with_one_line(keys, says):
    with pytest.raises(UserError, match=says) as refused:
        told(deepspeed=keys)
    assert "\n" not in str(refused.value)
