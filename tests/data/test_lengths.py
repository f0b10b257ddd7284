"""Lengths in tokens: the first samples in order, what padding costs, what packing saves."""

from collections import Counter

import pytest
from streams import readable, row_at, stream, write_set

from onediff.data.lengths import Lengths, first_lengths, padding, too_long
from onediff.data.packing import Fill
from onediff.errors import UserError


def test_padding_is_the_space_after_shorter_rows():
    assert padding([10, 20, 5, 5], 2) == pytest.approx(0.2)
    assert padding([7, 7, 7], 2) == 0


def test_lengths_are_in_training_order(tmp_path):
    made = stream({write_set(tmp_path / "pairs", [9, 2], "pair", {3: "bad_json"}): 1.0}, 2)
    first, behind = readable(made, 0, 0)
    rows = [first, row_at(made, 1, 0), row_at(made, 0, behind)]
    assert first_lengths(made, 2, 30)[:2] == [len(row.token_ids) for row in rows[:2]]
    assert len(first_lengths(made, 2, 30)) == 30


def test_a_data_set_of_only_bad_samples_is_refused_with_one_line(tmp_path):
    made = stream({write_set(tmp_path / "texts", [9], faults=dict.fromkeys(range(9), "bad_json")): 1.0}, 2)
    with pytest.raises(UserError, match="20 unreadable samples in a row"):
        first_lengths(made, 2, 1)


def test_samples_that_are_too_long_are_counted_by_data_set(tmp_path):
    made = stream({write_set(tmp_path / "pairs", [9], "pair"): 1.0, write_set(tmp_path / "texts", [9]): 1.0}, 2)
    whole = [made.one(lane, index) for index in range(20) for lane in range(2)]
    longest = sorted(len(row.token_ids) for row in whole)[-4]
    made.processor.config = made.processor.config.model_copy(update={"max_tokens": longest})
    expected = Counter(made.sources[row.source].name for row in whole if len(row.token_ids) > longest)
    assert too_long(made, 2, 40) == expected and expected
    assert sum(made.one(lane, index).was_cut for index in range(20) for lane in range(2)) == expected.total()


def test_the_lines_and_the_json_of_a_report():
    found = Lengths([10, 20, 5, 5], 2, 40, Fill(samples=3.5, real=0.995), 20, {"pairs": 3}, True)
    assert found.lines() == [
        "tokens of 4 samples: min 5, median 7.5, mean 10, p95 10, max 20",
        "padding: 20.0% in micro-batches of 2, padded to the longest row; 0.5% in packed rows of 40, 3.5 samples each",
        "longer than data.max_tokens 20: 3 samples (3 of pairs): their answers are cut",
    ]
    assert found.fields()["tokens"]["max"] == 20
    assert (found.fields()["padding"], found.fields()["padding_packed"]) == (0.2, 0.005)
