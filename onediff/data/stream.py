"""Turns a lane and an index into a row: finds the sample, reads its bytes, and has the processor make the row.

A stream has no position. `Stream.one(lane, index)` depends only on its arguments, so any process can make any row, and
resuming is a lookup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onediff.config.data import CacheConfig
from onediff.data.cache import ShardCache
from onediff.data.coupling import Couples
from onediff.data.cursor import LaneCursor
from onediff.data.features import Features
from onediff.data.lanes import Lanes, SamplePlace, mix64
from onediff.data.manifest import read_manifest
from onediff.data.mixing import Mix
from onediff.data.rows import Processor, TokenRow
from onediff.data.sample import BadSample, Fault, Sample, parse_sample
from onediff.data.shards import Shards
from onediff.errors import UserError


@dataclass
class Source:
    """One data set of a mix."""

    name: str
    shards: Shards
    lanes: Lanes
    weight: float
    task: str | None = None
    features: Features | None = None
    """Precomputed features, read instead of decoding the images."""

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
        features: str | None = None,
    ) -> Source:
        """Reads the manifests of `folder`, a path or a URL, and of its `features`.

        Raises UserError if the folder or one of its shards is missing, or if it holds no samples.
        """
        manifest = read_manifest(folder)
        counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        if not counts.sum():
            raise UserError(f"{folder}: the data set {name!r} holds no samples")
        # Shards may be empty; lanes span only the others.
        filled = np.flatnonzero(counts)
        shards = Shards(manifest.folder, [manifest.shards[i] for i in filled], ShardCache(cache))
        kept = None if features is None else Features.open(features, shards)
        return cls(name, shards, Lanes(counts[filled], lanes, seed, block), weight, task, kept)


class Stream:
    """The samples of a weighted mix of sources. Each lane is an endless list of samples."""

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
        """Whether rows are couples; a string names the rule that chooses partners by their captions."""
        self.couples: list[Couples] | list[Lanes] = (
            [Couples(couple, source.lanes, source.shards.record) for source in sources]
            if isinstance(couple, str)
            else [source.lanes for source in sources]
        )
        self.seed = seed
        self.bad_in_a_row = bad_in_a_row
        self.pack = pack
        """Tokens of a packed row; None gives each sample a row of its own."""

    def one(self, lane: int, index: int) -> TokenRow:
        """Sample `index` of `lane` as a row. Raises BadSample."""
        return self.made(*self._places(lane, index))

    def made(self, number: int, *places: SamplePlace) -> TokenRow:
        """The row of the sample at one place of source `number`, or of the couple at two places. Raises BadSample."""
        source, first, second, choice = self._read(number, *places)
        features = None
        if source.features is not None:
            features = torch.cat([source.features.read(place.shard, place.sample) for place in places])
        if second is not None:
            row = self.processor.couple(first, second, choice, number, features)
        else:
            row = self.processor.row(first, source.task, choice, number, features)
        row.places = places
        return row

    def tokens(self, lane: int, index: int) -> int:
        """The length of the row `one(lane, index)`, without decoding images. Raises BadSample."""
        source, first, second, choice = self._read(*self._places(lane, index))
        if second is not None:
            return self.processor.couple_tokens(first, second, choice)
        return self.processor.tokens(first, source.task, choice)

    def skip(self, skipped: list[Fault], lane: int, index: int, bad: BadSample) -> None:
        """Adds a bad sample to `skipped`. Raises UserError if that makes `bad_in_a_row` of them."""
        number, at = self.mix.at(lane, index)
        source = self.sources[number]
        place = source.lanes.at(lane, at)
        shard = f"{source.name}/{source.shards.names[place.shard]}"
        self.note(skipped, Fault(bad.kind, shard, f"sample {place.sample}: {bad.reason}"))

    def note(self, skipped: list[Fault], fault: Fault) -> None:
        """Adds a fault to `skipped`. Raises UserError if that makes `bad_in_a_row` of them."""
        skipped.append(fault)
        if len(skipped) >= self.bad_in_a_row:
            last = skipped[-1]
            fix = "raise data.max_tokens" if last.kind == "too_long" else "run `onediff data check` on the data set"
            raise UserError(
                f"{len(skipped)} unreadable samples in a row, the last one in {last.shard} {last.what} ({last.kind}); "
                f"{fix}, or raise data.bad_in_a_row"
            )

    def epochs(self, lane: int, cursor: LaneCursor) -> dict[str, float]:
        """The number of epochs of each source at a lane's cursor, by name.

        Samples that wait for a packed row count as read.
        """
        return {
            source.name: self.mix.count(number, lane, cursor[-1]) / source.lanes.length(lane)
            for number, source in enumerate(self.sources)
        }

    def _places(self, lane: int, index: int) -> tuple[Any, ...]:
        """The source of sample `index` of `lane`, the sample's place in it, and when coupling its partner's place."""
        number, at = self.mix.at(lane, index)
        place = self.sources[number].lanes.at(lane, at)
        return (number, place, self.couples[number].partner(lane, at)) if self.couple else (number, place)

    def _read(
        self, number: int, place: SamplePlace, second: SamplePlace | None = None
    ) -> tuple[Source, Sample, Sample | None, int]:
        """The source, the sample, its partner or None, and the number that picks captions. Raises BadSample."""
        source = self.sources[number]
        choice = mix64(self.seed, 2, number, place.epoch, place.shard, place.sample)
        partner = None if second is None else self._sample(source, second)
        return source, self._sample(source, place), partner, choice

    def _sample(self, source: Source, place: SamplePlace) -> Sample:
        return parse_sample(source.shards.read(place.shard, place.sample))
