"""(r) The training itself: `onediff train` on shards, packed rows under ZeRO-3, every GPU of the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_parts.measure import Record, Setting
from gpu_parts.models import SIZES, TINY, Size
from gpu_parts.training import figures, onediff, shards, write_config

STEPS, SKIP = 16, 6
"""Steps of each run, and the number of warm-up steps among them, which choose kernels and fill buffers."""


@dataclass(frozen=True)
class Case:
    """One run."""

    size: Size
    gpus: int = 1
    tensor: int = 1
    deterministic: bool = False


def cases(dry: bool, gpus: int) -> list[Case]:
    """The most telling first."""
    if dry:
        return [Case(TINY[1])]
    billion, wide = SIZES[2], SIZES[4]
    found = [Case(billion), Case(wide)]
    if gpus > 1:
        found += [Case(billion, 2), Case(billion, 2, 2)]
    if gpus > 2:
        found.append(Case(billion, gpus))
    return [*found, Case(billion, deterministic=True)]


def trained(setting: Setting) -> Iterator[Record]:
    """(r)"""
    gpus = torch.cuda.device_count() if setting.device.type == "cuda" else 1
    wanted = cases(setting.dry, gpus)
    with tempfile.TemporaryDirectory() as folder:
        data = shards(Path(folder) / "data", wanted[0].size, setting.dry, 64 if setting.dry else 600)
        for number, case in enumerate(wanted):
            record = {"model": case.size.name, "gpus": case.gpus, "T": case.tensor, "deterministic": case.deterministic}
            run = Path(folder) / f"run-{number}"
            yield from setting.attempt(record, lambda case=case, run=run: _run(setting, data, case, run))


def _run(setting: Setting, data: Path, case: Case, run: Path) -> Record:
    steps, skip = (4, 2) if setting.dry else (STEPS, SKIP)
    file = write_config(
        run.with_suffix(".yaml"),
        data,
        case.size,
        setting.dry,
        rows=2 if setting.dry else case.size.pairs // 2,
        steps=steps,
        training={"activation_checkpointing": "selective", "deterministic": case.deterministic},
        ranks=case.gpus,
        tensor=case.tensor,
    )
    onediff(["train", str(file), "--run", str(run), "--processes", str(case.gpus)], max(60.0, setting.left + 20))
    return figures(run, skip)
