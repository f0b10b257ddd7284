"""Mixing: each source's share holds in every window, along a lane and across a global batch."""

import tracemalloc

import numpy as np
import pytest

from onediff.data.mixing import Mix

WEIGHTS = [[1], [4, 1], [1, 1, 1], [0.7, 0.2, 0.1], [335, 665], [5, 3, 3, 2, 1, 1]]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_shares_hold_in_every_global_batch(weights, lanes):
    mix = Mix(weights)
    for step in range(0, 300, 7):
        drawn = np.bincount([mix.at(lane, step)[0] for lane in range(lanes)], minlength=len(weights))
        expected = np.array(weights) / sum(weights) * lanes
        assert np.abs(drawn - expected).max() < 2


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_hold_in_every_window_of_a_lane(weights):
    mix = Mix(weights)
    share = np.array(weights) / sum(weights)
    drawn = np.array([mix.at(5, index)[0] for index in range(400)])
    counts = np.cumsum(np.eye(len(weights), dtype=int)[drawn], axis=0)
    for length in (1, 10, 64, 200):
        windows = counts[length:] - counts[:-length]
        assert np.abs(windows - share * length).max() < 2


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_samples_of_a_source_count_up_without_gaps(weights):
    mix = Mix(weights)
    for lane in (0, 3, 4095):
        next_draw = [0] * len(weights)
        for index in range(250):
            assert [mix.count(source, lane, index) for source in range(len(weights))] == next_draw
            source, position = mix.at(lane, index)
            assert position == next_draw[source]
            next_draw[source] += 1


def test_period_is_the_smallest():
    assert Mix([0.75, 0.25]).period == 4
    assert Mix([335_000, 665_000]).period == 200
    assert Mix([1 / 3, 2 / 3]).period <= 1_000_002


def test_golden_sequence():
    """Checkpoints depend on this sequence."""
    mix = Mix([5, 3, 1])
    assert [mix.at(0, index)[0] for index in range(9)] == [0, 1, 0, 0, 1, 2, 0, 1, 0]
    assert [mix.at(2, index)[0] for index in range(7)] == [0, 0, 1, 2, 0, 1, 0]
    assert mix.at(0, 10**12 + 3) == (1, 333333333334)


def test_sizes_of_real_data_sets_as_weights_take_megabytes():
    tracemalloc.start()
    mix = Mix([13_192, 67_660, 3_939, 3_347, 100_001, 146_861, 664_997])
    mix.at(4095, 10**9)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 12e6, f"{kept / 1e6:.1f} MB"
