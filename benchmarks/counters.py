"""Counts on the CPU what a training step requires of a device, so that regressions show without a GPU.

  python benchmarks/counters.py --json counters.json

Operators, bytes copied, waits of the host for the device, and the largest tensor of a forward and backward pass of both
phases, on a model of the paper's shape and a hundredth of its width. A wait is an operator whose result the host reads
(`item`, `nonzero`, a mask as an index), which on a GPU blocks the host until all earlier work is done.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "is_nonzero",
    "equal",
    "repeat_interleave",
)
COPIES = ("_to_copy", "copy_", "clone")
PASSIVE = ("view", "detach", "alias", "expand", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "permute")


class Counted(TorchDispatchMode):
    """Counts the operators in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copied = 0
        self.largest = 0
        """elements of the largest result"""
        self.largest_of = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts it."""
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        if name not in PASSIVE:
            self.operators[name] += 1
        by_mask = name in ("index", "index_put_") and any(
            torch.is_tensor(leaf) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        if name in WAITS or by_mask:
            self.waits[name] += 1
        made = [leaf for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        if name in COPIES:
            self.copied += sum(leaf.numel() * leaf.element_size() for leaf in made)
        for leaf in made if name not in PASSIVE else ():
            if leaf.numel() > self.largest:
                self.largest, self.largest_of = leaf.numel(), f"{name} {tuple(leaf.shape)}"
        return result


def counted(phase: str) -> dict[str, Any]:
    """Counts of one forward and backward pass of a phase."""
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
    from gpu_parts.models import TINY, build, model_config, pair_rows

    from onediff.data.rows import collate
    from onediff.model.onediff import PARTS

    size = next(size for size in TINY if size.phase == phase)
    config = model_config(size, dry=True)
    model = build(config, torch.device("cpu"), torch.float32).train()
    for part in PARTS:
        getattr(model, part).requires_grad_(part in size.trains)
    batch = collate(pair_rows(config, 8, phase))
    model(batch).sum().backward()  # do not count tensors that are made once and kept
    with Counted() as counts:
        model(batch).sum().backward()
    return {
        "phase": phase,
        "operators": counts.operators.total(),
        "most": counts.operators.most_common(6),
        "waits": dict(counts.waits),
        "copied_mib": counts.copied / 2**20,
        "largest_tensor": counts.largest_of,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Both phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    from machine import machine

    report = {
        "machine": machine("torch", "transformers"),
        "phases": [counted("one"), counted("two")],
    }
    for phase in report["phases"]:
        print(", ".join(f"{key} {value}" for key, value in phase.items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
