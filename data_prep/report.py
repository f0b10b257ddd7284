"""Reports of conversions: how many rows were read, written and skipped, and why."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.splits import KNOWN
from onediff.columns import in_columns
from onediff.data.manifest import Manifest

# Each chunk keeps this many lines about single samples; the counts are complete.
DETAILS = 50


@dataclass
class Tally:
    """Counts over some samples; `details` are `kind: reason` lines."""

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    prints: bytearray = field(default_factory=bytearray)
    """Two 64-bit numbers per image that copies share (`data_prep.images.content_print`)."""

    def skip(self, kind: str, reason: str) -> None:
        self.skipped[kind] += 1
        if len(self.details) < DETAILS:
            self.details.append(f"{kind}: {reason}")

    def merge(self, other: Tally) -> None:
        self.read += other.read
        self.skipped += other.skipped
        self.noted += other.noted
        self.details += other.details[: max(0, DETAILS - len(self.details))]
        self.prints += other.prints

    def fields(self) -> dict[str, Any]:
        """As JSON; `Tally.of` reads it back."""
        return {
            "read": self.read,
            "skipped": dict(sorted(self.skipped.items())),
            "noted": dict(sorted(self.noted.items())),
            "details": self.details,
            "prints": b64encode(self.prints).decode(),
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Tally:
        prints = bytearray(b64decode(fields.get("prints") or ""))
        return cls(
            fields["read"], Counter(fields["skipped"]), Counter(fields["noted"]), list(fields["details"]), prints
        )

    def repeated(self) -> int:
        """Number of images with the content of an earlier one."""
        prints = np.frombuffer(self.prints, dtype="<u8").reshape(-1, 2)
        prints = prints[np.lexsort(prints.T)]
        return int((prints[1:] == prints[:-1]).all(1).sum())


@dataclass(frozen=True)
class Report:
    """The outcome for one split."""

    manifest: Manifest
    tally: Tally
    repeated_images: int
    seconds: float

    def fields(self) -> dict[str, Any]:
        return {
            "split": self.manifest.split,
            "read": self.tally.read,
            "written": self.manifest.samples,
            "shards": len(self.manifest.shards),
            "bytes": self.manifest.bytes,
            "skipped": dict(sorted(self.tally.skipped.items())),
            "noted": dict(sorted(self.tally.noted.items())),
            "repeated_images": self.repeated_images,
            "details": self.tally.details,
            "seconds": round(self.seconds, 3),
        }


def table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    """A plain text table: the first column left-aligned, the others right-aligned."""
    cells = [
        [str(head) for head in heads],
        *([f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows),
    ]
    first, *others = in_columns(cells, align=">")
    return "\n".join([first, "-" * len(first), *others])


def show_reports(reports: Sequence[Report], details: int = 10) -> str:
    """The final table over splits, then the reasons, then the first lines about single samples."""
    rows = [
        [r.manifest.split, r.tally.read, r.manifest.samples, sum(r.tally.skipped.values()), len(r.manifest.shards)]
        + [f"{r.manifest.bytes / 1e6:,.1f}"]
        for r in reports
    ]
    text = [table(rows, ("split", "read", "written", "skipped", "shards", "MB"))]
    for title, counts in (
        ("skipped", sum((r.tally.skipped for r in reports), Counter())),
        ("noted", sum((r.tally.noted for r in reports), Counter())),
    ):
        text += [f"{title}: {kind} {number:,}" for kind, number in sorted(counts.items())]
    for own in (r.manifest.split for r in reports if r.manifest.split not in KNOWN):
        text.append(f"noted: split {own} is not one of {', '.join(KNOWN)}, so commands use it only if you name it")
    repeated = sum(r.repeated_images for r in reports)
    if repeated:
        have = f"{counted(repeated, 'image')} {'has' if repeated == 1 else 'have'}"
        text.append(f"noted: {have} the content of an earlier one in the same split")
    lines = [line for r in reports for line in r.tally.details]
    text += [f"  {line}" for line in lines[:details]]
    if len(lines) > details:
        text.append("  … (--report FILE keeps more of them)")
    return "\n".join(text)


def counted(number: int, thing: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
