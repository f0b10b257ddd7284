"""Lengths in tokens: the first samples in order, what padding costs, what packing saves."""

import pytest
from streams import stream, write_set

from onediff.data.lengths import Lengths, first_lengths, padding
from onediff.data.packing import Fill
from onediff.errors import UserError


def test_padding_is_what_lies_behind_shorter_rows():
    assert padding([10, 20, 5, 5], 2) == pytest.approx(0.2)
    assert padding([7, 7, 7], 2) == 0


def test_the_first_samples_in_the_order_of_training(tmp_path):
    made = stream({write_set(tmp_path / "pairs", [9, 2], "pair", {3: "bad_json"}): 1.0}, 2)
    rows = [made.row(0, 0), made.row(1, 0), made.row(0, made.row(0, 0).next_draw)]
    assert first_lengths(made, 2, 30)[:2] == [len(row.token_ids) for row in rows[:2]]
    assert len(first_lengths(made, 2, 30)) == 30


def test_a_set_of_nothing_but_bad_samples_is_one_line(tmp_path):
    made = stream({write_set(tmp_path / "texts", [9], faults=dict.fromkeys(range(9), "bad_json")): 1.0}, 2)
    with pytest.raises(UserError, match="20 unreadable samples in a row"):
        first_lengths(made, 2, 1)


def test_what_is_said_and_stored():
    found = Lengths([10, 20, 5, 5], 2, 40, Fill(samples=3.5, real=0.995))
    assert found.lines() == [
        "tokens of 4 samples: min 5, median 7.5, mean 10, p95 10, max 20",
        "padding: 20.0% in micro-batches of 2 as long as their longest; 0.5% in packed rows of 40, 3.5 samples in each",
    ]
    assert found.fields()["tokens"]["max"] == 20
    assert (found.fields()["padding"], found.fields()["padding_packed"]) == (0.2, 0.005)
