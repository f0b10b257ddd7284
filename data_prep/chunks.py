"""The chunks of a data set that is being written. A process makes one chunk at a time: its shards, and their record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.images import content_print
from data_prep.report import Tally
from data_prep.tar import TarWriter
from onediff.atomic import write_whole
from onediff.data.index import index_path, save_index
from onediff.data.manifest import Shard
from onediff.data.sample import BadSample, Sample, encode_sample
from onediff.errors import UserError

Make = Callable[[int], Sample]


class Made(NamedTuple):
    """The shards and counts made from some samples."""

    shards: list[Shard]
    tally: Tally
    files: str
    """Digest of the sizes of their source files."""


@dataclass
class Chunks:
    """The chunks of one job on disk: `chunk-<n>-<part>.tar` with their indexes, and `chunk-<n>.json` when finished."""

    make: Make
    work: Path
    shard_bytes: int
    strict: bool

    def is_current(self, n: int, indices: Sequence[int]) -> bool:
        """Whether chunk `n` is finished and its source files still have the same sizes."""
        made = self.load(n)
        return made is not None and made.files == files_of(self.make, indices)

    def load(self, n: int) -> Made | None:
        """The result of chunk `n`, or None if it is not finished."""
        folder = str(self.work)
        with contextlib.suppress(FileNotFoundError, ValueError):
            with open(f"{folder}/chunk-{n:06d}.json", encoding="utf-8") as file:
                fields = json.load(file)
            shards = [Shard(**shard) for shard in fields["shards"]]
            if all(os.stat(f"{folder}/{shard.name}").st_size == shard.bytes for shard in shards):
                return Made(shards, Tally.of(fields["tally"]), fields["files"])
        return None

    def write(self, n: int, indices: Sequence[int], done: Callable[[], None]) -> None:
        """Makes and writes the samples of chunk `n`; `done` is called after each."""
        tally, shards = Tally(), []  # type: Tally, list[Shard]
        tar: TarWriter | None = None
        try:
            for i in indices:
                members = self.members(i, tally)
                done()
                if not members:
                    continue
                if tar and tar.bytes + sum(len(data) for _, data in members) > self.shard_bytes:
                    shards.append(finish(tar))
                    tar = None
                tar = tar or TarWriter(self.work / f"chunk-{n:06d}-{len(shards):03d}.tar")
                tar.add(members)
            if tar:
                shards.append(finish(tar))
        except BaseException:
            if tar:
                tar.discard()
            raise
        files = files_of(self.make, indices)
        record = json.dumps({"shards": [vars(shard) for shard in shards], "tally": tally.fields(), "files": files})
        write_whole(self.work / f"chunk-{n:06d}.json", record)

    def members(self, i: int, tally: Tally) -> list[tuple[str, bytes]]:
        """The tar members of sample `i`; none if it is skipped."""
        tally.read += 1
        try:
            sample = self.make(i)
            members = encode_sample(sample, sample.key or f"{i:08d}")
        except BadSample as bad:
            if self.strict:
                raise UserError(f"{bad.reason}; leave out --strict to skip and count such samples") from bad
            tally.skip(bad.kind, bad.reason)
            tally.noted.update(bad.notes)
            return []
        tally.noted.update(sample.meta.get("notes", ()))
        tally.prints += b"".join(content_print(data) for data in sample.images.values())
        return members


def together(chunks: Iterable[Made]) -> Made:
    """Joins finished chunks: their shards in order, the sum of their counts, and the digest of all their files."""
    shards, tally, files = [], Tally(), []  # type: list[Shard], Tally, list[str]
    for chunk in chunks:
        shards += chunk.shards
        tally.merge(chunk.tally)
        files.append(chunk.files)
    return Made(shards, tally, digest(files) if any(files) else "")


def finish(tar: TarWriter) -> Shard:
    """Closes `tar` and writes its index beside it."""
    shard, index = tar.close()
    save_index(index, index_path(tar.path))
    return shard


def files_of(make: Make, samples: Sequence[int]) -> str:
    """A digest of the sizes of these samples' source files, if `make` has `sizes(i)`."""
    sizes = getattr(make, "sizes", None)
    return digest([sizes(i) for i in samples]) if sizes else ""


def digest(fields: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
