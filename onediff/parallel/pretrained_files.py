"""The weight files of a Hugging Face model, in a folder or on the hub, read by ranges: safetensors, or PyTorch's own."""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol
from zipfile import is_zipfile

import torch

from onediff.errors import UserError
from onediff.hub.files import WEIGHTS, shards
from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.parallel.safetensors_writer import DTYPES

log = logging.getLogger(__name__)

BAND = 1 << 24
"""Elements that are copied at a time, so that a large vocabulary is never held twice."""

READ_WHOLE = 10**9
"""Bytes of an old PyTorch file, which cannot be read in parts, that a process may hold beside its share."""


_POINTER = b"version https://git-lfs."


class File(Protocol):
    """One file of tensors."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""

    def dtype(self, key: str) -> str:
        """The type of its numbers, as safetensors calls it: F32, BF16, …"""

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """The rows `[first, last)` along the first dimension, `[elements]`; of a tensor without dimensions, its number."""


class SafetensorsFile:
    """A safetensors file; only the requested rows are read."""

    def __init__(self, path: str) -> None:
        """Raises UserError for a file that is not such."""
        from safetensors import SafetensorError, safe_open

        try:
            # Not mapped: pages of a mapped file that were touched would count as this process's memory.
            self._file = safe_open(path, "pt", backend="pread")
            self._slices = {key: self._file.get_slice(key) for key in self._file.offset_keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not readable as safetensors: {error}; download it again") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {key: tuple(stored.get_shape()) for key, stored in self._slices.items()}

    def dtype(self, key: str) -> str:
        """The type of its numbers, as safetensors calls it."""
        return self._slices[key].get_dtype()

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """The rows `[first, last)` along the first dimension, `[elements]`."""
        stored = self._slices[key]
        return (stored[first:last] if stored.get_shape() else self._file.get_tensor(key)).reshape(-1)


class TorchFile:
    """A file that `torch.save` wrote, mapped into memory: only the needed pages are read.

    Only tensors and plain containers are unpickled, never code.
    """

    def __init__(self, path: str) -> None:
        """Raises UserError for a file that is not such, or could only be read whole."""
        mapped = is_zipfile(path)
        size = Path(path).stat().st_size
        if not mapped and size > READ_WHOLE:
            raise UserError(
                f"{path}: written by PyTorch before 1.6, a format that can only be read whole ({size / 1e9:.1f} GB in every "
                "process); rewrite it once: python -c 'import sys, torch; f = sys.argv[1]; "
                f"torch.save(torch.load(f, weights_only=True), f)' {path}"
            )
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not readable as PyTorch weights: {first}; download it again") from None
        if not isinstance(stored, dict):
            raise UserError(f"{path}: holds a {type(stored).__name__}, not weights by name")
        self._tensors = {key: tensor for key, tensor in stored.items() if isinstance(tensor, torch.Tensor)}
        self._mapped = mapped

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def dtype(self, key: str) -> str:
        """The type of its numbers, as safetensors calls it."""
        dtype = self._tensors[key].dtype
        return DTYPES.get(dtype, str(dtype))

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """The rows `[first, last)` along the first dimension, `[elements]`."""
        tensor = self._tensors[key].detach()
        if not tensor.ndim:
            return tensor.reshape(1)
        rows = tensor[first:last]
        if not self._mapped:
            return rows.reshape(-1)
        copied = torch.empty(rows.shape, dtype=rows.dtype).copy_(rows)
        _let_go(rows)
        return copied.view(-1)


def _let_go(mapped: torch.Tensor) -> None:
    """Gives back the pages of a mapped file that reading `mapped` brought in, which count as this process's memory."""
    span = sum((size - 1) * stride for size, stride in zip(mapped.shape, mapped.stride(), strict=True)) + 1
    first = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = mapped.data_ptr() + span * mapped.element_size() - first
    if mapped.numel():
        # The pages are as the file has them, so the next one to read them finds the same.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


class PretrainedFiles:
    """The weight files of a model as one: the names of its tensors, and ranges of each."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Finds the files of the folder or hub id `name`. Raises UserError when there are none, or when one in its index
        is missing."""
        self.name = name
        self._open: dict[str, File] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """of every tensor"""
        for path in weight_files(name, revision):
            if is_pointer(path):
                raise UserError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
            self._open[path] = SafetensorsFile(path) if path.endswith(".safetensors") else TorchFile(path)
            found = self._open[path].shapes()
            self.shapes |= found
            self._file_of |= dict.fromkeys(found, path)

    def dtype(self, key: str) -> str:
        """The type of the numbers of a tensor, as safetensors calls it: F32, BF16, …"""
        return self._open[self._file_of[key]].dtype(key)

    def rows(self, key: str, count: int) -> torch.Tensor:
        """The first rows of a tensor, at most `count`, laid end to end."""
        return self._open[self._file_of[key]].rows(key, 0, count)

    def whole(self, key: str) -> torch.Tensor:
        """A whole tensor."""
        shape = self.shapes[key]
        return self.rows(key, shape[0] if shape else 1).view(shape)

    def fill(self, key: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the tensor `key` into the flat tensor `target`; reads the rows that it needs."""
        file, shape = self._open[self._file_of[key]], self.shapes[key]
        if not shape:
            target.copy_(file.rows(key, 0, 1))
            return
        # The file gives whole rows along the first dimension: take those that the piece touches.
        row = Block.whole(shape).inner
        for part, into in _bands(piece, target):
            for overlap in overlaps(BlockRange(Block.whole(shape), 0, row * shape[0]), part):
                first, last = overlap.source_start, overlap.source_start + overlap.source_length
                top, bottom = first // row, -(-last // row)
                rows = file.rows(key, top, bottom)
                overlap.copy(rows.narrow(0, first - top * row, last - first), into)


def _bands(piece: BlockRange, target: torch.Tensor) -> Iterator[tuple[BlockRange, torch.Tensor]]:
    for start in range(0, piece.length, BAND):
        length = min(BAND, piece.length - start)
        yield BlockRange(piece.block, piece.offset + start, length), target.narrow(0, start, length)


def weight_files(name: str, revision: str | None = None) -> list[str]:
    """The local paths of a model's weight files, fetched where `name` is on the hub.

    Raises UserError when there are none or one that the index names is missing.
    """
    for form in WEIGHTS:
        path = model_file(name, form, revision)
        if path is None:
            continue
        if not form.endswith(".json"):
            return [path]
        found = {file: model_file(name, file, revision) for file in shards(Path(path))}
        for file, there in found.items():
            if there is None:
                raise UserError(f"{name}: {file} is missing, although {form} names it")
        return [there for there in found.values() if there is not None]
    if Path(name).is_dir():
        raise UserError(f"{name}: has neither {', '.join(WEIGHTS[:-1])} nor {WEIGHTS[-1]}")
    raise UserError(
        f"{name}: no weights on the hub or in its cache ({', '.join(WEIGHTS)}); "
        "where the hub cannot be reached, `onediff fetch CONFIG` brings them beforehand"
    )


def model_file(name: str, file: str, revision: str | None) -> str | None:
    """The local path of one file of a model, downloaded when it is on the hub; None when it has none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"{name}: {file} cannot be fetched: {str(error).splitlines()[0]}") from None


def is_pointer(path: str) -> bool:
    """Whether a file is a Git LFS pointer, as in a clone without Git LFS."""
    with open(path, "rb") as file:
        return file.read(len(_POINTER)) == _POINTER
