"""A training step never asks the device for a value, and makes no tensor that grows with the square of the tokens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from models import batch, tiny_model
from places import SUPPORT
from processes import run_ranks

from benchmarks.counters import Counted


def counted(model, made) -> Counted:
    model(made).sum().backward()
    with Counted() as counts:
        model(made).sum().backward()
    return counts


@pytest.mark.parametrize("kinds", [("pair", "pair"), ("pair", "single", "text")])
def test_forward_and_backward_do_not_wait_for_the_device(kinds):
    assert counted(tiny_model().train(), batch(*kinds)).waits == {}


GROUPS, PARAMETERS = 8, 88
KNOWN = {
    "0": {
        "deepspeed: has_overflow_serial: read": 2 * PARAMETERS,
        "deepspeed: has_overflow: read": 1,
        "deepspeed: get_weight_norm: read": 2 * GROUPS,
    },
    "1": {
        "deepspeed: mask_nan_or_inf_with_val_inplace: copy from unpinned memory": 1,
        "deepspeed: is_invalid_grad_norm: read": 1,
        "deepspeed: clip_tensors_by_global_norm: read": 1,
    },
    "2": {
        "deepspeed: has_overflow: read": 1,
        "deepspeed: mask_nan_or_inf_with_val_inplace: copy from unpinned memory": GROUPS,
        "deepspeed: is_invalid_grad_norm: read": 1 + GROUPS,
    },
    "3": {
        "deepspeed: independent_gradient_partition_epilogue: synchronize a stream": 2,
        "deepspeed: get_grad_norm_direct: copy from unpinned memory": GROUPS,
        "deepspeed: is_invalid_grad_norm: read": 1,
    },
}
"""What a step of two micro-batches waits for in bf16, by ZeRO stage; docs/performance.md says what each is."""


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_whole_step_waits_for_what_is_known_and_nothing_of_ours(tmp_path, tensor):
    """Forward, backward, reduction, clipping, AdamW, figures, over two ranks; DeepSpeed and Megatron take the paths that
    they take on a GPU."""
    run_ranks(SUPPORT / "waiting_worker.py", [str(tmp_path / "waits.json"), str(tensor)], 2)
    waits = json.loads((tmp_path / "waits.json").read_text())
    if tensor == 2:  # over one data-parallel rank nothing is gathered, but waited for all the same
        assert waits["3"].pop("deepspeed: wait: synchronize a stream")
    assert waits == KNOWN


def test_the_counter_sees_waits():
    numbers = torch.arange(4)
    with Counted() as counts:
        numbers.sum().item()
        numbers[numbers > 1]
        numbers.nonzero()
    assert counts.waits["_local_scalar_dense"] == 1
    assert counts.waits["index"] == 1
    assert counts.waits["nonzero"] >= 1


def test_no_tensor_grows_with_the_square_of_the_tokens():
    """Rows twice as long make no tensor more than about twice as large."""
    model, made = tiny_model().train(), batch("text", "text")

    def longer(times: int):
        return replace(
            made,
            token_ids=made.token_ids.repeat(1, times),
            position_ids=torch.arange(made.token_ids.shape[1] * times).expand(2, -1) % 128,
        )

    small, large = (counted(model, longer(times)) for times in (16, 32))
    assert large.largest <= 2.1 * small.largest, large.largest_of
