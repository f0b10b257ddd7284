"""Rolls a phase back to an earlier checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from onediff.parallel.agreement import raise_on_all_ranks
from onediff.training.checkpoint.folder import LATEST, checkpoints, point, step_of
from onediff.training.checkpoint.load import load_checkpoint
from onediff.training.checkpoint.manifest import FILE, read_manifest
from onediff.zero.protocol import ShardedEngine


def go_back(engine: ShardedEngine, path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Makes `path` its phase's latest checkpoint, with `changes` in its `extra`, and loads it into `engine`. Collective.

    Returns the changed `extra`. A run that is killed from here on resumes with the changes. Later checkpoints are removed.
    Raises UserError on every rank if the checkpoint is damaged.
    """
    with raise_on_all_ranks():
        if dist.get_rank() == 0:
            # In this order, a run that is killed in between meets the same spike again and rolls back again.
            point(path.parent, LATEST, step_of(path))
            manifest = read_manifest(path)
            manifest.extra |= changes
            manifest.write(path)
            for later in checkpoints(path.parent):
                if step_of(later) > step_of(path):
                    (later / FILE).unlink()
                    shutil.rmtree(later, ignore_errors=True)
    return load_checkpoint(engine, path)
