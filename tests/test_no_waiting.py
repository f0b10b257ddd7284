"""A training step never asks the device for a value, and makes no tensor that grows with the square of the tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import batch, tiny_model
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


def test_a_whole_step_waits_only_for_the_norm_to_be_finite(tmp_path):
    """Forward, backward, reduction, clipping, AdamW, figures. `_get_value` reads AdamW's count, which is the host's."""
    run_ranks(Path(__file__).with_name("waiting_worker.py"), [str(tmp_path / "waits.json")], 1)
    waits = json.loads((tmp_path / "waits.json").read_text())
    for found in waits.values():
        found.pop("_get_value")
    groups = 8
    assert waits == {
        "0": {"clip": 1},
        "1": {"is_invalid_grad_norm": 1 + groups},
        "2": {"is_invalid_grad_norm": 1 + groups},
        "3": {"is_invalid_grad_norm": 1},
    }


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
