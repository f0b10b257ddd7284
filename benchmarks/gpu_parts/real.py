"""(r) The training itself: `onediff train` on shards, packed rows under ZeRO-3, every GPU of the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_parts.measure import Record, Setting
from gpu_parts.models import SIZES, TINY, Size
from gpu_parts.training import figures, onediff, shards, write_config

STEPS, SKIP = 16, 6
"""Steps of each run, and those of them that are not counted: kernels are chosen, and buffers filled."""


def trained(setting: Setting) -> Iterator[Record]:
    """(r)"""
    gpus = torch.cuda.device_count() if setting.device.type == "cuda" else 1
    sizes = TINY[1:] if setting.dry else (SIZES[2], SIZES[4])
    layouts = [(1, 1), *([(2, 1), (2, 2)] if gpus > 1 else []), *([(gpus, 1)] if gpus > 2 else [])]
    with tempfile.TemporaryDirectory() as folder:
        data = shards(Path(folder) / "data", sizes[0], setting.dry, 64 if setting.dry else 600)
        for size in sizes:
            for ranks, tensor in layouts:
                record = {"model": size.name, "gpus": ranks, "T": tensor}
                run = Path(folder) / f"{len(list(Path(folder).iterdir()))}"
                yield from setting.attempt(
                    record,
                    lambda size=size, run=run, ranks=ranks, tensor=tensor: _run(
                        setting, data, size, run, ranks, tensor
                    ),
                )


def _run(setting: Setting, data: Path, size: Size, run: Path, ranks: int, tensor: int) -> Record:
    steps, skip = (4, 2) if setting.dry else (STEPS, SKIP)
    training: dict[str, Any] = {"activation_checkpointing": "selective"}
    more = {"tensor": tensor} if tensor > 1 else {}
    rows = 2 if setting.dry else size.pairs // 2
    file = write_config(
        run.with_suffix(".yaml"),
        data,
        size,
        setting.dry,
        rows=rows,
        steps=steps,
        training=training,
        ranks=ranks,
        **more,
    )
    onediff(["train", str(file), "--run", str(run), "--processes", str(ranks)], max(60.0, setting.left + 20))
    return figures(run, skip)
