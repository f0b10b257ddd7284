"""Detects NVIDIA's Apex by its contents, because an unrelated package on PyPI has the same name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

NORMS = ("normalization/fused_layer_norm.py", "fused_layer_norm_cuda")
OPTIMIZER = ("optimizers/fused_adam.py", "amp_C")


@dataclass(frozen=True)
class Apex:
    """Which parts of Apex can be used here."""

    norms: bool
    """`apex.normalization` with its compiled kernels."""
    optimizer: bool
    """`apex.optimizers` with its compiled kernels."""
    missing: str
    """Why a part cannot be used, and what to do; empty if both can."""


def find_apex() -> Apex:
    """Looks for Apex without importing it, because importing an unrelated package could have any effect."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Apex(False, False, "NVIDIA's Apex is not installed")
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    source = "build NVIDIA's from https://github.com/NVIDIA/apex"
    if not any((folder / file).is_file() for folder in folders for file, _ in (NORMS, OPTIMIZER)):
        where = folders[0] if folders else spec.origin
        return Apex(
            False, False, f"the package `apex` in {where} is not NVIDIA's (PyPI's is a Pyramid toolkit); {source}"
        )
    found = [
        any((folder / file).is_file() for folder in folders) and importlib.util.find_spec(extension) is not None
        for file, extension in (NORMS, OPTIMIZER)
    ]
    lacking = [extension for (_, extension), there in zip((NORMS, OPTIMIZER), found, strict=True) if not there]
    missing = f"Apex is installed without its compiled {' and '.join(lacking)}; {source} with its CUDA extensions"
    return Apex(found[0], found[1], missing if lacking else "")
