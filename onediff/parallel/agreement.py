"""Errors that all ranks raise together: a rank that failed alone would leave the others waiting in their next collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from onediff.errors import UserError


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """A block that succeeds or fails on every rank; it must not contain a collective.

    When any rank raises UserError or OSError inside, every rank raises the fault of the lowest such rank, as UserError.
    """
    fault: str | None = None
    try:
        yield
    except (UserError, OSError) as error:
        fault = str(error)
    faults = gathered(fault)
    first = next((text for text in faults if text is not None), None)
    if first is not None:
        raise UserError(first)


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


def from_rank_zero(value: object) -> object:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
