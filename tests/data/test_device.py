"""Batches copied ahead come in order, each with its own cursor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from models import batch

from onediff.data.batch import Batch
from onediff.data.cursor import Cursor
from onediff.data.device import InPlace, copy_batches
from onediff.data.segments import Segments, each_tensor


def five() -> Iterator[tuple[Batch, Cursor]]:
    for number in range(5):
        yield batch("text"), Cursor({0: (number + 1,)}, Counter(bad=2 * number), Counter())


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
    read = five()
    _, cursor = next(copy_batches(read, torch.device("cpu")))
    assert cursor.lanes == {0: (1,)}
    assert next(read)[1].lanes == {0: (2,)}


def test_the_next_batch_is_copied_while_the_current_one_is_in_use():
    copies, seen = Ahead(), []
    for number, (made, cursor) in enumerate(copy_batches(five(), torch.device("cpu"), copies)):
        seen.append(made)
        assert cursor.lanes == {0: (number + 1,)} and cursor.skipped["bad"] == 2 * number
        assert len(copies.started) == min(5, number + 2)
        assert len(copies.finished) == number + 1
    assert [id(made) for made in seen] == copies.started == copies.finished


def test_every_tensor_of_a_batch_is_copied_including_those_of_its_segments():
    made = replace(batch("text"), segments=Segments.of([3, 4]))
    copied = each_tensor(made, torch.Tensor.clone)
    assert copied.segments.cu_seqlens is not made.segments.cu_seqlens
    assert copied.segments.lengths == (3, 4)
    for name, value in vars(made).items():
        if torch.is_tensor(value):
            assert getattr(copied, name) is not value, name
            assert torch.equal(getattr(copied, name), value)
