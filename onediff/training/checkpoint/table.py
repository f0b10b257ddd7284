"""Which rank wrote which range of each parameter: a few numbers per rank, merged and stored in runs.

Ranks that share a parameter equally write ranges at equal distances, so a run of them is one line of the manifest for any
number of ranks. Every rank merges its share of the parameters, for which it receives 56 bytes per parameter and rank, as
much in total as it sends. A reader finds the ranges that it needs by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from onediff.parallel.block import Block, BlockRange

SHORTEST_RUN = 16
"""Fewer ranges than this are listed individually."""
NONE = -1
"""Marks a parameter that is not on a rank, or a step count that is not stored."""

Piece = tuple[str, int, int, int, int]
"""File, block start, block size, offset in the block, length."""


class RangeRun(NamedTuple):
    """`ranges` ranges of one block at equal distances, in every `file_step`-th file; all but the last are equally long."""

    first_file: int
    file_step: int
    ranges: int
    start: int
    size: int
    offset: int
    step: int
    length: int
    last_length: int


class RankTable(NamedTuple):
    """The ranges that one rank writes of the model's parameters, in the model's order."""

    rows: np.ndarray
    """`[parameters, 6]` int64: block start, block size, offset in it, length, steps, index into `states`"""
    states: list[tuple[str, ...]]
    """`weight`, then the optimizer's names of its moments"""

    def counted(self) -> np.ndarray:
        """`[parameters, 7]`: `rows`, and the number of states."""
        sizes = np.array([*(len(states) for states in self.states), 0])  # index -1: not on this rank
        return np.column_stack([self.rows, sizes[self.rows[:, 5]]])


class MergedRow(NamedTuple):
    """One parameter, merged over all ranks."""

    rank: int
    """a rank that writes the most states"""
    kept: int
    """index into the `states` of that rank, or `NONE`"""
    steps: int | None
    pieces: list[Piece]
    runs: list[RangeRun]


def merged_row(rows: np.ndarray, files: Sequence[str]) -> MergedRow:
    """Merges one parameter's rows of all ranks, `[ranks, 7]`."""
    rank, steps = int(rows[:, 6].argmax()), int(rows[:, 4].max())
    return MergedRow(rank, int(rows[rank, 5]), None if steps == NONE else steps, *runs_of(rows[:, :4], files))


def runs_of(rows: np.ndarray, files: Sequence[str]) -> tuple[list[Piece], list[RangeRun]]:
    """Splits the ranges of one parameter, `[ranks, 4]`, into listed ones, in rank order, and runs."""
    ranks = np.flatnonzero(rows[:, 3] > 0)
    listed, runs = [], []
    for start, size in np.unique(rows[ranks, :2], axis=0).tolist():
        inside = ranks[(rows[ranks, 0] == start) & (rows[ranks, 1] == size)]
        if (run := _run(inside, rows[inside])) is not None:
            runs.append(run)
        else:
            listed += inside.tolist()
    return [(files[rank], *rows[rank, :4].tolist()) for rank in sorted(listed)], runs


def _run(ranks: np.ndarray, rows: np.ndarray) -> RangeRun | None:
    if len(ranks) < SHORTEST_RUN:
        return None
    file_steps, steps, lengths = np.diff(ranks), np.diff(rows[:, 2]), rows[:, 3]
    if (
        steps[0] <= 0
        or (file_steps != file_steps[0]).any()
        or (steps != steps[0]).any()
        or (lengths[:-1] != lengths[0]).any()
    ):
        return None
    start, size, offset, length = rows[0, :4].tolist()
    return RangeRun(
        int(ranks[0]), int(file_steps[0]), len(ranks), start, size, offset, int(steps[0]), length, int(lengths[-1])
    )


def near(
    shape: tuple[int, ...],
    dim: int,
    pieces: Sequence[Piece],
    runs: Sequence[RangeRun],
    files: Sequence[str],
    target: BlockRange,
) -> Iterator[tuple[str, BlockRange]]:
    """File and location of the ranges of a parameter that may overlap `target`, and of a few others."""
    windows: dict[tuple[int, int], tuple[Block, int, int]] = {}

    def window(start: int, size: int) -> tuple[Block, int, int]:
        if (start, size) not in windows:
            block = Block(shape, dim, start, size)
            windows[start, size] = (block, *_window(block, target))
        return windows[start, size]

    for file, start, size, offset, length in pieces:
        block, low, high = window(start, size)
        if offset < high and offset + length > low:
            yield file, BlockRange(block, offset, length)
    for run in runs:
        block, low, high = window(run.start, run.size)
        first = max(0, (low - run.offset) // run.step)
        for number in range(first, run.ranges):
            offset = run.offset + number * run.step
            if offset >= high:
                break
            length = run.length if number < run.ranges - 1 else run.last_length
            yield files[run.first_file + number * run.file_step], BlockRange(block, offset, length)


def _window(block: Block, target: BlockRange) -> tuple[int, int]:
    """The span of the flattened `block` that covers its overlap with `target`: first offset, and one past the last.

    See `onediff.parallel.block` for rows and columns of blocks.
    """
    if target.length == 0:
        return 0, 0
    theirs = target.block
    # View an uncut block along the dimension in which the other one is cut.
    dim = theirs.dim if block.is_whole else block.dim
    width, band = _width_and_band(block, dim)
    their_width, their_band = _width_and_band(theirs, dim)
    first, last = target.offset // their_width, (target.offset + target.length - 1) // their_width
    if first < last:
        return first * width, (last + 1) * width
    column = target.offset % their_width + their_band - band
    return first * width + max(0, min(width, column)), first * width + max(0, min(width, column + target.length))


def _width_and_band(block: Block, dim: int) -> tuple[int, int]:
    if dim != block.dim:
        block = Block(block.shape, dim, 0, block.shape[dim])
    return block.width, block.start * block.inner
