"""DeepSpeed, imported without torch's compiler, SciPy and MLflow; see `onediff.model.lean`."""

from __future__ import annotations

from importlib import import_module

from onediff.model.lean import lean_imports

with lean_imports():
    import deepspeed as deepspeed

    import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # every engine imports it, and importing compiles it
