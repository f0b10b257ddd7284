"""A rank alone on the stage: process groups without other ranks, and tensors that have a shape but no memory.

What other ranks would send counts as what this one has. A number that nobody computed is 1, a flag is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from onediff.model import delta, norms
from onediff.model.lean import call_without_compiler
from onediff.ranks import Ranks
from onediff.rehearsal.collectives import Recorder
from onediff.rehearsal.held import Alive, makes_memory
from onediff.zero import alone, process

Result = TypeVar("Result")


@contextmanager
def without_other_ranks(ranks: Ranks) -> Iterator[None]:
    """torch.distributed and DeepSpeed in a world of which only this rank is there, by torch's `fake` backend."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(ranks.variables())
    process.prepare(gpu=False)
    dist.init_process_group("fake", store=FakeStore(), rank=ranks.rank, world_size=ranks.world)
    process.join(gpu=False)
    with (
        patch.object(dist, "all_gather_object", _gathered),
        patch.object(dist, "broadcast_object_list", _kept),
        alone.trusts_itself(),
    ):
        yield


def _gathered(values: list[Any], value: Any, group: Any = None) -> None:
    values[:] = [value] * len(values)


def _kept(values: list[Any], *_: Any, **__: Any) -> None:
    """The first rank's values are this one's."""


def with_numbers(function: Callable[..., Result]) -> Callable[..., Result]:
    """The same function on real tensors, for what looks at numbers."""

    def computed(*arguments: Any) -> Result:
        with _disable_current_modes():
            return function(*arguments)

    return computed


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """Tensors made inside are shapes: everything is computed but numbers."""
    with (
        patch.object(norms, "is_rms_norm", with_numbers(norms.is_rms_norm)),
        patch.object(delta, "cell_places", with_numbers(delta.cell_places)),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        Assumed(),
    ):
        yield fake


class Assumed(TorchDispatchMode):
    """Gives the host a number where it reads one from a tensor that has none.

    Fake tensors of one element remember a constant, and compute with it; this gives one to those that were computed from
    larger tensors. So the norm of a gradient is 1, `isfinite` of it is true, and no step is skipped.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            return _assumed(args[0].dtype)
        made = function(*args, **(kwargs or {}))
        if isinstance(made, FakeTensor) and not made.dim() and made.constant is None and makes_memory(function):
            with _disable_current_modes():
                made.constant = torch.tensor(_assumed(made.dtype), dtype=made.dtype)
        return made


call_without_compiler(
    *(mode.__torch_dispatch__ for mode in (FakeTensorMode, Assumed, Alive, Recorder)),  # each runs at every operator
)


def _assumed(dtype: torch.dtype) -> float | int | bool:
    return 1.0 if dtype.is_floating_point else False if dtype is torch.bool else 0
