"""The pairs of a held-out split, in order, with their reference captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from onediff.data.sample import BadSample, Sample, change_list, parse_sample
from onediff.data.stream import Source
from onediff.errors import UserError


@dataclass
class HeldOut:
    """One split of a data set. Images are read when they are needed."""

    source: Source
    references: dict[str, list[str]] = field(default_factory=dict)
    """Captions of each pair by id, in the order of the shards."""
    change_types: dict[str, str] = field(default_factory=dict)
    """Change type of each pair, if known."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Change list of each pair, if known: `changes`, and the objects `before` and `after` (docs/synthetic.md)."""
    instructions: dict[str, str] = field(default_factory=dict)
    """The instruction of each pair that has its own."""
    unreadable: list[str] = field(default_factory=list)
    """One line for each skipped sample."""
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, limit: int | None = None) -> HeldOut:
        """Reads the captions of the first `limit` pairs of the shards in `folder`.

        Skips and lists pairs whose record cannot be read. Raises UserError if no pair is left, or if pairs with different
        images have the same id.
        """
        made = cls(Source.open(folder.parent.name, folder, lanes=1, seed=0, block=1))
        images_of: dict[str, bytes] = {}
        shards = made.source.shards
        for shard, count in enumerate(made.source.lanes.shard_samples):
            for number in range(count):
                try:
                    sample = parse_sample(shards.read(shard, number))
                except BadSample as bad:
                    made.unreadable.append(f"{shards.names[shard]} sample {number}: {bad}")
                    continue
                if len(made.references) == limit and sample.id not in made.references:
                    return made
                if not sample.is_pair or not sample.captions:
                    continue
                # Records with the same id are one pair with all their references.
                images = sha256(sample.images["before"] + sample.images["after"]).digest()
                if images_of.setdefault(sample.id, images) != images:
                    raise UserError(
                        f"{folder}: pairs with different images have the id {sample.id!r}, so all captions would be "
                        "references of one; 'onediff data repair' writes a copy in which each has its own id"
                    )
                made.references.setdefault(sample.id, []).extend(sample.captions)
                made._places.setdefault(sample.id, (shard, number))
                if sample.instruction is not None:
                    made.instructions.setdefault(sample.id, sample.instruction)
                if "change_type" in sample.meta:
                    made.change_types[sample.id] = str(sample.meta["change_type"])
                if (changes := change_list(sample.meta)) is not None:
                    made.changes[sample.id] = changes
        if not made.references:
            raise UserError(f"{folder}: no readable pair with captions in this split")
        return made

    def sample(self, pair: str) -> Sample:
        """The pair with this id. Raises BadSample if its bytes cannot be read."""
        return parse_sample(self.source.shards.read(*self._places[pair]))

    def write_references(self, path: Path) -> None:
        """Writes JSONL with `id`, `captions` and, if known, `change_type` and the change list in `meta`.

        `onediff score` reads this format.
        """
        with path.open("w", encoding="utf-8") as out:
            for pair, captions in self.references.items():
                record: dict[str, object] = {"id": pair, "captions": captions}
                if pair in self.change_types:
                    record["change_type"] = self.change_types[pair]
                if pair in self.changes:
                    record["meta"] = self.changes[pair]
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def first_with_pairs(folders: Iterable[Path], split: str) -> Path | None:
    """The first of these data sets that has pairs in its split, or None."""
    for folder in folders:
        try:
            HeldOut.open(folder / split, limit=1)
        except UserError:
            continue
        return folder
    return None
