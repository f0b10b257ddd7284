"""A clean copy of a data set: the samples that have no fault, in their order, in new shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.check import Outcome, ShardCheck
from data_prep.report import Report
from data_prep.writer import digest, write_dataset
from onediff.data.index import Index, build_index, read_sample
from onediff.data.manifest import Manifest
from onediff.data.sample import Sample, parse_sample
from onediff.errors import UserError

# A second sample of the same key is good under another key.
KEPT = ("repeated_key",)


@dataclass(frozen=True)
class Kept:
    """The sample that becomes number i of the copy: shard, place in it. Picklable."""

    shards: tuple[Path, ...]
    places: tuple[tuple[int, int], ...]
    renamed: frozenset[tuple[int, int]]
    _open: dict[int, tuple[int, Index]] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return Kept, (self.shards, self.places, self.renamed)

    def __call__(self, i: int) -> Sample:
        shard, place = self.places[i]
        if shard not in self._open:
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY), build_index(self.shards[shard])
        fd, index = self._open[shard]
        sample = parse_sample(read_sample(fd, index[place]), index[place].key)
        return replace(sample, key=f"{sample.key}-{i}") if (shard, place) in self.renamed else sample


def repair(manifests: Sequence[Manifest], outcome: Outcome, out: Path, processes: int | None = None) -> list[Report]:
    """Writes `out/<split>/` for every split; what has a fault is left out. Raises UserError when nothing is left."""
    if any(manifest.folder.resolve().is_relative_to(out.resolve()) for manifest in manifests):
        raise UserError(f"{out}: holds the data set itself; give another folder with --out")
    reports = []
    for manifest in manifests:
        checks = outcome.checks[manifest.split]
        kept = kept_of(checks)
        if not kept.places:
            raise UserError(f"{manifest.folder}: no sample is without fault")
        reports.append(
            write_dataset(
                kept,
                len(kept.places),
                out,
                name=manifest.name,
                split=manifest.split,
                source=manifest.source,
                licence=manifest.licence,
                inputs=digest([kept.places, sorted(kept.renamed), [vars(shard) for shard in manifest.shards]]),
                processes=processes,
            )
        )
    return reports


def kept_of(checks: Sequence[ShardCheck]) -> Kept:
    """The samples without fault. A shard that only lost its checksum, its index or its end keeps what is good."""
    bad: set[tuple[int, int]] = set()
    renamed: set[tuple[int, int]] = set()
    for number, check in enumerate(checks):
        for finding in check.findings:
            if finding.is_fault and finding.place >= 0:
                (renamed if finding.kind in KEPT else bad).add((number, finding.place))
    places = [(n, mark.place) for n, check in enumerate(checks) for mark in check.marks if (n, mark.place) not in bad]
    return Kept(tuple(check.path for check in checks), tuple(places), frozenset(renamed - bad))
