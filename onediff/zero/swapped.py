"""Sub-groups of ZeRO-3 that lie in files between steps: brought into memory one at a time.

DeepSpeed swaps sub-groups of a megabyte or more: fp32 weights and moments are empty tensors until the optimizer comes to
them. A checkpoint does the same, sub-group by sub-group, and so never holds more of them than a step does.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any


def is_swapped(engine: Any, group: int) -> bool:
    """Whether the sub-group `group` of a ZeRO-3 engine lies in files between steps."""
    return bool(engine.optimizer._swappable_optimizer_subgroup(group))


class Swapped:
    """The swapped sub-groups of an engine, in files when the block ends; engines without any are left alone.

    `changes` says that what was put into them is to be written back.
    """

    def __init__(self, engine: Any, *, changes: bool) -> None:
        self._zero = engine.optimizer
        self._changes = changes
        self._inside: int | None = None

    def bring(self, group: int | None) -> None:
        """Brings the tensors of a sub-group into memory, in place of those of another; None is in memory always."""
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

    def __enter__(self) -> Swapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()
