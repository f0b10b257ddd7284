"""A clean copy of a data set: the samples that have no fault, in their order, in new shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.check import CheckReport, ShardCheck
from data_prep.chunks import digest
from data_prep.report import Report
from data_prep.selection import SelectedSamples
from data_prep.writer import write_dataset
from onediff.data.manifest import Manifest
from onediff.errors import UserError

# A second sample with the same key is fine under another key.
KEPT = ("repeated_key",)


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
                inputs=digest([kept.places.tolist(), sorted(kept.renamed), [vars(shard) for shard in manifest.shards]]),
                processes=processes,
            )
        )
    return reports


def kept_of(checks: Sequence[ShardCheck]) -> SelectedSamples:
    """The samples without fault. A shard that only lacks its checksum, index or end keeps its good samples."""
    bad: set[tuple[int, int]] = set()
    renamed: set[tuple[int, int]] = set()
    for number, check in enumerate(checks):
        for finding in check.findings:
            if finding.is_fault and finding.place >= 0:
                (renamed if finding.kind in KEPT else bad).add((number, finding.place))
    places = [(n, mark.place) for n, check in enumerate(checks) for mark in check.marks if (n, mark.place) not in bad]
    kept = np.array(places, dtype=np.int64).reshape(-1, 2)
    return SelectedSamples(tuple(check.path for check in checks), kept, frozenset(renamed - bad))
