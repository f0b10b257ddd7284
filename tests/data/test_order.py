"""The complete order with mixing and packing: seed and data alone determine global batches, with each sample once per epoch.

Uses the real stream, including image decoding, except that samples come from memory instead of tars and that workers take
turns in this process (`test_loader.py` has real ones).
"""

import json
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import global_batches, make_processor, members, spoilt, unbroken

from onediff.data import workers as worker_processes
from onediff.data.lanes import Lanes
from onediff.data.manifest import Shard
from onediff.data.position import Position, order_of
from onediff.data.stream import Source, Stream

LANES, BLOCK, TOKENS, STEPS = 8, 16, 100, 14
KINDS = ("text", "single", "pair")


class Memory:
    """Shards of the given sizes that create samples on demand; every seventeenth is bad."""

    def __init__(self, name: str, kind: str, sizes: list[int]) -> None:
        self.name, self.kind = name, kind
        self.names = [f"part-{shard:03d}.tar" for shard in range(len(sizes))]
        self.shards = [Shard(name, size, 0) for name, size in zip(self.names, sizes, strict=True)]
        self.starts = np.cumsum([0, *sizes])

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        return made_once(self.kind, int(self.starts[shard]) + sample, self.name)


@cache
def made_once(kind: str, number: int, name: str) -> dict[str, bytes]:
    good = members(kind, number, name)
    return spoilt(good, "bad_json" if number % 2 else "bad_image") if is_bad(kind, number) else good


def is_bad(kind: str, number: int) -> bool:
    """`bad_image` is found while decoding a packed row, `bad_json` before."""
    return number % 17 == 11 and (number % 2 == 1 or kind != "text")


def made_stream(sizes: list[list[int]], weights: list[int], seed: int, pack: int | None) -> Stream:
    sources = [
        Source(kind, Memory(kind, kind, of_kind), Lanes(np.array(of_kind), LANES, seed, BLOCK), weight)
        for kind, of_kind, weight in zip(KINDS, sizes, weights, strict=False)
    ]
    return Stream(sources, make_processor(), False, seed, bad_in_a_row=50, pack=pack)


class InTurn:
    """torch's DataLoader without processes, which requests tasks as far ahead as workers would."""

    def __init__(
        self, dataset: Any, sampler: Any, num_workers: int, collate_fn: Any, prefetch_factor: int | None, **_: Any
    ) -> None:
        self.dataset, self.sampler, self.collate = dataset, sampler, collate_fn
        self.ahead = num_workers * (prefetch_factor or 0)

    def __iter__(self) -> Iterator[Any]:
        tasks, asked = iter(self.sampler), deque()
        while True:
            while len(asked) <= self.ahead:
                asked.append(next(tasks))
            yield self.collate(self.dataset[asked.popleft()])


@pytest.fixture(scope="module", autouse=True)
def workers_in_turn():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_processes, "DataLoader", InTurn)
        yield


def resumed(made: Stream, position: Position) -> Position:
    return Position.from_json(json.loads(json.dumps(position.to_json())), order_of(made, LANES, BLOCK))


def assert_each_sample_once(made: Stream, batches: list[list[tuple[str, ...]]], end: Position) -> int:
    """Asserts that each good sample came once in each finished epoch. Returns the number of such epochs."""
    given = [[id for batch in batches for id in batch[lane]] for lane in range(LANES)]
    drawn: Counter[tuple[int, int, str]] = Counter()
    for lane, (*waiting, next_new) in enumerate(end.cursors):
        ids = Counter(given[lane])
        for index in range(next_new):
            number, of_source = made.mix.at(lane, index)
            source = made.sources[number]
            at = source.lanes.at(lane, of_source)
            flat = int(source.shards.starts[at.shard]) + at.sample
            if not is_bad(source.name, flat):
                drawn[number, at.epoch, f"{source.name}/{flat}"] += 1
                ids[f"{source.name}/{flat}"] -= index not in waiting
        assert not any(ids.values()), "a lane gave what it drew and what does not wait"
    over = 0
    for number, source in enumerate(made.sources):
        reached = (
            (made.mix.count(number, lane, cursor[-1]), source.lanes.length(lane))
            for lane, cursor in enumerate(end.cursors)
        )
        complete = min(count // length for count, length in reached)
        good = {f"{source.name}/{i}" for i in range(source.lanes.samples) if not is_bad(source.name, i)}
        for epoch in range(complete):
            found = {id: count for (n, e, id), count in drawn.items() if (n, e) == (number, epoch)}
            assert found == dict.fromkeys(good, source.lanes.repeats)
        over += complete
    return over


uneven = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 997)), min_size=1, max_size=5)
leg = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 1, 3]), st.sampled_from([1, 2, 4, 8])
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.lists(uneven, min_size=3, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    seed=st.integers(0, 2**32),
    pack=st.sampled_from([TOKENS, TOKENS, None]),
    start=st.integers(0, STEPS - 4),
    legs=st.lists(leg, min_size=2, max_size=4),
)
def test_global_batches_are_the_same_wherever_a_run_stops_and_however_it_resumes(
    sizes, weights, seed, pack, start, legs
):
    """A run in legs of some steps, each resumed from JSON with its own number of ranks, workers and micro-batch."""
    made = made_stream(sizes, weights, seed, pack)
    batches, positions = unbroken(made, LANES, BLOCK, STEPS)
    assert_each_sample_once(made, batches, positions[-1])
    at, position = start, positions[start]
    for steps, ranks, workers, micro_batch in legs:
        steps, micro_batch = min(steps, STEPS - at), min(micro_batch, LANES // ranks)
        again = made_stream(sizes, weights, seed, pack)
        found, position = global_batches(again, LANES, resumed(again, position), steps, ranks, workers, micro_batch)
        assert found == batches[at : at + steps]
        at += steps
        assert position == positions[at]


@pytest.mark.parametrize("pack", [None, TOKENS])
def test_each_sample_of_each_epoch_comes_once(pack):
    """Shards of 1 to 997 samples, read until each source has ended an epoch; the smallest has ended several."""
    made = made_stream([[1, 997, 40], [61, 2, 9], [5]], [8, 2, 1], seed=3, pack=pack)
    batches, positions = unbroken(made, LANES, BLOCK, 60 if pack else 200)
    assert assert_each_sample_once(made, batches, positions[-1]) > 4
