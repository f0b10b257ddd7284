"""A disk cache for remote shards, limited in size and shared by all processes of a node.

A shard is downloaded to a temporary file, checked against the manifest, indexed and renamed. The least recently used shards
are evicted. Locks are `flock`s, which the kernel releases when a process dies, so a killed process blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onediff.config.data import CacheConfig
from onediff.data.index import Index, build_index, index_path, load_index, read_index, save_index
from onediff.data.manifest import Shard
from onediff.data.remote import pieces, retried
from onediff.errors import UserError

SLOTS = 64
"""Number of locks that the shards share. Processes fetch different shards in parallel, and no shard twice."""
WAIT = 0.2
"""Seconds between checks for free space while other processes occupy the whole cache."""


class ShardCache:
    """Local copies of shards that have a URL. Holds no open files, so it can be passed to a worker process."""

    def __init__(self, config: CacheConfig) -> None:
        default = Path(tempfile.gettempdir()) / f"onediff-shards-{os.getuid()}"
        self.folder = Path(config.folder).expanduser() if config.folder else default
        self.limit = int(config.gigabytes * 1e9)

    @contextmanager
    def opened(self, shard: Shard) -> Iterator[int]:
        """A file descriptor of the local copy, which is fetched first if needed. Raises UserError if that fails.

        The file is opened for each sample and closed again, because a removed file occupies the disk until it is closed.
        """
        path = self._path(shard)
        while True:
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY)
                break
            self._fetch(shard)
        try:
            os.utime(file)  # marks it as used, for eviction
            yield file
        finally:
            os.close(file)

    def index(self, shard: Shard) -> Index:
        """The index of the shard, which is fetched first if needed. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot create the shard cache: {error}; fix data.cache.folder") from None
        path = self._path(shard)
        while True:
            with self._locked(self._slot(path.name), shared=True):  # prevents eviction
                if path.exists():
                    # The shard was checked when it was fetched; its time says when it was last used, not written.
                    with suppress(OSError, KeyError, ValueError):
                        return load_index(index_path(path))
                    return read_index(path)
            self._fetch(shard)

    def _path(self, shard: Shard) -> Path:
        identity = f"{shard.url} {shard.bytes} {shard.sha256}"
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{shard.name}"

    def _slot(self, name: str) -> str:
        return f".lock-{int(name[:16], 16) % SLOTS}"

    @contextmanager
    def _locked(self, name: str, shared: bool = False) -> Iterator[None]:
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _fetch(self, shard: Shard) -> None:
        path = self._path(shard)
        try:
            part, aside = self._reserved(shard)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write to the shard cache: {error}; fix data.cache.folder") from None
        try:
            with self._locked(self._slot(path.name)):
                if path.exists():  # another process was faster
                    return
                retried(shard.url, lambda: self._download(shard, part))
                save_index(build_index(aside), index_path(path))
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
            os.close(part)

    def _download(self, shard: Shard, part: int) -> None:
        """Downloads the shard into `part`. Raises OSError if its size or checksum differs from the manifest."""
        digest, length = hashlib.sha256(), 0
        for piece in pieces(shard.url):
            if length + len(piece) > shard.bytes:
                raise OSError(f"more than the {shard.bytes} bytes that the manifest promises")
            if os.pwrite(part, piece, length) < len(piece):  # the last bytes before a disk is full are no error yet
                raise OSError(os.strerror(errno.ENOSPC))
            digest.update(piece)
            length += len(piece)
        if length != shard.bytes:
            raise OSError(f"{length} bytes, but the manifest promises {shard.bytes}")
        if shard.sha256 and digest.hexdigest() != shard.sha256:
            raise OSError("its SHA-256 differs from the manifest")

    def _reserved(self, shard: Shard) -> tuple[int, Path]:
        """Waits for room, evicting shards if needed; returns an open, locked file of the shard's size, and its path."""
        if shard.bytes > self.limit:
            raise UserError(
                f"{shard.url}: {shard.bytes:,} bytes, more than the whole shard cache; raise data.cache.gigabytes"
            )
        while True:
            with self._locked(".lock"):
                if self._make_room(shard.bytes):
                    part, name = tempfile.mkstemp(prefix=".part-", dir=self.folder)
                    fcntl.flock(part, fcntl.LOCK_EX)
                    os.truncate(part, shard.bytes)
                    return part, Path(name)
            time.sleep(WAIT)

    def _make_room(self, size: int) -> bool:
        """Evicts shards, least recently used first, until `size` bytes fit. Returns False if those in use leave no room."""
        taken = 0
        for part in self.folder.glob(".part-*"):
            with suppress(FileNotFoundError):  # may have been renamed by now, and is then counted below
                self._remove_if_left_behind(part)
                taken += part.stat().st_size
        shards = [path for path in self.folder.iterdir() if not path.name.startswith(".") and path.suffix != ".index"]
        states = {path: path.stat() for path in shards}
        taken += sum(state.st_size for state in states.values())
        for path in sorted(shards, key=lambda path: states[path].st_mtime_ns):
            if taken + size <= self.limit:
                break
            if self._removed(path):
                taken -= states[path].st_size
        return taken + size <= self.limit

    def _removed(self, path: Path) -> bool:
        """Removes a shard, unless a process is reading its index or fetching a shard with the same lock."""
        lock = os.open(self.folder / self._slot(path.name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            index_path(path).unlink(missing_ok=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(lock)

    def _remove_if_left_behind(self, part: Path) -> None:
        """Removes a temporary file that nobody has locked, because its process died."""
        with suppress(BlockingIOError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
