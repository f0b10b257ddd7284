"""The small run computed with plain torch, which the engine must match."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from small_run import config

from onediff.data.cursor import Cursor
from onediff.data.loader import read_batches
from onediff.model.build import build_processor
from onediff.model.onediff import OneDiffModel
from onediff.runs.folder import RunFolder
from onediff.training.data import phase_stream
from onediff.training.optimizer import freeze, lr_multiplier, parameter_groups

STEPS = 10


def bare_losses(data: Path, run: Path, steps: int = STEPS) -> Iterator[tuple[str, list[float], list[float]]]:
    """Losses and gradient norms of each phase with plain torch: no DeepSpeed, one process, the whole batch at once."""
    settings = config(data, steps)
    processor, _ = build_processor(settings.model, settings.data, RunFolder(run).tokenizer)
    torch.manual_seed(settings.training.seed)
    model = OneDiffModel(settings.model)
    for name, phase in settings.phases.items():
        freeze(model, phase)
        groups = parameter_groups(model, phase, settings.optimizer)
        optimizer = torch.optim.AdamW(groups, betas=settings.optimizer.betas, eps=settings.optimizer.eps)
        stream = phase_stream(settings.data, phase, processor)
        batches = read_batches(stream, phase.global_batch, Cursor.start(range(phase.global_batch)), 0, 2, 1.0)
        losses, norms = [], []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_multiplier(settings.optimizer, step, steps)
            loss = model(next(batches)[0]).mean()
            optimizer.zero_grad()
            loss.backward()
            trained = [p for group in groups for p in group["params"]]
            norms.append(float(torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.clip)))
            optimizer.step()
            losses.append(loss.item())
        yield name, losses, norms
