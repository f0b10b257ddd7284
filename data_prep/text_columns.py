"""Processes columns of text as bytes: answers a plan's questions about all cells without a Python object for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Numbers = NDArray[np.int64]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio, as in Knuth's multiplicative hashing; odd, so that multiplication is invertible."""
AT_ONCE = 1 << 14
"""Cells hashed together, few enough for the caches."""
BAD, WORD, MARK, SLASH = range(4)
DASHED = np.arange(256, dtype=np.uint8)
"""Maps each byte to itself, but a slash to a dash."""
DASHED[ord("/")] = ord("-")
KINDS = np.zeros(256, dtype=np.uint8)
"""Classes of bytes in a plain path."""
KINDS[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] = WORD
KINDS[list(b".-")] = MARK
KINDS[list(b"/")] = SLASH


def ends_and_bytes(column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The ends of cells, `[cells + 1]` starting with 0, and the bytes of a column of strings without nulls."""
    ends = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    data = column.buffers()[2]
    if data is None or not len(column):
        return np.zeros(len(column) + 1, dtype=np.int32), np.zeros(0, dtype=np.uint8)
    return ends - ends[0], np.frombuffer(data, dtype=np.uint8)[int(ends[0]) : int(ends[-1])]


def are_plain_paths(column: pa.Array, shortest: int) -> bool:
    """Whether every cell has that many bytes, and is a path of ASCII words: `[a-z0-9_]` first, `.` and `-` within."""
    if column.null_count:
        return False
    ends, data = ends_and_bytes(column)
    if not len(data) or np.diff(ends).min() < max(shortest, 1):
        return False
    kinds = KINDS[data]
    begins = np.concatenate([ends[:-1], np.flatnonzero(kinds[:-1] == SLASH) + 1])
    return bool(kinds.all() and (kinds[begins] == WORD).all() and (kinds[ends[1:] - 1] != SLASH).all())


def first_bytes(column: pa.Array) -> NDArray[np.uint8]:
    """The first byte of each cell of a column without nulls; 0 if it is empty."""
    ends, data = ends_and_bytes(column)
    found = np.zeros(len(column), dtype=np.uint8)
    filled = ends[1:] > ends[:-1]
    found[filled] = data[ends[:-1][filled]]
    return found


def codes(column: pa.Array) -> Numbers:
    """A number from 0 on for each cell, the same for equal texts only; -1 for nulls.

    Costs 0.1 µs per cell: hashes are sorted, and only cells with the same hash are compared.
    """
    import pyarrow.compute as pc

    found = np.full(len(column), -1, dtype=np.int64)
    is_text = (
        column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else np.ones(len(column), dtype=bool)
    )
    texts = column.drop_null() if column.null_count else column
    if not len(texts):
        return found
    hashes = _hashes(texts)
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same) and not pc.all(pc.equal(texts.take(order[same]), texts.take(order[same + 1]))).as_py():
        found[is_text] = texts.dictionary_encode().indices.to_numpy()  # two texts with the same hash
        return found
    is_new = np.ones(len(order), dtype=np.int64)
    is_new[0], is_new[same + 1] = 0, 0
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(is_new)
    found[is_text] = numbers
    return found


def are_different(column: pa.Array) -> bool:
    """Whether all cells of a column without nulls differ; very rarely False although they do."""
    return _are_different(_hashes(column))


def have_different_ids(before: pa.ChunkedArray, after: pa.ChunkedArray) -> bool:
    """Whether the default ids of pairs with these plain paths certainly differ, without computing them.

    A default id joins the paths, without their suffixes, with a dash, and replaces some slashes by dashes. Replace all
    slashes by dashes: if all paths of a column have the same suffix and number of dashes, only equal paths give equal ids.
    """
    hashes = [_dashed_hashes(paths) for paths in (before, after)]
    if hashes[0] is None or hashes[1] is None:
        return False
    return _are_different((hashes[0] * MULTIPLIER) ^ hashes[1])


def _dashed_hashes(paths: pa.ChunkedArray) -> NDArray[np.uint64] | None:
    """A hash of each path with dashes for slashes; None unless all have the same suffix and number of dashes."""
    found, suffix, dashes = [], None, None
    for chunk in paths.chunks:
        ends, data = ends_and_bytes(chunk)
        if not len(data):
            return None
        if suffix is None:
            first = bytes(data[: ends[1]])
            suffix = np.frombuffer(first[first.rfind(b".") :], np.uint8) if b"." in first else data[:0]
            if not len(suffix) or (KINDS[suffix[1:]] != WORD).any():
                return None
        if np.diff(ends).min() <= len(suffix):
            return None
        for place, byte in enumerate(suffix, -len(suffix)):
            if (data[ends[1:] + place] != byte).any():
                return None
        dashed = DASHED[data]
        places = np.flatnonzero(dashed == ord("-"))
        dashes = len(places) // len(chunk) if dashes is None else dashes
        if len(places) != dashes * len(chunk):
            return None
        of_cell = places.reshape(len(chunk), dashes)
        if dashes and ((of_cell[:, 0] < ends[:-1]).any() or (of_cell[:, -1] >= ends[1:]).any()):
            return None
        found.append(_hashed(ends, dashed))
    return np.concatenate(found)


def _are_different(hashes: NDArray[np.uint64]) -> bool:
    ordered = np.sort(hashes)
    return not bool((ordered[1:] == ordered[:-1]).any())


def _hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """A hash of each cell."""
    found = np.empty(len(texts), dtype=np.uint64)
    for at in range(0, len(texts), AT_ONCE):
        found[at : at + AT_ONCE] = _hashed(*ends_and_bytes(texts.slice(at, AT_ONCE)))
    return found


def _hashed(ends: NDArray[np.int32], data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hashes made of eight bytes at a time."""
    words, left = _words(data), np.diff(ends).astype(np.int64)
    hashes = left.astype(np.uint64)
    for at in range(0, int(left.max()), 8):
        longer = np.flatnonzero(left > at)
        mixed = (hashes[longer] ^ _cut(words[ends[longer] + at], left[longer] - at)) * MULTIPLIER
        hashes[longer] = mixed ^ (mixed >> np.uint64(32))
    return hashes


def _words(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The eight bytes from each place on; zeros follow the last."""
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    return np.ndarray((len(data) + 1,), "<u8", padded.data, strides=(1,))


def _cut(words: NDArray[np.uint64], left: NDArray[np.int64]) -> NDArray[np.uint64]:
    """`words` with all but their first `left` bytes cleared."""
    return words << (np.maximum(8 - left, 0).astype(np.uint64) * np.uint64(8))
