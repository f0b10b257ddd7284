"""Several samples of a lane in one row, chosen so that hardly any of it stays empty.

A lane's next `LOOK_AHEAD` samples are measured, not decoded: which of them go into a row together is arithmetic on their
lengths, and only those are then read as rows. The oldest always goes, so that no sample waits for more than `LOOK_AHEAD`
rows. A position is the draws that wait and the next one: resuming measures those again and replays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onediff.data.rows import Row
from onediff.data.sample import BadSample, Fault
from onediff.data.stream import Stream

LOOK_AHEAD = 32
"""Samples that a row is chosen from."""

Place = tuple[int, ...]
"""The draws of a lane that wait, oldest first, and behind them the next one that nobody has looked at."""


class Fill(NamedTuple):
    """How full packed rows are, on average."""

    samples: float
    """In a row."""
    real: float
    """Share of the row's tokens that is no padding."""


class Packer:
    """Packed rows of a stream, by lane and place."""

    def __init__(self, stream: Stream, tokens: int, measure: Callable[[int, int], int] | None = None) -> None:
        """`measure` gives the length of a lane's sample by its draw, as `Stream.tokens` does, which is the default."""
        self.stream = stream
        self.tokens = tokens
        self.measure = measure or stream.tokens
        self._lengths: dict[tuple[int, int], int] = {}

    def row(self, lane: int, place: Place) -> tuple[list[Row], Place]:
        """The samples of the row at `place`, each as a row of its own, and the place behind it.

        Faults of bad samples met on the way are in `skipped` of the first. Raises UserError after `data.bad_in_a_row` of
        them.
        """
        skipped: list[Fault] = []
        while True:
            lengths, place = self.chosen(lane, place, skipped)
            rows = []
            for draw in lengths:
                try:
                    rows.append(self.stream.one(lane, draw))
                except BadSample as bad:  # such as an image that cannot be decoded: its part of the row stays empty
                    self.stream.passed_over(skipped, lane, draw, bad)
            if rows:
                rows[0].skipped = skipped
                return rows, place

    def chosen(self, lane: int, place: Place, skipped: list[Fault]) -> tuple[dict[int, int], Place]:
        """Which draws make the row at `place` and their lengths, without decoding an image; and the place behind it.

        Bad samples that are met are added to `skipped`. Raises UserError where those are `data.bad_in_a_row`.
        """
        *waiting, next_draw = place
        pool = {draw: self._length(lane, draw) for draw in waiting}
        while len(pool) < LOOK_AHEAD:
            try:
                pool[next_draw] = self._length(lane, next_draw)
            except BadSample as bad:
                self.stream.passed_over(skipped, lane, next_draw, bad)
            next_draw += 1
        draws = list(pool)
        chosen = {draws[index]: pool[draws[index]] for index in fullest(list(pool.values()), self.tokens)}
        for draw in chosen:
            del self._lengths[lane, draw]
        return chosen, (*(draw for draw in draws if draw not in chosen), next_draw)

    def fill(self, lanes: int, rows: int = 256) -> Fill:
        """How full the first rows of some lanes are, measured without decoding any image. Raises UserError."""
        used = min(lanes, 4)
        samples = tokens = 0
        for lane in range(used):
            place: Place = (0,)
            for _ in range(rows // used):
                lengths, place = self.chosen(lane, place, [])
                samples += len(lengths)
                tokens += sum(lengths.values())
        self._lengths.clear()
        made = rows // used * used
        return Fill(samples / made, tokens / made / self.tokens)

    def _length(self, lane: int, draw: int) -> int:
        """Tokens of a sample; kept while it waits."""
        if (lane, draw) not in self._lengths:
            self._lengths[lane, draw] = self.measure(lane, draw)
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
