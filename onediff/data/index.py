"""Where every sample of a tar shard lies, so that any one of them can be read by `pread` without reading the others.

An index lies beside its shard as `<shard>.tar.index`: one line of JSON (facts about the tar, suffixes, keys) and four
little-endian int64 columns. It is rebuilt from the tar when missing or stale; a tar that ends early or is damaged in
the middle gives an index of its whole samples and a line in `damage`.
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
# As webdataset splits names: the key ends at the first dot of the file's own name.
NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


class Member(NamedTuple):
    """One file of a sample: its suffix in lower case (`before.jpg`), and where its bytes lie in the tar."""

    suffix: str
    offset: int
    size: int


class SampleSpan(NamedTuple):
    """Where one sample lies."""

    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Index:
    """The samples of one shard in tar order; `index[i]` and iteration give `SampleSpan`s.

    `ends [samples]` are cumulative member counts; `suffix_of`, `offsets`, `sizes` are `[members]`.
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
        """Where the files of sample `i` lie."""
        here = range(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        return tuple(Member(self.suffixes[self.suffix_of[m]], int(self.offsets[m]), int(self.sizes[m])) for m in here)

    def without_keys(self) -> Index:
        """The same for `members` alone, in as little memory as it takes: 4 bytes a sample and 13 a file."""
        return replace(
            self,
            keys=[],
            ends=self.ends.astype(np.int32),
            suffix_of=self.suffix_of.astype(np.uint8 if len(self.suffixes) < 256 else np.int32),
            sizes=self.sizes.astype(np.uint32 if self.sizes.max(initial=0) < 1 << 32 else np.int64),
        )


def read_sample(fd: int, span: SampleSpan) -> dict[str, bytes]:
    """The bytes of one sample by suffix, from an open tar. Raises `BadSample("truncated", …)` where the tar ends early.

    One `pread` where the members lie together, which is how writers put them; one each otherwise.
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
    """The index beside `tar`, rebuilt (and stored, where `write` and the folder allow) when missing or stale.

    Raises UserError when the tar itself is missing.
    """
    # An index that is missing, of another version or cut short is no fault: the tar is what counts.
    with contextlib.suppress(OSError, KeyError, ValueError):
        index = load_index(index_path(tar))
        if index.facts == tar_facts(tar, index.facts["last_header"]):
            return index
    index = build_index(tar)
    if write:
        # A read-only data set is read all the same; the index then lives in memory.
        with contextlib.suppress(OSError):
            save_index(index, index_path(tar))
    return index


def build_index(tar: Path) -> Index:
    """Reads every header of `tar` once. Raises UserError when the tar is missing."""
    damage: list[str] = []
    with open_tar(tar) as file:
        members = list(scan_members(file.fileno(), damage))
    return index_of(tar, members, damage)


def index_of(tar: Path, members: Iterable[tuple[str, int, int]], damage: Iterable[str] = ()) -> Index:
    """The index of `tar` from `(name, data offset, size)` of its files in tar order.

    Files of one key belong together even where others lie between them; a key that brings a suffix a second time starts
    a second sample. Names without a suffix and hidden files are left out.
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
    """What tells this tar from another of its name: its size, and checksums of its first and last headers."""
    with open_tar(tar) as file:
        size = os.fstat(file.fileno()).st_size
        ends = [zlib.crc32(os.pread(file.fileno(), BLOCK, at)) for at in (0, last_header)]
    return {"bytes": size, "last_header": last_header, "first_crc": ends[0], "last_crc": ends[1]}


def save_index(index: Index, path: Path) -> None:
    """Writes `index` aside and renames it."""
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
    """Reads an index file. Raises ValueError or KeyError when it is not one, or not a whole one, of this version."""
    line, _, body = path.read_bytes().partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    if not isinstance(header, dict) or header.get("onediff_index") != VERSION:
        raise ValueError(f"{path}: not an index of version {VERSION}")
    keys, members = header["keys"], header["members"]
    if len(body) != 8 * (len(keys) + 3 * members):
        raise ValueError(f"{path}: the index is cut short")
    numbers = np.frombuffer(body, dtype="<i8")
    ends, suffix_of, offsets, sizes = np.split(numbers, len(keys) + members * np.arange(3))
    return Index(keys, header["suffixes"], ends, suffix_of, offsets, sizes, header["facts"], tuple(header["damage"]))


def open_tar(tar: Path) -> Any:
    """`tar` opened for reading; raises UserError in place of FileNotFoundError."""
    try:
        return open(tar, "rb")
    except OSError as error:
        raise UserError(
            f"{tar}: the shard cannot be opened ({error.strerror}); write it again or fix the path"
        ) from error


def scan_members(fd: int, damage: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yields `(name, data offset, size)` of every whole regular file of a tar: USTAR, GNU long names, PAX.

    Python's `tarfile` ends silently at a damaged header; this appends a line to `damage` for it, for a file that is cut
    short, and for members that are not files (links, devices), which are never followed. Where tars were joined (`cat
    a.tar b.tar`), it reads past the end of the first, where other readers stop, and a line says so.
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
                    f"byte {marked}: the tar ends, but another follows at byte {at}; most programs read the first alone"
                )
            continue
        closed = False
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            damage.append(f"byte {at}: {error}; what follows is not read")
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
                damage.append(f"byte {data - BLOCK}: {name!r} is not a plain file (type {info.type!r}); left out")
    if not closed:
        damage.append(f"byte {at}: the tar has no end mark; it may be cut short")


def _behind_zeros(fd: int, at: int, end: int) -> int:
    """Where the next block begins that is not all zeros, or `end`."""
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
