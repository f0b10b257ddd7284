"""From a lane's position to its next row: lanes → raw bytes → decoded, tokenised row.

Nothing here remembers where it was: `Stream.row(lane, draw)` is a function of its arguments, so any process can make any
row, and a position is one number a lane.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onediff.config.data import CacheConfig
from onediff.data.cache import ShardCache
from onediff.data.coupling import Couples
from onediff.data.index import Index, SampleSpan, read_index, read_sample
from onediff.data.lanes import Lanes, Place, mix64
from onediff.data.manifest import Shard, read_manifest
from onediff.data.mixing import Mix
from onediff.data.rows import Processor, Row
from onediff.data.sample import BadSample, Fault, Sample, parse_sample
from onediff.errors import UserError

OPEN_SHARDS = 64


class Shards:
    """Raw samples of one data set by shard and place; keeps a bounded number of shards open, each with its index."""

    def __init__(self, folder: Path, shards: Sequence[Shard], cache: ShardCache) -> None:
        self.folder = folder
        self.shards = shards
        self.cache = cache
        self.names = [shard.name for shard in shards]
        self._open: OrderedDict[int, tuple[int | None, Index]] = OrderedDict()

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """The members of one sample by their suffix. Raises BadSample where the shard ends before it."""
        file, index = self._opened(shard)
        if sample >= len(index):
            raise BadSample("truncated", f"the shard holds {len(index)} whole samples")
        if file is not None:
            return read_sample(file, index[sample])
        with self.cache.opened(self.shards[shard]) as copy:
            return read_sample(copy, index[sample])

    def record(self, shard: int, sample: int) -> bytes:
        """The JSON of one sample alone; empty where there is none, or the shard ends before it."""
        file, index = self._opened(shard)
        if sample >= len(index):
            return b""
        key, members = index[sample]
        span = SampleSpan(key, tuple(member for member in members if member.suffix == "json"))
        try:
            if file is not None:
                return read_sample(file, span).get("json", b"")
            with self.cache.opened(self.shards[shard]) as copy:
                return read_sample(copy, span).get("json", b"")
        except BadSample:
            return b""

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples, in its order."""
        return self._opened(shard)[1].keys

    def _opened(self, shard: int) -> tuple[int | None, Index]:
        """The shard's descriptor (None where it is a copy in the cache) and index."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if self.shards[shard].url:
            self._keep(shard, None, self.cache.index(self.shards[shard]))
            return self._open[shard]
        path = self.folder / self.names[shard]
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot open this shard: {error.strerror}") from None
        self._keep(shard, file, read_index(path))
        return self._open[shard]

    def _keep(self, shard: int, file: int | None, index: Index) -> None:
        self._open[shard] = file, index
        if len(self._open) > OPEN_SHARDS:
            _, (oldest, _) = self._open.popitem(last=False)
            if oldest is not None:
                os.close(oldest)

    def __getstate__(self) -> dict[str, object]:
        # A worker process opens its own files.
        return vars(self) | {"_open": OrderedDict()}


@dataclass
class Source:
    """One data set of a mix."""

    name: str
    shards: Shards
    lanes: Lanes
    weight: float
    task: str | None = None

    @classmethod
    def open(
        cls,
        name: str,
        folder: Path | str,
        lanes: int,
        seed: int,
        block: int,
        weight: float = 1.0,
        task: str | None = None,
        cache: CacheConfig = CacheConfig(),  # noqa: B008, never changed
    ) -> Source:
        """Reads the manifest of `folder`, a path or a URL.

        Raises UserError for a missing folder, an empty one, or a missing shard.
        """
        manifest = read_manifest(folder)
        counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        if not counts.sum():
            raise UserError(f"{folder}: the data set {name!r} holds no sample")
        # A shard may be empty; lanes are cut over the others.
        filled = np.flatnonzero(counts)
        shards = Shards(manifest.folder, [manifest.shards[i] for i in filled], ShardCache(cache))
        return cls(name, shards, Lanes(counts[filled], lanes, seed, block), weight, task)


class Stream:
    """Rows of a weighted mix of sources, by lane and draw."""

    def __init__(
        self,
        sources: list[Source],
        processor: Processor,
        couple: bool | str,
        seed: int,
        bad_in_a_row: int,
        pack: int | None = None,
    ) -> None:
        self.sources = sources
        self.mix = Mix([source.weight for source in sources])
        self.processor = processor
        self.couple = couple
        """Whether two samples make a row; or by which rule over their captions they are chosen."""
        self.couples: list[Couples] | list[Lanes] = (
            [Couples(couple, source.lanes, source.shards.record) for source in sources]
            if isinstance(couple, str)
            else [source.lanes for source in sources]
        )
        self.seed = seed
        self.bad_in_a_row = bad_in_a_row
        self.pack = pack
        """Tokens of a row into which several samples go; None: each has a row of its own."""

    def row(self, lane: int, draw: int) -> Row:
        """The row at position `draw` of `lane`; a bad sample is passed over for the lane's next one.

        Raises UserError after `bad_in_a_row` bad samples in a row.
        """
        skipped: list[Fault] = []
        while True:
            draw += 1
            try:
                row = self.one(lane, draw - 1)
            except BadSample as bad:
                self.passed_over(skipped, lane, draw - 1, bad)
                continue
            row.next_draw, row.skipped = draw, skipped
            return row

    def one(self, lane: int, draw: int) -> Row:
        """The sample at position `draw` of `lane` as a row. Raises BadSample."""
        return self.made(*self._places(lane, draw))

    def made(self, number: int, *places: Place) -> Row:
        """The sample at a place of source `number`, or two of them coupled, as a row. Raises BadSample."""
        source, first, second, choice = self._read(number, *places)
        if second is not None:
            row = self.processor.couple(first, second, choice, number)
        else:
            row = self.processor.row(first, source.task, choice, number)
        row.places = places
        return row

    def tokens(self, lane: int, draw: int) -> int:
        """How long that row is; no image is decoded. Raises BadSample."""
        source, first, second, choice = self._read(*self._places(lane, draw))
        if second is not None:
            return self.processor.couple_tokens(first, second, choice)
        return self.processor.tokens(first, source.task, choice)

    def passed_over(self, skipped: list[Fault], lane: int, draw: int, bad: BadSample) -> None:
        """Notes a bad sample in `skipped`. Raises UserError where there are `bad_in_a_row` of them."""
        number, position = self.mix.at(lane, draw)
        source = self.sources[number]
        place = source.lanes.at(lane, position)
        shard = f"{source.name}/{source.shards.names[place.shard]}"
        self.note(skipped, Fault(bad.kind, shard, f"sample {place.sample}: {bad.reason}"))

    def note(self, skipped: list[Fault], fault: Fault) -> None:
        """Adds a fault to those that were met in a row. Raises UserError where there are `bad_in_a_row` of them."""
        skipped.append(fault)
        if len(skipped) >= self.bad_in_a_row:
            last = skipped[-1]
            fix = "raise data.max_tokens" if last.kind == "too_long" else "run `onediff data check` on the data set"
            raise UserError(
                f"{len(skipped)} unreadable samples in a row, the last one in {last.shard} {last.what} ({last.kind}); "
                f"{fix}, or raise data.bad_in_a_row"
            )

    def _places(self, lane: int, draw: int) -> tuple[Any, ...]:
        """What is at `draw` of `lane`: the number of the source, the sample's place, and its partner's in coupling."""
        number, position = self.mix.at(lane, draw)
        place = self.sources[number].lanes.at(lane, position)
        return (number, place, self.couples[number].partner(lane, position)) if self.couple else (number, place)

    def _read(
        self, number: int, place: Place, second: Place | None = None
    ) -> tuple[Source, Sample, Sample | None, int]:
        """The source, the sample, its partner in coupling, choice of caption. Raises BadSample."""
        source = self.sources[number]
        choice = mix64(self.seed, 2, number, place.epoch, place.shard, place.sample)
        partner = None if second is None else self._sample(source, second)
        return source, self._sample(source, place), partner, choice

    def _sample(self, source: Source, place: Place) -> Sample:
        return parse_sample(source.shards.read(place.shard, place.sample))

    def epochs(self, lane: int, draw: int | tuple[int, ...]) -> dict[str, float]:
        """How often each source has been read through, by name, judged by one lane.

        Of a packed lane all draws that were looked at count, the few that wait too.
        """
        draw = draw if isinstance(draw, int) else draw[-1]
        return {
            source.name: self.mix.draws(number, lane, draw) / source.lanes.length(lane)
            for number, source in enumerate(self.sources)
        }
