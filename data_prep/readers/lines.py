"""Parses JSONL by column. Ordinary rows need no Python objects, which takes a tenth of the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 1 << 21
OPENING, CLOSING, LINE = b"{}\n"


def line_pieces(path: Path) -> Iterator[bytes]:
    """The file in pieces of about two megabytes that end at line ends."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece + file.readline()


def parsed_lines(piece: bytes) -> tuple[pa.Array, pa.Table] | None:
    """The rows of complete lines, as text and by column.

    None unless every line is exactly one JSON object, in UTF-8, with the values that json.loads would give.
    """
    import pyarrow as pa
    from pyarrow import ArrowException, json

    if b"\r" in piece:
        return None  # a line end for Python, but not for pyarrow
    data = np.frombuffer(piece, dtype=np.uint8)
    breaks = np.flatnonzero(data == LINE)
    ends = breaks if piece.endswith(b"\n") else np.append(breaks, len(data))
    begins = np.concatenate([[0], ends[:-1] + 1])
    if (ends <= begins).any() or (data[begins] != OPENING).any() or (data[ends - 1] != CLOSING).any():
        return None
    try:
        columns = json.read_json(pa.BufferReader(piece), json.ReadOptions(use_threads=False, block_size=len(piece) + 1))
    except (ArrowException, UnicodeDecodeError):
        return None
    if len(columns) != len(ends):
        return None  # two objects in one line
    kept = np.ones(len(data), dtype=bool)
    kept[breaks] = False
    offsets = np.concatenate([[0], ends - np.arange(len(ends))]).astype(np.int32)
    text = pa.Array.from_buffers(
        pa.string(), len(ends), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data[kept].tobytes())]
    )
    return text, columns


def are_exact(schema: pa.Schema) -> bool:
    """Whether columns of these types have the values of json.loads: strings, integers, lists of strings, null.

    pyarrow turns text that looks like a date into one, and integers in a column with fractions into floats.
    """
    import pyarrow as pa

    plain = (pa.string(), pa.int64(), pa.null(), pa.list_(pa.string()), pa.list_(pa.null()))
    return bool(schema.types) and all(any(kind.equals(one) for one in plain) for kind in schema.types)
