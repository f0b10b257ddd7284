"""Random access to the samples of a data set, by shard and index."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from onediff.data.cache import ShardCache
from onediff.data.index import Index, Member, SampleSpan, read_index, read_sample
from onediff.data.manifest import Shard
from onediff.data.sample import BadSample
from onediff.errors import UserError

KEPT = 64
"""Indexes that are always kept."""
UNUSED = 16_384
"""An index is dropped after this many reads that did not need it. A rank reads from its lanes in turn, so this is enough
for 4,096 lanes with room to spare, and memory depends on the number of lanes."""


class Shards:
    """The shards of one data set.

    Caches the indexes of the shards in use, 43 bytes per sample with three members, and keeps a bounded number of files
    open. Reopening a file is cheap, but rereading its index would cost more than reading the sample.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], cache: ShardCache) -> None:
        self.folder = folder
        self.shards = shards
        self.cache = cache
        self.names = [shard.name for shard in shards]
        self._reads = 0
        self._indexes: OrderedDict[int, tuple[Index, int]] = OrderedDict()
        """Indexes without keys, each with the number of the read that last used it; least recently used first."""
        self._files: OrderedDict[int, int] = OrderedDict()
        """File descriptors of open shards, least recently used first."""

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """The members of one sample by suffix. Raises BadSample if the shard is truncated before its end."""
        return self._read(shard, sample, self._members(shard, sample))

    def record(self, shard: int, sample: int) -> bytes:
        """Only the JSON of one sample; empty if it has none or the shard is truncated."""
        try:
            members = self._members(shard, sample)
            return self._read(shard, sample, tuple(one for one in members if one.suffix == "json")).get("json", b"")
        except BadSample:
            return b""

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples, in order. Rereads its index."""
        return self._fresh_index(shard).keys

    def _members(self, shard: int, sample: int) -> tuple[Member, ...]:
        index = self._index(shard)
        if sample >= len(index):
            raise BadSample("truncated", f"the shard holds {len(index)} whole samples")
        return index.members(sample)

    def _read(self, shard: int, sample: int, members: tuple[Member, ...]) -> dict[str, bytes]:
        span = SampleSpan(f"#{sample}", members)
        if not self.shards[shard].url:
            return read_sample(self._file(shard), span)
        with self.cache.opened(self.shards[shard]) as copy:
            return read_sample(copy, span)

    def _index(self, shard: int) -> Index:
        self._reads += 1
        kept = self._indexes.pop(shard, None)
        index = self._fresh_index(shard).without_keys() if kept is None else kept[0]
        self._indexes[shard] = index, self._reads
        while len(self._indexes) > KEPT and next(iter(self._indexes.values()))[1] < self._reads - UNUSED:
            self._indexes.popitem(last=False)
        return index

    def _fresh_index(self, shard: int) -> Index:
        if self.shards[shard].url:
            return self.cache.index(self.shards[shard])
        return read_index(self.folder / self.names[shard])

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self.folder / self.names[shard]
        try:
            self._files[shard] = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot open the shard: {error.strerror}") from None
        if len(self._files) > most_files():
            _, oldest = self._files.popitem(last=False)
            os.close(oldest)
        return self._files[shard]

    def __getstate__(self) -> dict[str, object]:
        # A worker process opens its own files.
        return vars(self) | {"_files": OrderedDict(), "_indexes": OrderedDict()}


def most_files() -> int:
    """Shards of one data set that a process keeps open: a sixteenth of its limit of open files."""
    return max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
