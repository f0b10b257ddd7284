"""Lanes: every sample of every epoch once, couples without self-pairs, and an order that is a pure function."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from onediff.data.lanes import Lanes, SamplePlace, mix64, permutation

SHAPES = [([7], 1), ([5, 1, 9, 3], 4), ([1, 997, 13, 64, 2], 8), ([100] * 7, 16), ([3, 3], 3)]


def epoch(lanes: Lanes, number: int) -> list[SamplePlace]:
    return [
        lanes.at(lane, number * lanes.length(lane) + offset)
        for lane in range(lanes.lanes)
        for offset in range(lanes.length(lane))
    ]


def sample(place: SamplePlace) -> tuple[int, int]:
    return place.shard, place.sample


def everything(shards: list[int]) -> Counter:
    return Counter((shard, number) for shard, count in enumerate(shards) for number in range(count))


@pytest.mark.parametrize(("shards", "count"), SHAPES)
@pytest.mark.parametrize("block", [1, 4, 1024])
def test_each_epoch_holds_each_sample_once(shards, count, block):
    lanes = Lanes(np.array(shards), count, seed=3, block=block)
    orders = []
    for number in (0, 1, 5):
        places = epoch(lanes, number)
        assert {place.epoch for place in places} == {number}
        assert Counter(map(sample, places)) == everything(shards)
        orders.append([sample(place) for place in places])
    if sum(shards) > 5 and block > 1:
        assert orders[0] != orders[1] != orders[2], "an epoch should have its own order"


@pytest.mark.parametrize(("shards", "count"), SHAPES)
def test_lanes_are_equal_to_one_sample(shards, count):
    lengths = [Lanes(np.array(shards), count, seed=0).length(lane) for lane in range(count)]
    assert sum(lengths) == sum(shards)
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("shards", "count"), SHAPES)
@pytest.mark.parametrize("block", [2, 5, 1024])
def test_couples_hold_each_sample_once_first_and_once_second(shards, count, block):
    lanes = Lanes(np.array(shards), count, seed=1, block=block)
    firsts, seconds = Counter(), Counter()
    for lane in range(count):
        for position in range(lanes.length(lane), 2 * lanes.length(lane)):  # the second epoch
            first, second = lanes.at(lane, position), lanes.partner(lane, position)
            assert sample(first) != sample(second)
            assert first.epoch == second.epoch == 1
            firsts[sample(first)] += 1
            seconds[sample(second)] += 1
    if sum(shards) >= 2 * count:
        assert firsts == seconds == everything(shards)


@pytest.mark.parametrize("samples", [2, 3, 5, 40])
def test_a_set_smaller_than_the_batch_fills_every_lane(samples):
    lanes = Lanes(np.array([1] * samples), 32, seed=0)
    assert all(lanes.length(lane) >= 2 for lane in range(32))
    visits = Counter(map(sample, epoch(lanes, 0)))
    assert set(visits.values()) == {lanes.repeats}
    assert len(visits) == samples
    assert all(
        sample(lanes.at(lane, position)) != sample(lanes.partner(lane, position))
        for lane in range(32)
        for position in range(lanes.length(lane))
    )


def test_the_order_is_a_function_of_the_position_alone():
    walked = Lanes(np.array([30, 5, 70]), 4, seed=9, block=8)
    there = [walked.at(2, position) for position in range(120)]
    jumped = Lanes(np.array([30, 5, 70]), 4, seed=9, block=8)
    for position in np.random.default_rng(0).permutation(120):
        assert jumped.at(2, int(position)) == there[position]
    other = Lanes(np.array([30, 5, 70]), 4, seed=10, block=8)
    assert [other.at(2, position) for position in range(120)] != there


def test_a_lane_reads_block_by_block():
    """Reads stay close together in the tar, because a block is finished before the next begins."""
    lanes = Lanes(np.array([1000]), 2, seed=0, block=50)
    for block in range(10):
        places = [lanes.at(1, block * 50 + i).sample for i in range(50)]
        assert sorted(places) == list(range(500 + block * 50, 550 + block * 50))
        assert places != sorted(places)


def test_golden_order():
    """Checkpoints depend on this order; a change would make stored positions mean other samples."""
    assert mix64(0) == 0xE220A8397B1DCDAF  # splitmix64's first number from seed 0
    assert mix64(7, 1, 2) == 0x16E639E2C7AAE6E3
    assert permutation(12, 5, 6).tolist() == [9, 5, 10, 1, 7, 0, 2, 6, 3, 11, 8, 4]
    lanes = Lanes(np.array([4, 1, 6, 3]), 3, seed=42, block=3)
    found = [[sample(lanes.at(lane, position)) for position in range(7)] for lane in range(3)]
    assert found == [
        [(2, 0), (2, 1), (2, 3), (2, 2), (3, 1), (3, 2), (3, 0)],
        [(2, 4), (2, 5), (0, 2), (0, 0), (0, 1), (2, 1), (2, 5)],
        [(3, 1), (3, 0), (1, 0), (3, 2), (0, 3), (0, 3), (0, 0)],
    ]
    assert [sample(lanes.partner(1, position)) for position in range(5)] == [(2, 5), (0, 2), (0, 0), (0, 1), (2, 4)]


def test_a_billion_samples_in_megabytes():
    """10⁹ samples, 10⁵ shards, 4,096 ranks with one lane each: a rank's memory and balance."""
    shards = np.random.default_rng(0).integers(1, 20_000, 100_000)
    shards[0] += 1_000_000_000 - shards.sum()
    tracemalloc.start()
    lanes = Lanes(shards, 4096, seed=0)
    lengths = {lanes.length(lane) for lane in range(4096)}
    assert max(lengths) - min(lengths) <= 1
    seen = set()
    end = lanes.length(4095)
    for position in [*range(3000), *range(end // 2, end // 2 + 3000), *range(end - 3000, end)]:
        seen.add(sample(lanes.at(4095, position)))
    assert len(seen) == 9000
    kept_early, _ = tracemalloc.get_traced_memory()
    for position in range(0, end, 1000):
        lanes.partner(4095, position)
    kept_late, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6, f"{peak / 1e6:.1f} MB"
    assert kept_late - kept_early < 1e6, "memory grows with what was read"


def test_neighbouring_lanes_meet_without_gap_or_overlap_at_scale():
    shards = np.random.default_rng(1).integers(1, 2000, 10_000)
    lanes = Lanes(shards, 4096, seed=0, block=64)
    for lane in (0, 1, 2047, 2048):
        here = {sample(lanes.at(lane, position)) for position in range(lanes.length(lane))}
        after = {sample(lanes.at(lane + 1, position)) for position in range(lanes.length(lane + 1))}
        assert len(here) == lanes.length(lane)
        assert not here & after
