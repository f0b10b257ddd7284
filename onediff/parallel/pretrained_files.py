"""Reads ranges of a Hugging Face model's weight files, in a folder or on the hub: safetensors or PyTorch's own format."""

from __future__ import annotations

import ctypes
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

BAND = 1 << 24
"""Elements copied at a time, so that a large vocabulary is never in memory twice."""

READ_WHOLE = 10**9
"""Largest size in bytes of an old PyTorch file, which cannot be read in parts."""


_POINTER = b"version https://git-lfs."


class File(Protocol):
    """A file of tensors."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""

    def dtype(self, key: str) -> str:
        """The dtype of a tensor by its safetensors name: F32, BF16, …"""

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """The flattened rows `[first, last)` along the first dimension, `[elements]`; for a scalar, its value."""


class SafetensorsFile:
    """A safetensors file, of which only the requested rows are read."""

    def __init__(self, path: str) -> None:
        """Raises UserError if the file is not a safetensors file."""
        from safetensors import SafetensorError, safe_open

        try:
            # Not memory-mapped, because touched pages would count as this process's memory.
            self._file = safe_open(path, "pt", backend="pread")
            self._slices = {key: self._file.get_slice(key) for key in self._file.offset_keys()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not readable as safetensors: {error}; download it again") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `File`."""
        return {key: tuple(stored.get_shape()) for key, stored in self._slices.items()}

    def dtype(self, key: str) -> str:
        """See `File`."""
        return self._slices[key].get_dtype()

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """See `File`."""
        stored = self._slices[key]
        return (stored[first:last] if stored.get_shape() else self._file.get_tensor(key)).reshape(-1)


class TorchFile:
    """A file written by `torch.save`, memory-mapped so that only the needed pages are read.

    Unpickles only tensors and plain containers, never code.
    """

    def __init__(self, path: str) -> None:
        """Raises UserError if the file is not such a file, or is large and could only be read whole."""
        mapped = is_zipfile(path)
        size = Path(path).stat().st_size
        if not mapped and size > READ_WHOLE:
            raise UserError(
                f"{path}: written by PyTorch before 1.6, in a format that can only be read whole ({size / 1e9:.1f} GB in "
                "every process); rewrite it once: python -c 'import sys, torch; f = sys.argv[1]; "
                f"torch.save(torch.load(f, weights_only=True), f)' {path}"
            )
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: not readable as PyTorch weights: {first}; download it again") from None
        if not isinstance(stored, dict):
            raise UserError(f"{path}: contains a {type(stored).__name__}, not weights by name")
        self._tensors = {key: tensor for key, tensor in stored.items() if isinstance(tensor, torch.Tensor)}
        self._mapped = mapped

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `File`."""
        return {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def dtype(self, key: str) -> str:
        """See `File`."""
        dtype = self._tensors[key].dtype
        return DTYPES.get(dtype, str(dtype))

    def rows(self, key: str, first: int, last: int) -> torch.Tensor:
        """See `File`."""
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
    """Releases the pages that reading `mapped` loaded, which would count as this process's memory."""
    span = sum((size - 1) * stride for size, stride in zip(mapped.shape, mapped.stride(), strict=True)) + 1
    first = mapped.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = mapped.data_ptr() + span * mapped.element_size() - first
    if mapped.numel():
        # The pages are unmodified, so reading them again returns the same data.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


class PretrainedFiles:
    """All weight files of a model: the names of its tensors, and ranges of each."""

    def __init__(self, name: str, revision: str | None = None) -> None:
        """Finds the files of `name`, a folder or hub id.

        Raises UserError if there are none, or if a file in the index is missing.
        """
        self.name = name
        self._open: dict[str, File] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The shape of each tensor."""
        for path in weight_files(name, revision):
            if is_pointer(path):
                raise UserError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
            self._open[path] = SafetensorsFile(path) if path.endswith(".safetensors") else TorchFile(path)
            found = self._open[path].shapes()
            self.shapes |= found
            self._file_of |= dict.fromkeys(found, path)

    def dtype(self, key: str) -> str:
        """The dtype of a tensor by its safetensors name: F32, BF16, …"""
        return self._open[self._file_of[key]].dtype(key)

    def rows(self, key: str, count: int) -> torch.Tensor:
        """The flattened first rows of a tensor, at most `count`."""
        return self._open[self._file_of[key]].rows(key, 0, count)

    def whole(self, key: str) -> torch.Tensor:
        """A whole tensor."""
        shape = self.shapes[key]
        return self.rows(key, shape[0] if shape else 1).view(shape)

    def fill(self, key: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the tensor `key` into the flat tensor `target`, reading only the needed rows."""
        file, shape = self._open[self._file_of[key]], self.shapes[key]
        if not shape:
            target.copy_(file.rows(key, 0, 1))
            return
        # The file returns whole rows along the first dimension, so read those that overlap the piece.
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
    """The local paths of a model's weight files, downloaded if `name` is on the hub.

    Raises UserError if there are none, or if a file in the index is missing.
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
                raise UserError(f"{name}: {file} is missing, although {form} lists it")
        return [there for there in found.values() if there is not None]
    if Path(name).is_dir():
        raise UserError(f"{name}: has neither {', '.join(WEIGHTS[:-1])} nor {WEIGHTS[-1]}")
    raise UserError(
        f"{name}: no weights on the hub or in its cache ({', '.join(WEIGHTS)}); "
        "if this machine cannot reach the hub, run `onediff fetch CONFIG` beforehand"
    )


def model_file(name: str, file: str, revision: str | None) -> str | None:
    """The local path of one file of a model, downloaded if it is on the hub, or None."""
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
