"""Tower features of a pair's images, and log-probabilities of its caption and of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onediff.data.planes import Planes
from onediff.data.rows import TokenRow, collate
from onediff.model.onediff import OneDiffModel


@torch.no_grad()
def image_features(model: OneDiffModel, rows: list[TokenRow], device: torch.device) -> NDArray[np.float32]:
    """`[images, width]`: the mean of each image's tokens at the tower's output level."""
    batch = collate(rows).to(device)
    output, _ = model.vision(batch.images, batch.planes)
    return _means(output, batch.planes)


@torch.no_grad()
def second_look(
    model: OneDiffModel, rows: list[TokenRow], answers: Sequence[Sequence[int]], device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Mean token log-probabilities `[rows]` of answers to prompt rows of pairs, and features of the images `[rows, 2,
    width]`.

    Costs one pass of the whole model over prompts and answers, about as much as reading the prompts again.
    """
    batch = collate(answered(rows, answers)).to(device)
    seen: list[Tensor] = []
    hook = model.vision.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    try:
        losses = model(batch)
    finally:
        hook.remove()
    of_rows = losses.float().split([len(answer) for answer in answers])
    means = np.array([-float(one.mean()) if len(one) else 0.0 for one in of_rows])
    return means, _means(seen[0], batch.planes).reshape(len(rows), 2, -1)


@torch.no_grad()
def log_probability(
    model: OneDiffModel, rows: list[TokenRow], answers: Sequence[Sequence[int]], device: torch.device
) -> NDArray[np.float64]:
    """`[rows]`: of each prompt row of a pair, the log-probability that it is answered by one of `answers`.

    Costs one pass of the whole model per answer.
    """
    found = []
    for answer in answers:
        losses = model(collate(answered(rows, [answer] * len(rows))).to(device))
        found.append(-losses.double().view(len(rows), -1).sum(1))
    return torch.logsumexp(torch.stack(found), 0).cpu().numpy()


def answered(rows: list[TokenRow], answers: Sequence[Sequence[int]]) -> list[TokenRow]:
    """Prompt rows with their answers as targets."""
    return [
        replace(
            row,
            token_ids=torch.cat([row.token_ids, torch.tensor(list(answer), dtype=row.token_ids.dtype)]),
            is_target=torch.cat([row.is_target, torch.ones(len(answer), dtype=torch.bool)]),
        )
        for row, answer in zip(rows, answers, strict=True)
    ]


def _means(output: Tensor, planes: Planes | None) -> NDArray[np.float32]:
    if planes is None:
        return output.float().mean(1).cpu().numpy()
    tokens = planes.of_images(output).float()
    return torch.stack([one.mean(0) for one in tokens.split(list(planes.lengths))]).cpu().numpy()
