"""A GPU that computes on the CPU, and counts what would make the host wait for it.

Tensors of the host and of the device are told apart by where they come from: made without a device, or for "cpu", they
are the host's; `DEVICE` is the device. DeepSpeed is told that the device works asynchronously, so it takes the paths that
it takes on a GPU. Everything that runs inside is seen: this project, DeepSpeed, Megatron, transformers, torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)
READS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
    "equal",
    "repeat_interleave",
)
"""Operators whose result, or its shape, the host reads."""
COPIES_TO_HOST = ("tolist", "numpy", "cpu")
MAKERS = {
    *(
        "tensor",
        "as_tensor",
        "from_numpy",
        "zeros",
        "ones",
        "empty",
        "full",
        "arange",
        "linspace",
        "eye",
        "rand",
        "randn",
    ),
    *("randint", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "empty_strided"),
}
OBJECTS = ("barrier", "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list")
"""Collectives whose result the host reads, or that it waits for."""


class Waits(TorchFunctionMode):
    """Counts, while it is entered, what the host would wait for: `found[what, where]`, `where` being the function that
    asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()
        self.reads = _Reads(self)

    def count(self, what: str) -> None:
        """One wait, of whoever called."""
        self.found[what, _asker()] += 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.__name__
        if func is Tensor.backward:  # its hooks must be seen too
            gradient = kwargs.pop("gradient", None)
            with self:
                return torch.autograd.backward(args[0], gradient, **kwargs)
        if func == Tensor.device.__get__:
            return torch.device("cpu") if is_host(args[0]) else DEVICE
        if name in ("pin_memory", "is_pinned"):
            return pinned(args[0]) if name == "pin_memory" else getattr(args[0], "_pinned", False)
        if name in COPIES_TO_HOST and not is_host(args[0]):
            self.count("read")
        if name in ("to", "cuda", "copy_", "type", "set_data"):
            return self._copy(func, name, args, kwargs)
        pin = kwargs.pop("pin_memory", False)
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor):
            for leaf in tree_leaves(made):
                if isinstance(leaf, Tensor) and _all_host(args, kwargs):
                    leaf._on_host = True
            return made
        if name in MAKERS or name.startswith("new_") or name.endswith("_like"):
            return self._made(name, made, args, kwargs, pin)
        if name == "cpu" or _all_host(args, kwargs):
            made = made.clone() if name == "cpu" and made is args[0] else made
            made._on_host = True
        return made

    def _made(self, name, made, args, kwargs, pin):
        wanted = kwargs.get("device")
        of_host = _is_host_place(wanted) if wanted is not None or name in MAKERS else is_host(args[0])
        if name == "as_tensor" and args and isinstance(args[0], Tensor) and wanted is None:
            of_host = is_host(args[0])
        if of_host:
            if made is not args[0] if args else True:
                made._on_host = True
            return pinned(made) if pin else made
        if name in ("tensor", "as_tensor", "new_tensor") and _from_host(args):
            self.count("copy from unpinned memory")
        return made

    def _copy(self, func, name, args, kwargs):
        source, target = args[0], _place(args[1:], kwargs)
        if name in ("copy_", "set_data"):
            source, to_host = args[1], is_host(args[0])
        else:
            to_host = is_host(source) if target is None else _is_host_place(target)
        made = func(*args, **kwargs)
        if isinstance(source, Tensor):
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if is_host(source) and not to_host:
                if not getattr(source, "_pinned", False):
                    self.count("copy from unpinned memory")
                elif blocks:
                    self.count("copy that is waited for")
            elif to_host and not is_host(source) and (blocks or not getattr(args[0], "_pinned", False)):
                self.count("read")
        if name in ("copy_", "set_data"):
            return made
        if made is source and to_host != is_host(source):
            with torch._C.DisableTorchFunction():
                made = made.detach().clone()
        if to_host:
            made._on_host = True
        return made


class _Reads(TorchDispatchMode):
    """What only operators show: the functions above them are C++."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[-1]
        by_mask = name in ("index", "index_put_") and any(
            isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        # With one number to put there, torch fills by the mask on the device.
        by_mask = by_mask and (name == "index" or args[2].dim() > 0)
        if (name in READS or by_mask) and not _all_host(args, kwargs or {}):
            self.waits.count("read")
        return function(*args, **(kwargs or {}))


def is_host(tensor: Tensor) -> bool:
    """Whether a tensor would lie in the host's memory."""
    return getattr(tensor, "_on_host", False)


def pinned(tensor: Tensor) -> Tensor:
    """The tensor as it would lie in pinned memory."""
    with torch._C.DisableTorchFunction():
        made = tensor.detach().clone()
    made._on_host = made._pinned = True
    return made


def _all_host(args, kwargs) -> bool:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(is_host(tensor) for tensor in tensors)


def _from_host(args) -> bool:
    return not any(isinstance(leaf, Tensor) and not is_host(leaf) for leaf in tree_leaves(args))


def _place(args, kwargs):
    for found in (kwargs.get("device"), kwargs.get("other"), *args):
        if isinstance(found, torch.device | str):
            return found
        if isinstance(found, Tensor):
            return torch.device("cpu") if is_host(found) else DEVICE
    return None


def _is_host_place(place) -> bool:
    return place is None or torch.device(place) != DEVICE


def _asker() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and "/torch/" not in path and "unittest" not in path:
            part = next(
                (part for part in ("deepspeed", "megatron", "transformers", "onediff") if f"/{part}/" in path), ""
            )
            return f"{part or 'test'}: {frame.f_code.co_name}"
        frame = frame.f_back
    return "nobody"


class PretendGPU(CPU_Accelerator):
    """DeepSpeed's accelerator of an asynchronous device; `waits` is who counts, where somebody does."""

    waits: Waits | None = None

    def is_synchronized_device(self):
        return False

    def device_name(self, device_index=None):
        return str(DEVICE)

    def current_device_name(self):
        return str(DEVICE)

    def current_device(self):
        return DEVICE.index

    def synchronize(self, device_index=None):
        _count("synchronize")

    def pin_memory(self, tensor, make_copy=True, match_shape=True):
        return pinned(tensor)

    @property
    def Stream(self):
        return PretendStream

    @property
    def Event(self):
        return PretendStream

    def stream(self, stream):
        return nullcontext()

    def current_stream(self, device_index=None):
        return PretendStream()

    default_stream = current_stream


class PretendStream:
    """A stream, or an event."""

    def __init__(self, *args, **kwargs) -> None:
        self.cuda_stream = 0

    def synchronize(self):
        _count("synchronize a stream")

    def record(self, *args):
        pass

    def record_event(self, *args):
        return self

    def wait_stream(self, other):
        pass

    wait_event = wait = wait_stream

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0


def _count(what: str) -> None:
    if PretendGPU.waits is not None:
        PretendGPU.waits.count(what)


def install() -> None:
    """Makes it DeepSpeed's device in this process; call it before anything of DeepSpeed is used."""
    set_accelerator(PretendGPU())
    Tensor.record_stream = lambda tensor, stream: None


@contextmanager
def counted():
    """Counts the waits of what runs inside: `Waits`."""
    waits = Waits()

    def counting(function):
        def call(*args, **kwargs):
            waits.count("collective of the host")
            return function(*args, **kwargs)

        return call

    PretendGPU.waits = waits
    with mock.patch.multiple(dist, **{name: counting(getattr(dist, name)) for name in OBJECTS}), waits, waits.reads:
        yield waits
    PretendGPU.waits = None
