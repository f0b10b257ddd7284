"""Errors that all ranks raise together: a rank that failed alone would leave the others waiting in their next collective."""

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
    """A block that succeeds or fails on every rank; it must not contain a collective.

    When any rank raises UserError or OSError inside, every rank raises the fault of the lowest such rank, as UserError.
    Without a fault it costs the sum of one number.
    """
    fault: str | None = None
    try:
        yield
    except (UserError, OSError) as error:
        fault = str(error)
    if (first := first_of(fault)) is not None:
        raise UserError(first)


def first_of(text: str | None) -> str | None:
    """The `text` of the lowest rank that has one, on every rank; None if none has. Texts are sent only if there are any."""
    if not dist.is_initialized():
        return text
    texts = torch.tensor(int(text is not None))
    dist.all_reduce(texts, op=dist.ReduceOp.MAX)
    if text is None and not int(texts):
        return None
    return next((one for one in gathered(text) if one is not None), None)


def gathered(value: object) -> list:
    """`value` of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gathered_by_rank_zero(value: object) -> list:
    """`value` of every rank, in rank order, on rank 0; an empty list on the others."""
    if not dist.is_initialized():
        return [value]
    values: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def gathered_by_owners(rows: torch.Tensor, items: Sequence[int] | None = None) -> torch.Tensor:
    """Of every rank's `rows` `[all items, columns]` those of the items that are this rank's, `[ranks, own items, columns]`.

    `items` says how many of them, in order, are whose; by default all ranks have equally many, so that each receives about
    as much as it sends, however many ranks there are.
    """
    if not dist.is_initialized():
        return rows[None]
    rank, world = dist.get_rank(), dist.get_world_size()
    items = shares(len(rows), world) if items is None else list(items)
    received = rows.new_empty(world * items[rank], rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), [items[rank]] * world, items)
    return received.view(world, items[rank], rows.shape[1])


def bytes_by_rank_zero(content: bytes) -> list[bytes]:
    """`content` of every rank, in rank order, on rank 0; an empty list on the others. Sends as much as the longest is."""
    if not dist.is_initialized():
        return [content]
    longest = torch.tensor(len(content))
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    row = len(content).to_bytes(8, "little") + content.ljust(int(longest), b"\0")
    sent = torch.frombuffer(bytearray(row), dtype=torch.uint8)[None]
    received = gathered_by_owners(sent, [1] + [0] * (dist.get_world_size() - 1))
    return split_rows(received.numpy().tobytes(), len(row))


def split_rows(received: bytes, width: int) -> list[bytes]:
    """Rows of `width` bytes, of which the first eight say how many of the others count."""
    rows = np.frombuffer(received, dtype=np.uint8).reshape(-1, width)
    lengths = np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].tolist()
    return [received[begin : begin + length] for begin, length in zip(count(8, width), lengths, strict=False)]


def shares(items: int, ranks: int) -> list[int]:
    """How many items each rank gets when they are shared out evenly."""
    return [items * (rank + 1) // ranks - items * rank // ranks for rank in range(ranks)]


def from_rank_zero(value: object) -> object:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
