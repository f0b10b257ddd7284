"""The bytes of any sample of a data set, by shard and place."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from onediff.data.cache import ShardCache
from onediff.data.index import Index, SampleSpan, read_index, read_sample
from onediff.data.manifest import Shard
from onediff.data.sample import BadSample
from onediff.errors import UserError

OPEN_SHARDS = 64


class Shards:
    """The shards of one data set. Keeps a bounded number of them open, each with its index."""

    def __init__(self, folder: Path, shards: Sequence[Shard], cache: ShardCache) -> None:
        self.folder = folder
        self.shards = shards
        self.cache = cache
        self.names = [shard.name for shard in shards]
        self._open: OrderedDict[int, tuple[int | None, Index]] = OrderedDict()

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """The members of one sample by suffix. Raises BadSample if the shard ends before it."""
        file, index = self._opened(shard)
        if sample >= len(index):
            raise BadSample("truncated", f"the shard holds {len(index)} whole samples")
        return self._read(shard, file, index[sample])

    def record(self, shard: int, sample: int) -> bytes:
        """The JSON of one sample alone; empty if it has none or the shard ends before it."""
        file, index = self._opened(shard)
        if sample >= len(index):
            return b""
        key, members = index[sample]
        span = SampleSpan(key, tuple(member for member in members if member.suffix == "json"))
        try:
            return self._read(shard, file, span).get("json", b"")
        except BadSample:
            return b""

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's samples, in order."""
        return self._opened(shard)[1].keys

    def _read(self, shard: int, file: int | None, span: SampleSpan) -> dict[str, bytes]:
        if file is not None:
            return read_sample(file, span)
        with self.cache.opened(self.shards[shard]) as copy:
            return read_sample(copy, span)

    def _opened(self, shard: int) -> tuple[int | None, Index]:
        """The shard's file descriptor (None for a copy in the cache) and its index."""
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
