"""Imports transformers without modules that OneDiff does not use; with `onediff.zero.lean`, halves a rank's start-up time.

    from onediff.model.lean import transformers

Skips torch's compiler, which transformers and DeepSpeed import only to mark functions for it; SciPy, for detection losses;
the tensors of transformers' own parallelism; and the experiment tracker of DeepSpeed's autotuner. Code that needs the
compiler later imports it then. Costs 3.3 s of CPU time including torch, instead of 9.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.utils.checkpoint
import transformers.utils.import_utils

COMPILER = "torch._dynamo"
UNUSED = ("is_scipy_available", "is_torch_distributed_available")
"""Functions with which transformers decides whether to import SciPy and its own parallelism."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within this context, MLflow appears not installed, and marking functions for torch's compiler does not import it."""
    stand_ins: dict[str, ModuleType | None] = {"mlflow": None}  # makes `import mlflow` raise ImportError
    if COMPILER not in sys.modules:
        stand_ins[COMPILER] = _compiler()
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    marks = torch.compile, torch.compiler.disable, torch.compiler.allow_in_graph, torch._disable_dynamo
    sys.modules.update(stand_ins)  # type: ignore[arg-type]
    torch.compile = _at_first_call(torch.compile)
    torch.compiler.disable = torch.compiler.allow_in_graph = torch._disable_dynamo = _mark  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable, torch.compiler.allow_in_graph, torch._disable_dynamo = marks
        for name in stand_ins:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


def _mark(function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """A decorator without effect, in place of the compiler's."""
    return _mark if function is None else function


def _compiler() -> ModuleType:
    """A stand-in for the package of torch's compiler: its submodules can be imported, and its decorators do nothing."""
    module = ModuleType(COMPILER)
    module.__path__ = [f"{torch.__path__[0]}/_dynamo"]
    vars(module).update(dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), _mark))
    return module


def _at_first_call(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """A `torch.compile` that compiles on the first call."""

    def later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda marked: later(marked, **options)
        compiled = cache(lambda: compile_now(function, **options))
        return wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    return later


def call_without_compiler(*marked: Any) -> None:
    """Keeps torch functions decorated with `torch._disable_dynamo` from importing the compiler on their first call."""
    for function in marked:
        # `torch._disable_dynamo` checks this attribute first. In a version of torch that does not, this has no effect.
        function.__wrapped__.__dynamo_disable = function.__wrapped__


_optimizer = torch.optim.Optimizer
call_without_compiler(_optimizer.add_param_group, _optimizer.load_state_dict, _optimizer.state_dict)
call_without_compiler(_optimizer.zero_grad, torch.utils.checkpoint.checkpoint)
for asked in UNUSED:
    for module in (transformers.utils, transformers.utils.import_utils):
        setattr(module, asked, lambda: False)

with lean_imports():
    import transformers as transformers

    for later in (
        "transformers.modeling_utils",
        "transformers.masking_utils",
        "transformers.integrations.sdpa_attention",
    ):
        import_module(later)
