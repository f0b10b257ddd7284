"""A clean copy of a data set: the samples that have no fault, in their order, in new shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.check import CheckReport, ShardCheck
from data_prep.chunks import digest
from data_prep.ids import unique_ids
from data_prep.report import Report
from data_prep.selection import SelectedSamples
from data_prep.writer import write_dataset
from onediff.data.manifest import Manifest
from onediff.errors import UserError

# A second sample with the same key, or pair with the same id, is fine under another.
KEPT = ("repeated_key", "repeated_id")


def repair(
    manifests: Sequence[Manifest], outcome: CheckReport, out: Path, processes: int | None = None
) -> list[Report]:
    """Writes `out/<split>/` for every split, without faulty samples. Raises UserError if no sample is left."""
    if any(manifest.folder.resolve().is_relative_to(out.resolve()) for manifest in manifests):
        raise UserError(f"{out}: holds the data set itself; give another folder with --out")
    reports = []
    for manifest in manifests:
        checks = outcome.checks[manifest.split]
        kept = kept_of(checks)
        if not len(kept.places):
            raise UserError(f"{manifest.folder}: every sample has a fault")
        reports.append(
            write_dataset(
                kept,
                len(kept.places),
                out,
                name=manifest.name,
                split=manifest.split,
                source=manifest.source,
                licence=manifest.licence,
                inputs=digest([kept.places.tolist(), *kept.new_names(), [vars(shard) for shard in manifest.shards]]),
                processes=processes,
            )
        )
    return reports


def kept_of(checks: Sequence[ShardCheck]) -> SelectedSamples:
    """The samples without fault. A shard that only lacks its checksum, index or end keeps its good samples."""
    faults = [(n, finding) for n, check in enumerate(checks) for finding in check.findings if finding.is_fault]
    bad = {(n, finding.place) for n, finding in faults if finding.kind not in KEPT}
    renamed = {(n, finding.place) for n, finding in faults if finding.kind == "repeated_key"}
    marks = {(n, mark.place): mark for n, check in enumerate(checks) for mark in check.marks}
    places = [place for place in marks if place not in bad]
    kept = np.array(places, dtype=np.int64).reshape(-1, 2)
    ids = unique_ids((place, marks[place].id, marks[place].each) for place in places)
    return SelectedSamples(tuple(check.path for check in checks), kept, frozenset(renamed - bad), ids=ids)
