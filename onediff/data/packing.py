"""Several samples of a lane in one row, chosen so that hardly any of it stays empty.

A lane's next `LOOK_AHEAD` samples are measured, not decoded: which of them go into a row together is arithmetic on their
lengths, and only those are then read as rows. The oldest always goes, so that no sample waits for more than `LOOK_AHEAD`
rows. A position is the draws that wait and the next one: resuming measures those again and replays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from onediff.data.rows import Row
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Stream

LOOK_AHEAD = 32
"""Samples that a row is chosen from."""

Place = tuple[int, ...]
"""The draws of a lane that wait, oldest first, and behind them the next one that nobody has looked at."""


class Packer:
    """Packed rows of a stream, by lane and place."""

    def __init__(self, stream: Stream, tokens: int) -> None:
        self.stream = stream
        self.tokens = tokens
        self._lengths: dict[tuple[int, int], int] = {}

    def row(self, lane: int, place: Place) -> tuple[list[Row], Place]:
        """The samples of the row at `place`, each as a row of its own, and the place behind it.

        Faults of bad samples met on the way are in `skipped` of the first. Raises UserError after `data.bad_in_a_row` of
        them.
        """
        *waiting, next_draw = place
        skipped: list[Fault] = []
        while True:
            pool = {draw: self._length(lane, draw) for draw in waiting}
            while len(pool) < LOOK_AHEAD:
                try:
                    pool[next_draw] = self._length(lane, next_draw)
                except BadSample as bad:
                    self.stream.passed_over(skipped, lane, next_draw, bad)
                next_draw += 1
            draws = list(pool)
            chosen = [draws[index] for index in fullest(list(pool.values()), self.tokens)]
            rows = []
            for draw in chosen:
                del self._lengths[lane, draw]
                try:
                    rows.append(self.stream.one(lane, draw))
                except BadSample as bad:  # such as a picture that cannot be decoded: its part of the row stays empty
                    self.stream.passed_over(skipped, lane, draw, bad)
            waiting = [draw for draw in draws if draw not in chosen]
            if rows:
                rows[0].skipped = skipped
                return rows, (*waiting, next_draw)

    def samples_per_row(self, lanes: int, rows: int = 256) -> float:
        """How many samples fit into a row, measured on the first rows of some lanes without decoding any picture."""
        used = range(min(lanes, 4))
        count = 0
        for lane in used:
            waiting: list[int] = []
            next_draw = 0
            for _ in range(rows // len(used)):
                lengths = []
                while len(waiting) < LOOK_AHEAD:
                    waiting.append(next_draw)
                    next_draw += 1
                for draw in list(waiting):
                    try:
                        lengths.append(self._length(lane, draw))
                    except BadSample:
                        waiting.remove(draw)
                if not lengths:
                    continue
                chosen = fullest(lengths, self.tokens)
                count += len(chosen)
                waiting = [draw for index, draw in enumerate(waiting) if index not in chosen]
        self._lengths.clear()
        return max(1.0, count / (rows // len(used) * len(used)))

    def _length(self, lane: int, draw: int) -> int:
        """Tokens of a sample; kept while it waits."""
        if (lane, draw) not in self._lengths:
            self._lengths[lane, draw] = self.stream.tokens(lane, draw)
        return self._lengths[lane, draw]


def fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Indexes of samples, the first always among them, that together fill `room` as far as any choice can.

    Where several choices do, the one of samples that come first. Exact; costs `len(lengths)` shifts of a number of `room`
    bits, a fraction of a millisecond for 32 samples in 8,192 tokens.
    """
    assert max(lengths) <= room
    within = (1 << room + 1) - 1
    # Bit n of entry i: some of the samples up to i fill exactly n tokens.
    sums = [1 << lengths[0]]
    for length in lengths[1:]:
        sums.append(sums[-1] | sums[-1] << length & within)
    filled = sums[-1].bit_length() - 1
    chosen = []
    for index in range(len(lengths) - 1, 0, -1):
        if not sums[index - 1] >> filled & 1:
            chosen.append(index)
            filled -= lengths[index]
    return [0, *reversed(chosen)]
