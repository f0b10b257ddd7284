"""What the workers of a rank are asked for, ahead of its use: rows of its lanes in turn, and what it takes to choose them.

Every piece of work is a function of a lane and draws, so any worker can do any of it, and rows of one lane are made at
once by several. Which rows there are is decided here, in the rank: where each has one sample, the lane's draws in turn;
where rows are packed, by the lengths of samples, which the workers measure ahead of that. A row that turns out to hold bad
samples only falls out, and the lane is asked for one more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from onediff.data.packing import LOOK_AHEAD, Packer
from onediff.data.rows import Row
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Stream
from onediff.errors import UserError

MEASURED = 16
"""Samples that are measured in one piece of work."""


class Task(NamedTuple):
    """A piece of work: some samples of a lane, to be made rows of or only to be measured."""

    lane: int
    draws: tuple[int, ...]
    measure: bool = False


class Bad(NamedTuple):
    """A bad sample, in place of what was asked for."""

    kind: str
    reason: str


Made = list[Row | int | Bad] | str
"""For each draw its row, or its length; or one line about what stops the run."""


class Work(Dataset[tuple[Task, Made]]):
    """The worker's side."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, task: Task) -> tuple[Task, Made]:
        one = self.stream.tokens if task.measure else self.stream.one
        made: list[Row | int | Bad] = []
        for draw in task.draws:
            try:
                made.append(one(task.lane, draw))
            except BadSample as bad:
                made.append(Bad(bad.kind, bad.reason))
            except UserError as error:
                # An exception would cross the process border wrapped in a traceback.
                return task, str(error)
        return task, made


@dataclass
class _Planned:
    """A row that is being made."""

    draws: tuple[int, ...]
    behind: Any
    """Where the lane goes on."""
    skipped: list[Fault]
    """Bad samples that were met in choosing it."""
    error: str | None = None


class Ahead:
    """The rank's side: an endless iterable of tasks, and the rows that come of them, lane by lane in their order."""

    def __init__(self, stream: Stream, draws: dict[int, Any]) -> None:
        """`draws` is where each lane begins."""
        self.stream = stream
        self._next = dict(draws)
        self._planned: dict[int, deque[_Planned]] = {lane: deque() for lane in draws}
        self._made: dict[int, deque[Made]] = {lane: deque() for lane in draws}
        self._owed: deque[int] = deque()
        """Lanes of which a row fell out."""
        self._packer = Packer(stream, stream.pack, self._length) if stream.pack else None
        self._lengths: dict[tuple[int, int], int | Bad | str] = {}
        self._margin = MEASURED
        """How many lengths are asked for beyond those that a row is chosen from."""
        self._asked: dict[int, int] = {}
        """The first draw of each lane whose length nobody was asked for."""

    def __iter__(self) -> Iterator[Task]:
        for lane in cycle(self._planned):
            while self._owed:
                yield from self._tasks(self._owed.popleft())
            yield from self._tasks(lane)

    def take(self, task: Task, made: Made) -> None:
        """Takes what came of a task; all must come in the order in which they were asked for."""
        if not task.measure:
            self._made[task.lane].append(made)
            return
        each = [made] * len(task.draws) if isinstance(made, str) else made
        for draw, length in zip(task.draws, each, strict=True):
            assert not isinstance(length, Row)
            self._lengths[task.lane, draw] = length

    def row(self, lane: int, results: Iterator[tuple[Task, Made]]) -> tuple[list[Row], Any]:
        """The samples of a lane's next row, and where the lane goes on; `results` are those of the tasks.

        Faults of bad samples met on the way are in `skipped` of the first. Raises UserError after `data.bad_in_a_row` of
        them, and for what stops a worker.
        """
        skipped: list[Fault] = []
        while True:
            while not self._made[lane]:
                self.take(*next(results))
            planned, made = self._planned[lane].popleft(), self._made[lane].popleft()
            for fault in planned.skipped:
                self.stream.note(skipped, fault)
            if planned.error or isinstance(made, str):
                raise UserError(planned.error or str(made))
            rows: list[Row] = []
            for draw, one in zip(planned.draws, made, strict=True):
                if isinstance(one, Row):
                    rows.append(one)
                else:
                    assert isinstance(one, Bad)
                    self.stream.passed_over(skipped, lane, draw, BadSample(*one))
            if rows:
                rows[0].skipped = skipped
                return rows, planned.behind
            self._owed.append(lane)

    def _tasks(self, lane: int) -> Iterator[Task]:
        """What must be asked for to have one more row of a lane."""
        planned = self._plan(lane)
        while planned is None:
            yield self._measure(self._to_be_measured(lane))
            planned = self._plan(lane)
        self._planned[lane].append(planned)
        self._next[lane] = planned.behind
        yield Task(lane, planned.draws)

    def _plan(self, lane: int) -> _Planned | None:
        """The next row of a lane; None where lengths are missing."""
        place = self._next[lane]
        if self._packer is None:
            return _Planned((place,), place + 1, [])
        if self._lacks(lane):
            return None
        skipped: list[Fault] = []
        try:
            chosen, behind = self._packer.chosen(lane, place, skipped)
        except _NotMeasured:
            return None
        except UserError as error:
            return _Planned((), place, skipped, str(error))
        for draw in range(place[-1], behind[-1]):
            self._lengths.pop((lane, draw), None)
        return _Planned(tuple(chosen), behind, skipped)

    def _lacks(self, lane: int) -> bool:
        """Whether lengths of a lane should be asked for before its next row is chosen."""
        return self._asked.get(lane, -1) < self._next[lane][-1] + LOOK_AHEAD + self._margin

    def _to_be_measured(self, lane: int) -> int:
        """Where lengths are on their way, those of the lanes whose turn is next; where all are, more than there were."""
        lanes = list(self._next)
        at = lanes.index(lane)
        lacking = next((one for one in lanes[at:] + lanes[:at] if self._lacks(one)), None)
        if lacking is None:
            self._margin += MEASURED
        return lane if lacking is None else lacking

    def _measure(self, lane: int) -> Task:
        *waiting, place = self._next[lane]
        if lane not in self._asked:
            self._asked[lane] = place
            if waiting:
                return Task(lane, tuple(waiting), measure=True)
        first = self._asked[lane]
        self._asked[lane] = first + MEASURED
        return Task(lane, tuple(range(first, first + MEASURED)), measure=True)

    def _length(self, lane: int, draw: int) -> int:
        found = self._lengths.get((lane, draw))
        if found is None:
            raise _NotMeasured
        if isinstance(found, Bad):
            raise BadSample(*found)
        if isinstance(found, str):
            raise UserError(found)
        return found


class _NotMeasured(LookupError):
    pass
