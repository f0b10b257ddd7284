"""Errors raised on all ranks together, so that no rank waits forever in a collective; and gathers of small values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import numpy as np
import torch
import torch.distributed as dist

from onediff.errors import UserError


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """A context that succeeds or fails on every rank. The block must not contain collectives.

    If any rank raises UserError or OSError in it, every rank raises the error of the lowest such rank, as UserError.
    Otherwise it costs an all-reduce of one number.
    """
    fault: str | None = None
    try:
        yield
    except (UserError, OSError) as error:
        fault = str(error)
    if (first := first_of(fault)) is not None:
        raise UserError(first)


def first_of(text: str | None) -> str | None:
    """On every rank, the `text` of the lowest rank that has one, or None. Texts are sent only if there are any."""
    if not dist.is_initialized():
        return text
    texts = torch.tensor(int(text is not None))
    dist.all_reduce(texts, op=dist.ReduceOp.MAX)
    if text is None and not int(texts):
        return None
    return next((one for one in gathered(text) if one is not None), None)


def gathered(value: object) -> list:
    """On every rank, the `value` of every rank in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gathered_by_rank_zero(value: object) -> list:
    """On rank 0, the `value` of every rank in rank order; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    values: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def gathered_by_owners(rows: torch.Tensor, items: Sequence[int] | None = None) -> torch.Tensor:
    """Collects this rank's items from every rank's `rows`, `[all items, columns]`: `[ranks, own items, columns]`.

    `items` holds the number of items that each rank owns, in order. By default they are divided evenly, so each rank
    receives about as much as it sends, for any number of ranks.
    """
    if not dist.is_initialized():
        return rows[None]
    rank, world = dist.get_rank(), dist.get_world_size()
    items = shares(len(rows), world) if items is None else list(items)
    received = rows.new_empty(world * items[rank], rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), [items[rank]] * world, items)
    return received.view(world, items[rank], rows.shape[1])


def bytes_by_rank_zero(content: bytes) -> list[bytes]:
    """On rank 0, the `content` of every rank in rank order; an empty list on the others. Pads to the longest."""
    if not dist.is_initialized():
        return [content]
    longest = torch.tensor(len(content))
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    row = len(content).to_bytes(8, "little") + content.ljust(int(longest), b"\0")
    sent = torch.frombuffer(bytearray(row), dtype=torch.uint8)[None]
    received = gathered_by_owners(sent, [1] + [0] * (dist.get_world_size() - 1))
    return split_rows(received.numpy().tobytes(), len(row))


def split_rows(received: bytes, width: int) -> list[bytes]:
    """Splits rows of `width` bytes, each starting with the length of its content in eight bytes."""
    rows = np.frombuffer(received, dtype=np.uint8).reshape(-1, width)
    lengths = np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].tolist()
    return [received[begin : begin + length] for begin, length in zip(count(8, width), lengths, strict=False)]


def shares(items: int, ranks: int) -> list[int]:
    """The number of items of each rank if they are divided evenly."""
    return [items * (rank + 1) // ranks - items * rank // ranks for rank in range(ranks)]


def from_rank_zero(value: object) -> object:
    """On every rank, the `value` of rank 0."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
