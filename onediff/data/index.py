"""An index of a tar shard: the offsets of its samples, for random access with `pread`.

The index is stored next to the shard as `<shard>.tar.index`: one line of JSON (facts about the tar, suffixes, keys) and four
little-endian int64 columns. It is rebuilt from the tar when it is missing or stale. For a truncated or damaged tar it lists
the complete samples, and describes the damage in `damage`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onediff.atomic import write_whole
from onediff.data.sample import BadSample
from onediff.errors import UserError

VERSION = 1
BLOCK = 512
# Names are split as by webdataset: the key ends at the first dot of the base name.
NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


class Member(NamedTuple):
    """One file of a sample: its suffix in lower case (`before.jpg`), and the offset and size of its data in the tar."""

    suffix: str
    offset: int
    size: int


class SampleSpan(NamedTuple):
    """The location of one sample."""

    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Index:
    """The samples of one shard in tar order, as a sequence of `SampleSpan`s.

    `ends`, `[samples]`, holds cumulative member counts; `suffix_of`, `offsets` and `sizes` are `[members]`.
    """

    keys: list[str]
    suffixes: list[str]
    ends: NDArray[np.integer]
    suffix_of: NDArray[np.integer]
    offsets: NDArray[np.integer]
    sizes: NDArray[np.integer]
    facts: dict[str, int]
    damage: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> SampleSpan:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return SampleSpan(self.keys[i], self.members(i))

    def __iter__(self) -> Iterator[SampleSpan]:
        return (self[i] for i in range(len(self)))

    def members(self, i: int) -> tuple[Member, ...]:
        """The files of sample `i`."""
        here = range(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        return tuple(Member(self.suffixes[self.suffix_of[m]], int(self.offsets[m]), int(self.sizes[m])) for m in here)

    def without_keys(self) -> Index:
        """A compact copy that supports only `members`: 4 bytes per sample and 13 per file."""
        return replace(
            self,
            keys=[],
            ends=self.ends.astype(np.int32),
            suffix_of=self.suffix_of.astype(np.uint8 if len(self.suffixes) < 256 else np.int32),
            sizes=self.sizes.astype(np.uint32 if self.sizes.max(initial=0) < 1 << 32 else np.int64),
        )


def read_sample(fd: int, span: SampleSpan) -> dict[str, bytes]:
    """Reads one sample from an open tar: bytes by suffix. Raises `BadSample("truncated", …)` if the tar ends early.

    Takes one `pread` if the members are adjacent, as writers lay them out, and otherwise one per member.
    """
    if not span.members:
        return {}
    first = min(member.offset for member in span.members)
    length = max(member.offset + member.size for member in span.members) - first
    together = length <= sum(member.size + 4 * BLOCK for member in span.members)
    whole = os.pread(fd, length, first) if together else b""
    data = {}
    for suffix, offset, size in span.members:
        part = whole[offset - first : offset - first + size] if together else os.pread(fd, size, offset)
        if len(part) != size:
            raise BadSample("truncated", f"{span.key}.{suffix}: the shard ends after {len(part)} of {size} bytes")
        data[suffix] = part
    return data


def index_path(tar: Path) -> Path:
    """`<shard>.tar` → `<shard>.tar.index`."""
    return tar.with_name(tar.name + ".index")


def read_index(tar: Path, write: bool = True) -> Index:
    """The stored index of `tar`, rebuilt if it is missing or stale, and then stored if `write` and the folder allow it.

    Raises UserError if the tar itself is missing.
    """
    # A missing, outdated or truncated index is not an error, because the tar is the source of truth.
    with contextlib.suppress(OSError, KeyError, ValueError):
        index = load_index(index_path(tar))
        # A tar written again may have the same size and the same first and last member.
        is_newer = index_path(tar).stat().st_mtime_ns >= tar.stat().st_mtime_ns
        if is_newer and index.facts == tar_facts(tar, index.facts["last_header"]):
            return index
    index = build_index(tar)
    if write:
        # In a read-only folder, the index is kept in memory only.
        with contextlib.suppress(OSError):
            save_index(index, index_path(tar))
    return index


def build_index(tar: Path) -> Index:
    """Builds an index by reading every header of `tar`. Raises UserError if the tar is missing."""
    damage: list[str] = []
    with open_tar(tar) as file:
        members = list(scan_members(file.fileno(), damage))
    return index_of(tar, members, damage)


def index_of(tar: Path, members: Iterable[tuple[str, int, int]], damage: Iterable[str] = ()) -> Index:
    """The index of `tar` from the `(name, data offset, size)` of its files in tar order.

    Files with the same key form one sample, even if other files lie between them. A repeated suffix starts a new sample.
    Hidden files and names without a suffix are ignored.
    """
    spans: list[tuple[str, dict[str, tuple[int, int]]]] = []
    latest: dict[str, dict[str, tuple[int, int]]] = {}
    last_header = 0
    for name, offset, size in members:
        match = NAME.match(name.removeprefix("./"))
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        if key not in latest or suffix in latest[key]:
            latest[key] = {}
            spans.append((key, latest[key]))
        latest[key][suffix] = (offset, size)
        last_header = offset - BLOCK
    suffixes = sorted({suffix for _, parts in spans for suffix in parts})
    number = {suffix: i for i, suffix in enumerate(suffixes)}
    rows = np.array([(number[suffix], *parts[suffix]) for _, parts in spans for suffix in parts], dtype="<i8").reshape(
        -1, 3
    )
    ends = np.cumsum([len(parts) for _, parts in spans], dtype="<i8")
    return Index(
        [key for key, _ in spans],
        suffixes,
        ends,
        rows[:, 0],
        rows[:, 1],
        rows[:, 2],
        tar_facts(tar, last_header),
        tuple(damage),
    )


def tar_facts(tar: Path, last_header: int) -> dict[str, int]:
    """A fingerprint of the tar: its size and the checksums of its first and last headers."""
    with open_tar(tar) as file:
        size = os.fstat(file.fileno()).st_size
        ends = [zlib.crc32(os.pread(file.fileno(), BLOCK, at)) for at in (0, last_header)]
    return {"bytes": size, "last_header": last_header, "first_crc": ends[0], "last_crc": ends[1]}


def save_index(index: Index, path: Path) -> None:
    """Writes `index` to `path` atomically."""
    header = {
        "onediff_index": VERSION,
        "facts": index.facts,
        "damage": index.damage,
        "suffixes": index.suffixes,
        "members": len(index.offsets),
        "keys": index.keys,
    }
    columns = (index.ends, index.suffix_of, index.offsets, index.sizes)
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":"))
    write_whole(path, b"".join([text.encode(), b"\n", *(column.astype("<i8").tobytes() for column in columns)]))


def load_index(path: Path) -> Index:
    """Reads an index file. Raises ValueError or KeyError if it is not a complete index of this version."""
    line, _, body = path.read_bytes().partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    if not isinstance(header, dict) or header.get("onediff_index") != VERSION:
        raise ValueError(f"{path}: not an index of version {VERSION}")
    keys, members = header["keys"], header["members"]
    if len(body) != 8 * (len(keys) + 3 * members):
        raise ValueError(f"{path}: the index is truncated")
    numbers = np.frombuffer(body, dtype="<i8")
    ends, suffix_of, offsets, sizes = np.split(numbers, len(keys) + members * np.arange(3))
    return Index(keys, header["suffixes"], ends, suffix_of, offsets, sizes, header["facts"], tuple(header["damage"]))


def open_tar(tar: Path) -> Any:
    """Opens `tar` for reading. Raises UserError instead of OSError."""
    try:
        return open(tar, "rb")
    except OSError as error:
        raise UserError(f"{tar}: cannot open the shard ({error.strerror}); write it again or fix the path") from error


def scan_members(fd: int, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yields `(name, data offset, size)` for every complete regular file of a tar: USTAR, GNU long names, PAX.

    Appends a line to `damage` for a damaged header, at which Python's `tarfile` stops silently, for a truncated file, and
    for each member that is not a file (links, devices), which is never followed. For joined tars (`cat a.tar b.tar`), reads
    past the end of the first, where other readers stop, and reports that too.
    """
    end, at, long_name, pax = os.fstat(fd).st_size, 0, None, {}  # type: int, int, str | None, dict[str, str]
    closed = False
    while at + BLOCK <= end:
        header = os.pread(fd, BLOCK, at)
        if not any(header):
            closed, marked = True, at
            at = _behind_zeros(fd, at, end)
            if at + BLOCK <= end:
                damage.append(
                    f"byte {marked}: the tar ends, but another follows at byte {at}; most programs read only the first"
                )
            continue
        closed = False
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            damage.append(f"byte {at}: {error}; the rest is not read")
            return
        size = int(pax.get("size", info.size))
        data, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        if data + size > end:
            damage.append(f"byte {data}: {info.name!r} should have {size} bytes, but the tar ends after {end - data}")
            return
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = os.pread(fd, size, data).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            pax = pax_fields(os.pread(fd, size, data))
        elif info.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            name = pax.get("path") or long_name or info.name
            long_name, pax = None, {}
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield name, data, size
            elif info.type != tarfile.DIRTYPE:
                damage.append(f"byte {data - BLOCK}: {name!r} is not a regular file (type {info.type!r}); ignored")
    if not closed:
        damage.append(f"byte {at}: the tar has no end marker; it may be truncated")


def _behind_zeros(fd: int, at: int, end: int) -> int:
    """The offset of the next block that is not all zeros, or `end`."""
    while at < end:
        piece = os.pread(fd, min(1 << 20, end - at), at)
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return at + zeros // BLOCK * BLOCK
        at += len(piece)
    return end


def pax_fields(data: bytes) -> dict[str, str]:
    """The `length key=value` records of a PAX header."""
    fields, at = {}, 0
    while match := re.compile(rb"(\d+) ([^=]+)=").match(data, at):
        length = int(match[1])
        if length <= 0:
            break
        fields[match[2].decode("utf-8", "replace")] = data[match.end() : at + length - 1].decode(
            "utf-8", "surrogateescape"
        )
        at += length
    return fields
