"""Loads sub-groups of ZeRO-3 that are in files between steps, one at a time.

DeepSpeed swaps sub-groups of a megabyte or more: their fp32 weights and moments are empty tensors until the optimizer loads
them. A checkpoint also loads one sub-group at a time, so it needs no more memory than a step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def is_swapped(engine: Any, group: int) -> bool:
    """Whether the sub-group `group` of a ZeRO-3 engine is in files between steps."""
    return bool(engine.optimizer._swappable_optimizer_subgroup(group))


class Swapped(AbstractContextManager["Swapped"]):
    """A context in which swapped sub-groups of an engine can be loaded. Does nothing for an engine without any.

    With `changes`, they are written back.
    """

    def __init__(self, engine: Any, *, changes: bool) -> None:
        self._zero = engine.optimizer
        self._changes = changes
        self._inside: int | None = None

    def bring(self, group: int | None) -> None:
        """Loads a sub-group, replacing the loaded one; None is always in memory."""
        if group is None or group == self._inside:
            return
        self._let_go()
        self._zero._optimizer_states_and_gradient_swap_in(group)
        self._inside = group

    def _let_go(self) -> None:
        group, self._inside = self._inside, None
        if group is None:
            return
        if self._changes:
            self._zero._optimizer_states_and_gradient_swap_out(group)
        else:
            self._zero._release_swap_buffers(group)

    def __exit__(self, *_: object) -> None:
        self._let_go()
