"""The part of a full parameter that a rank holds, and the overlap of two such parts.

Tensor parallelism splits a parameter along one dimension into blocks; ZeRO then splits the flattened block into ranges. View
the parameter as a matrix whose rows are all dimensions before the split one. A block is then a band of columns, and a range
of the flattened band is at most three rectangles: the end of a row, whole rows, the start of a row. So any part can be
copied from any other, whatever the two topologies are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from onediff.zero.parameters import full_shape


@dataclass(frozen=True)
class Block:
    """The part `[start, start + size)` along `dim` of a parameter whose full shape is `shape` (without any padding).

    A block may extend beyond the full shape along dimension 0, as a padded vocabulary does; that part is never stored.
    """

    shape: tuple[int, ...]
    dim: int
    start: int
    size: int

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Block:
        """The block that covers the full parameter."""
        return cls(tuple(shape), 0, 0, shape[0] if len(shape) else 1)

    @property
    def is_whole(self) -> bool:
        """Whether the block is the full parameter."""
        return not self.shape or (self.start == 0 and self.size >= self.shape[self.dim])

    @property
    def inner(self) -> int:
        """Elements per index of the split dimension."""
        return prod(self.shape[self.dim + 1 :])

    @property
    def width(self) -> int:
        """Elements per row of the band."""
        return self.size * self.inner

    @property
    def real(self) -> int:
        """Elements of the flattened block that exist in the full parameter; the padding lies after them."""
        inside = max(0, min(self.start + self.size, self.shape[self.dim]) - self.start) if self.shape else 1
        assert inside == self.size or self.dim == 0, "only the first dimension can be padded"
        return prod(self.shape[: self.dim]) * inside * self.inner


def block_of(parameter: torch.nn.Parameter) -> Block:
    """The block of `parameter`: the one that tensor parallelism recorded, else the whole parameter."""
    block = getattr(parameter, "block", None)
    return block or Block.whole(full_shape(parameter))


class BlockRange(NamedTuple):
    """The range `[offset, offset + length)` of a flattened block."""

    block: Block
    offset: int
    length: int


class _Rectangle(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int
    position: int  # of its first element within the piece
    stride: int  # elements between its rows


def _rectangles(piece: BlockRange) -> Iterator[_Rectangle]:
    width, band = piece.block.width, piece.block.start * piece.block.inner
    at, end = piece.offset, piece.offset + piece.length
    while at < end:
        row, column = divmod(at, width)
        whole = column == 0 and end - at >= width
        rows = (end - at) // width if whole else 1
        taken = rows * width if whole else min(end - at, width - column)
        right = width if whole else column + taken
        yield _Rectangle(row, row + rows, band + column, band + right, at - piece.offset, width)
        at += taken


class Overlap(NamedTuple):
    """`rows` × `columns` elements that two pieces share, with their start and row stride in each."""

    rows: int
    columns: int
    source_start: int
    source_stride: int
    target_start: int
    target_stride: int

    @property
    def source_length(self) -> int:
        """Length of the source range that contains the overlap."""
        return (self.rows - 1) * self.source_stride + self.columns

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies the overlap into the flat tensor `target` of the target piece.

        `source` is the range `[source_start, source_start + source_length)` of the source piece.
        """
        shape = (self.rows, self.columns)
        into = target.as_strided(shape, (self.target_stride, 1), target.storage_offset() + self.target_start)
        into.copy_(source.as_strided(shape, (self.source_stride, 1), source.storage_offset()))


def overlaps(source: BlockRange, target: BlockRange) -> Iterator[Overlap]:
    """The rectangles that `source` and `target` share; both are pieces of the same full parameter."""
    # If only one of the two is split, both are viewed along its split dimension.
    if source.block.dim != target.block.dim:
        source, target = _in_common_rows(source, target)
    for a in _rectangles(source):
        for b in _rectangles(target):
            top, bottom = max(a.top, b.top), min(a.bottom, b.bottom)
            left, right = max(a.left, b.left), min(a.right, b.right)
            if top < bottom and left < right:
                yield Overlap(
                    bottom - top,
                    right - left,
                    a.position + (top - a.top) * a.stride + left - a.left,
                    a.stride,
                    b.position + (top - b.top) * b.stride + left - b.left,
                    b.stride,
                )


def _in_common_rows(source: BlockRange, target: BlockRange) -> tuple[BlockRange, BlockRange]:
    """Both pieces along the same dimension: the piece with the whole parameter adopts the other's dimension."""

    def along(piece: BlockRange, dim: int) -> BlockRange:
        block = piece.block
        assert block.is_whole, "cut along two different dimensions"
        return piece._replace(block=Block(block.shape, dim, 0, block.shape[dim]))

    if source.block.is_whole:
        return along(source, target.block.dim), target
    return source, along(target, source.block.dim)
