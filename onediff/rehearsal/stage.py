"""Process groups without other ranks, and tensors with a shape but no memory.

Data from other ranks is assumed to equal this rank's own. Numbers that were never computed are 1, and flags are not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
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
    """Initialises torch.distributed and DeepSpeed with only this rank of a world, using torch's `fake` backend."""
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
    """Keeps this rank's values instead of the first rank's."""


def with_numbers(function: Callable[..., Result]) -> Callable[..., Result]:
    """Wraps a function to run on real tensors, for code that reads values."""

    def computed(*arguments: Any) -> Result:
        with _disable_current_modes():
            return function(*arguments)

    return computed


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """In this context, new tensors have a shape but no values."""
    with (
        patch.object(norms, "is_rms_norm", with_numbers(norms.is_rms_norm)),
        patch.object(delta, "cell_places", with_numbers(delta.cell_places)),
        Shapes(allow_non_fake_inputs=True) as fake,
        Assumed(),
    ):
        yield fake


class Shapes(FakeTensorMode):
    """A faster `FakeTensorMode`, which sends plain operators directly to their shape kernels.

    For every operator, torch checks for constants, devices, special rules and cached results, which would take most of a
    rehearsal. A plain operator on tensors without constants needs none of these checks.
    """

    def dispatch(
        self, func: Any, types: Any, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        if kwargs or not is_plain(func) or not all(map(self._is_plain, args)):
            return super().dispatch(func, types, args, kwargs or {})
        with in_kernel_invocation_manager(self):
            made = func(*args)
        return made if isinstance(made, FakeTensor) else FakeTensor(self, made, CPU)

    def _is_plain(self, argument: Any) -> bool:
        """Whether an argument is a fake tensor without a constant, a number, or a list of numbers."""
        if isinstance(argument, FakeTensor):
            return argument.fake_mode is self and argument.fake_device == CPU and argument.constant is None
        if isinstance(argument, (list, tuple)):
            return all(isinstance(one, int) for one in argument)
        return not isinstance(argument, torch.Tensor)


CPU = torch.device("cpu")
SHAPE_KERNELS = ("Meta", "CompositeExplicitAutograd")
"""torch's dispatch keys of kernels that compute shapes."""
VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
VIEWS |= {torch.ops.aten.slice.Tensor, torch.ops.aten.select.int}
"""Operators whose special rules are only for symbolic sizes, which do not occur here."""


@cache
def is_plain(operator: Any) -> bool:
    """Whether an operator computes one tensor from tensors on their device, without a special rule for fake tensors."""
    schema, name = operator._schema, operator.name()
    return (
        operator.namespace == "aten"
        and [str(returned.type) for returned in schema.returns] == ["Tensor"]
        and any(str(argument.type) == "Tensor" for argument in schema.arguments)
        and all(argument.name != "device" for argument in schema.arguments)
        and torch.Tag.inplace_view not in operator.tags
        and torch.Tag.dynamic_output_shape not in operator.tags
        and torch.Tag.data_dependent_output not in operator.tags
        and any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in SHAPE_KERNELS)
        and (operator in VIEWS or not any(applies(operator) for applies, _ in op_implementations_checks))
    )


class Assumed(TorchDispatchMode):
    """Supplies a number when the host reads one from a tensor without values.

    A fake tensor with one element can hold a constant and compute with it. This mode gives a constant to tensors computed
    from larger ones, so a gradient norm is 1, its `isfinite` is true, and no step is skipped.
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
    *(mode.__torch_dispatch__ for mode in (FakeTensorMode, Assumed, Alive, Recorder)),  # these run for every operator
)


def _assumed(dtype: torch.dtype) -> float | int | bool:
    return 1.0 if dtype.is_floating_point else False if dtype is torch.bool else 0
