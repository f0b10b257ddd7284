"""Imitates a CUDA graph without CUDA: records operators with their memory, and replays them on the same memory."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Notes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.overwritten = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.is_write:
                self.overwritten.append((value, value.clone()))
        made = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, made))
        return made


class Recorded:
    """Replays the recorded operators when called. Python code between them does not run, and its numbers do not change."""

    def __init__(self, calls):
        self.calls = calls
        self.repeats = 0

    @property
    def operators(self):
        return [function for function, *_ in self.calls]

    def __call__(self):
        self.repeats += 1
        for function, args, kwargs, made in self.calls:
            again = function(*args, **kwargs)
            # A view, or what was changed in place, is the noted memory already.
            if all(one.alias_info is None for one in function._schema.returns):
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def recorded(step):
    """Records `step`, and like recording a CUDA graph, leaves all memory unchanged."""
    with _Notes() as notes:
        step()
    for value, before in reversed(notes.overwritten):
        value.copy_(before)
    return Recorded(notes.calls)
