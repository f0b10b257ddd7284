"""Prefetches the rows of a rank's lanes, in turn.

A task depends only on a lane and sample indexes, so any worker can run it, and several workers can make rows of the same
lane. The rank chooses the samples of each row: one after another, or, for packed rows, by their lengths, which workers
measure first. A row whose samples are all bad is dropped, and its lane is asked for one more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle

from onediff.data.cursor import LaneCursor
from onediff.data.packing import LOOK_AHEAD, Packer
from onediff.data.rows import TokenRow
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Stream
from onediff.data.workers import Bad, Made, Task, work
from onediff.errors import UserError

MEASURED = 16
"""Samples measured by one task."""


def rows(
    stream: Stream, lanes: Mapping[int, LaneCursor], workers: int, prefetch: int
) -> Iterator[tuple[int, list[TokenRow], LaneCursor]]:
    """Yields endlessly, lane after lane: the lane, the samples of its next row, and the lane's cursor after that row.

    `lanes` holds the cursor at which each lane starts. `skipped` of a row's first sample lists the bad samples skipped
    before it. Raises UserError after `data.bad_in_a_row` bad samples, and for any error that stops a worker.
    """
    ahead = Ahead(stream, lanes)
    results = work(stream, ahead, workers, prefetch)
    for lane in cycle(lanes):
        yield lane, *ahead.row(lane, results)


@dataclass
class _Planned:
    """A row that workers are making."""

    indexes: tuple[int, ...]
    behind: LaneCursor
    """The lane's cursor after this row."""
    skipped: list[Fault]
    """Bad samples skipped while choosing it."""
    error: str | None = None


class Ahead:
    """An endless iterable of tasks, and the rows made from their results, by lane."""

    def __init__(self, stream: Stream, lanes: Mapping[int, LaneCursor]) -> None:
        self.stream = stream
        self._next = dict(lanes)
        """The cursor of each lane after its planned rows."""
        self._planned: dict[int, deque[_Planned]] = {lane: deque() for lane in lanes}
        self._made: dict[int, deque[Made]] = {lane: deque() for lane in lanes}
        self._owed: deque[int] = deque()
        """Lanes that need another row because one was dropped."""
        self._packer = Packer(stream, stream.pack, self._length) if stream.pack else None
        self._lengths: dict[tuple[int, int], int | Bad | str] = {}
        self._margin = MEASURED
        """How many samples to measure beyond those that a row is chosen from."""
        self._asked: dict[int, int] = {}
        """For each lane, the first index whose length has not been requested."""

    def __iter__(self) -> Iterator[Task]:
        for lane in cycle(self._planned):
            while self._owed:
                yield from self._tasks(self._owed.popleft())
            yield from self._tasks(lane)

    def row(self, lane: int, results: Iterator[tuple[Task, Made]]) -> tuple[list[TokenRow], LaneCursor]:
        """The samples of a lane's next row, and the cursor after it; `results` are the tasks' results, in order."""
        skipped: list[Fault] = []
        while True:
            while not self._made[lane]:
                self._take(*next(results))
            planned, made = self._planned[lane].popleft(), self._made[lane].popleft()
            for fault in planned.skipped:
                self.stream.note(skipped, fault)
            if planned.error or isinstance(made, str):
                raise UserError(planned.error or str(made))
            samples: list[TokenRow] = []
            for index, one in zip(planned.indexes, made, strict=True):
                if isinstance(one, TokenRow):
                    samples.append(one)
                else:
                    assert isinstance(one, Bad)
                    self.stream.skip(skipped, lane, index, BadSample(*one))
            if samples:
                samples[0].skipped = skipped
                return samples, planned.behind
            self._owed.append(lane)

    def _take(self, task: Task, made: Made) -> None:
        if not task.measure:
            self._made[task.lane].append(made)
            return
        each = [made] * len(task.indexes) if isinstance(made, str) else made
        for index, length in zip(task.indexes, each, strict=True):
            assert not isinstance(length, TokenRow)
            self._lengths[task.lane, index] = length

    def _tasks(self, lane: int) -> Iterator[Task]:
        """The tasks needed for one more row of a lane."""
        planned = self._plan(lane)
        while planned is None:
            yield self._measure(self._to_be_measured(lane))
            planned = self._plan(lane)
        self._planned[lane].append(planned)
        self._next[lane] = planned.behind
        yield Task(lane, planned.indexes)

    def _plan(self, lane: int) -> _Planned | None:
        """The next row of a lane, or None while lengths are missing."""
        cursor = self._next[lane]
        if self._packer is None:
            (index,) = cursor
            return _Planned(cursor, (index + 1,), [])
        if self._lacks(lane):
            return None
        skipped: list[Fault] = []
        try:
            chosen, behind = self._packer.chosen(lane, cursor, skipped)
        except _NotMeasured:
            return None
        except UserError as error:
            return _Planned((), cursor, skipped, str(error))
        for index in range(cursor[-1], behind[-1]):
            self._lengths.pop((lane, index), None)
        return _Planned(tuple(chosen), behind, skipped)

    def _lacks(self, lane: int) -> bool:
        """Whether to measure more samples of a lane before choosing its next row."""
        return self._asked.get(lane, -1) < self._next[lane][-1] + LOOK_AHEAD + self._margin

    def _to_be_measured(self, lane: int) -> int:
        """The next lane that lacks lengths. If none does, returns `lane` and raises the margin."""
        lanes = list(self._next)
        at = lanes.index(lane)
        lacking = next((one for one in lanes[at:] + lanes[:at] if self._lacks(one)), None)
        if lacking is None:
            self._margin += MEASURED
        return lane if lacking is None else lacking

    def _measure(self, lane: int) -> Task:
        *waiting, first_new = self._next[lane]
        if lane not in self._asked:
            self._asked[lane] = first_new
            if waiting:
                return Task(lane, tuple(waiting), measure=True)
        first = self._asked[lane]
        self._asked[lane] = first + MEASURED
        return Task(lane, tuple(range(first, first + MEASURED)), measure=True)

    def _length(self, lane: int, index: int) -> int:
        found = self._lengths.get((lane, index))
        if found is None:
            raise _NotMeasured
        if isinstance(found, Bad):
            raise BadSample(*found)
        if isinstance(found, str):
            raise UserError(found)
        return found


class _NotMeasured(LookupError):
    pass
