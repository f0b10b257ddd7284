"""Writes safetensors files one tensor at a time, without copies in memory, and computes their checksums on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

# The format's names, from https://github.com/huggingface/safetensors (README, "Format").
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Hugging Face's names for a single weight file, and for the index of several files."""


class Entry(NamedTuple):
    """A tensor to write: its name, dtype and shape, and a function that returns it."""

    name: str
    dtype: torch.dtype
    shape: Sequence[int]
    read: Callable[[], torch.Tensor]


class Written(NamedTuple):
    """The size of a finished file in bytes, and its SHA-256."""

    bytes: int
    sha256: str


def write_safetensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> Written:
    """Writes `entries` to `path` in order, and flushes to disk. Holds one tensor at a time in CPU memory."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        begin, end = end, end + prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            file.write(piece)
        for entry in entries:
            tensor = entry.read().detach()
            assert tensor.dtype == entry.dtype and tensor.numel() == prod(entry.shape), entry.name
            data = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Written(8 + len(text) + end, digest.hexdigest())


def in_library_order(entries: Sequence[Entry]) -> list[Entry]:
    """The order in which the safetensors library writes tensors: by decreasing item size, then by name."""
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))


def write_model(folder: Path, entries: Sequence[Entry], shard_bytes: int) -> list[Path]:
    """Writes `entries` as Hugging Face does: one file, or several of at most `shard_bytes` with an index."""
    shards: list[list[Entry]] = [[]]
    total = size = 0
    for entry in in_library_order(entries):
        bytes_ = prod(entry.shape) * entry.dtype.itemsize
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += bytes_
        total += bytes_
    if len(shards) == 1:
        names = [SINGLE]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, {"format": "pt"})
        files |= {entry.name: name for entry in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [folder / name for name in names]
