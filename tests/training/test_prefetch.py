"""Batches copied ahead come in order, and positions are those of the batch in use."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from models import batch

from onediff.data.segments import Segments
from onediff.training.prefetch import InPlace, Prefetched, _each


class Loader:
    """Five batches; counts what was taken from it."""

    def __init__(self) -> None:
        self.draws = {0: 10}
        self.skipped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.batches = [batch("text") for _ in range(5)]

    def __iter__(self):
        for made in self.batches:
            self.draws[0] += 1
            self.skipped["bad"] += 2
            self.cut["pairs"] += 1
            yield made


class Ahead(InPlace):
    """Copies as a GPU's are made: one ahead, another object, begun in order."""

    ahead = 1

    def __init__(self) -> None:
        self.started: list[int] = []
        self.finished: list[int] = []

    def start(self, made):
        self.started.append(id(made))
        return made

    def finish(self, made):
        self.finished.append(id(made))
        return made


def test_on_the_host_nothing_is_read_ahead():
    loader = Loader()
    batches = iter(Prefetched(loader, torch.device("cpu")))
    assert next(batches) is loader.batches[0]
    assert loader.draws == {0: 11}


def test_one_batch_is_copied_while_the_one_before_is_in_use():
    loader, copies = Loader(), Ahead()
    prefetched = Prefetched(loader, torch.device("cpu"), copies)
    assert prefetched.draws == {0: 10}
    seen = []
    for number, made in enumerate(prefetched):
        seen.append(made)
        assert prefetched.draws == {0: 11 + number}
        assert prefetched.skipped == {"bad": 2 * (number + 1)}
        assert prefetched.cut == {"pairs": number + 1}
        assert len(copies.started) == min(5, number + 2)
        assert len(copies.finished) == number + 1
    assert [id(made) for made in seen] == [id(made) for made in loader.batches] == copies.finished


def test_every_tensor_of_a_batch_is_copied_those_of_its_segments_too():
    made = replace(batch("text"), segments=Segments.of([3, 4]))
    copied = _each(made, torch.Tensor.clone)
    assert copied.segments.cu_seqlens is not made.segments.cu_seqlens
    assert copied.segments.lengths == (3, 4)
    for name, value in vars(made).items():
        if torch.is_tensor(value):
            assert getattr(copied, name) is not value, name
            assert torch.equal(getattr(copied, name), value)
