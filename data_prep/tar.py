"""Writes tars whose bytes depend only on the names and the data in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tarfile
from pathlib import Path

from onediff.atomic import aside
from onediff.data.index import BLOCK, Index, index_of
from onediff.data.manifest import Shard

# 1 January 1980: GNU tar warns about older time stamps.
MTIME = 315532800


# A USTAR header: name, mode, user, group, size, time, checksum (blank while it is added up), type, link name, magic.
FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s8s247x")


def header(name: str, size: int) -> bytes:
    """The header of a plain file: USTAR, or PAX if the name is too long or not ASCII or the file is over 8 GiB."""
    if not name.isascii() or len(name) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size, MTIME, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)
    zero = b"0000000\0"
    fields = [name.encode(), b"0000644\0", zero, zero, b"%011o\0" % size, b"%011o\0" % MTIME, b" " * 8, b"0", b""]
    block = FIELDS.pack(*fields, b"ustar\00000")
    fields[6] = b"%06o\0 " % sum(block)
    return FIELDS.pack(*fields, b"ustar\00000")


class TarWriter:
    """Writes one tar under a temporary name; `close` renames it and returns its `Shard` entry and `Index`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.samples = 0
        self._aside = aside(path)
        self._file = open(self._aside, "wb", buffering=1 << 20)  # noqa: SIM115, closed by close()
        self._digest = hashlib.sha256()
        self._members: list[tuple[str, int, int]] = []

    def add(self, members: list[tuple[str, bytes]]) -> None:
        """Appends the files of one sample."""
        pieces = []
        for name, data in members:
            head = header(name, len(data))
            self._members.append((name, self.bytes + len(head), len(data)))
            pad = bytes(-len(data) % BLOCK)
            pieces += [head, data, pad]
            self.bytes += len(head) + len(data) + len(pad)
        self._put(pieces)
        self.samples += 1

    def close(self) -> tuple[Shard, Index]:
        """Writes the two empty blocks that end a tar, and moves it into place."""
        self._put([bytes(2 * BLOCK)])
        self.bytes += 2 * BLOCK
        self._file.close()
        index = index_of(self._aside, self._members)
        os.replace(self._aside, self.path)
        return Shard(self.path.name, self.samples, self.bytes, self._digest.hexdigest()), index

    def discard(self) -> None:
        """Removes the unfinished file."""
        with contextlib.suppress(OSError):  # a full disk cannot take the rest of the buffer
            self._file.close()
        self._aside.unlink(missing_ok=True)

    def _put(self, pieces: list[bytes]) -> None:
        self._file.writelines(pieces)
        for piece in pieces:
            self._digest.update(piece)
