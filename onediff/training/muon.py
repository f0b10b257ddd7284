"""Muon for the matrices of layers, AdamW for everything else, in one torch optimizer."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from onediff.training.adamw import AdamW

MOMENTUM = 0.95
"""Decay of the averaged gradient; the step is taken on Nesterov's combination of it with the gradient."""
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of `a x + (b A + c A²) x` with `A = x xᵀ`, which move all singular values towards 1 (Keller Jordan)."""
RMS = 0.4
"""Root mean square of an update as a share of the learning rate. AdamW's updates have 0.2 to 0.4 (Moonlight, arXiv
2502.16982), so one rate suits both."""


class Muon(AdamW):
    """Steps the groups that have `matrices: True` along their orthogonalised momentum, and the others as AdamW does.

    Matrices must be whole on each rank. The group `ranks`, whose members hold the same gradients, shares the work: each
    orthogonalises every n-th matrix, and the sum of their results is exact. A matrix has half the optimizer state that
    AdamW keeps. A step costs 10 · (2·m²·n + m³) multiply-adds for an m x n matrix, m ≤ n, divided by the ranks.
    """

    def __init__(self, groups: list[dict[str, Any]], ranks: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(groups, **options)
        self.ranks = ranks

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all groups. Collective over the ranks."""
        assert closure is None
        every = self.param_groups
        self.param_groups = [group for group in every if not group.get("matrices")]
        try:
            super().step()
        finally:
            self.param_groups = every
        self._step_matrices([group for group in every if group.get("matrices")])

    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        weights = [[weight for weight in group["params"] if weight.grad is not None] for group in groups]
        matrices = [weight for some in weights for weight in some]
        if not matrices:
            return
        gradients = [weight.grad for weight in matrices if weight.grad is not None]
        updates = iter(self._updates(matrices, gradients, self._averaged(matrices, gradients)))
        for group, some in zip(groups, weights, strict=True):
            if group["weight_decay"]:
                torch._foreach_mul_(some, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(some, list(islice(updates, len(some))), alpha=-group["lr"])

    def _updates(self, matrices: list[Tensor], gradients: list[Tensor], averaged: list[Tensor]) -> list[Tensor]:
        """The update of each matrix for a learning rate of 1."""
        rank, ranks = (dist.get_rank(self.ranks), dist.get_world_size(self.ranks)) if self.ranks else (0, 1)
        flat = torch.zeros(sum(weight.numel() for weight in matrices), device=matrices[0].device)
        updates = [
            part.view_as(weight)
            for part, weight in zip(flat.split([weight.numel() for weight in matrices]), matrices, strict=True)
        ]
        own: dict[tuple[int, int], list[int]] = {}
        for number in range(rank, len(matrices), ranks):
            rows, columns = updates[number].flatten(1).shape
            own.setdefault((min(rows, columns), max(rows, columns)), []).append(number)
        for shape, numbers in own.items():
            made = [_upright(gradients[number].lerp(averaged[number], MOMENTUM)) for number in numbers]
            made_KMN = orthogonalised(torch.stack(made)).mul_(RMS * max(shape) ** 0.5)
            torch._foreach_copy_([_upright(updates[number]) for number in numbers], list(made_KMN))
        if ranks > 1:
            dist.all_reduce(flat, group=self.ranks)
        return updates

    def _averaged(self, matrices: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        for weight in matrices:
            if not self.state[weight]:
                self.state[weight] = {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(weight)}
        averaged = [self.state[weight]["momentum_buffer"] for weight in matrices]
        torch._foreach_lerp_(averaged, gradients, 1 - MOMENTUM)
        torch._foreach_add_([self.state[weight]["step"] for weight in matrices], 1)
        return averaged


def _upright(weight: Tensor) -> Tensor:
    """`[M, N]` with M ≤ N: a matrix, or what a convolution multiplies patches by, transposed if it is taller than wide."""
    matrix = weight.flatten(1)
    return matrix if len(matrix) <= matrix.shape[1] else matrix.T


def orthogonalised(x_KMN: Tensor) -> Tensor:
    """`[K, M, N]` matrices, M ≤ N, with their singular values pulled to between about 0.7 and 1.2."""
    given = x_KMN.dtype
    if x_KMN.is_cuda:
        x_KMN = x_KMN.bfloat16()  # twice as fast on a GPU, but half as fast on a CPU
    x_KMN = x_KMN / (torch.linalg.matrix_norm(x_KMN, keepdim=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        products = x_KMN @ x_KMN.mT
        x_KMN = torch.baddbmm(x_KMN, torch.baddbmm(products, products, products, beta=b, alpha=c), x_KMN, beta=a)
    return x_KMN.to(given)
