"""The DeepSpeed engine of one phase: ZeRO over the data-parallel ranks, bf16 or fp32, the loss of the global batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from onediff.config.run import RunConfig
from onediff.config.training import OptimizerConfig, PhaseConfig
from onediff.data.batch import Batch
from onediff.model.onediff import OneDiffModel
from onediff.parallel.agreement import raise_on_all_ranks
from onediff.parallel.topology import Topology
from onediff.training.activations import checkpoint_layers
from onediff.training.metrics import Moment, OnTheWay
from onediff.training.objectives import build_objective
from onediff.training.optimizer import build_muon, build_optimizer, freeze, lr_multiplier, parameter_groups
from onediff.training.stop import NONE_ASKED
from onediff.zero.engine import ZeroEngine
from onediff.zero.nvme import check_room
from onediff.zero.parameters import full_size
from onediff.zero.process import pinned
from onediff.zero.settings import deepspeed_config


def _trained(model: OneDiffModel) -> int:
    return sum(full_size(p) for p in model.parameters() if p.requires_grad)


class Agreed(NamedTuple):
    """The values that decisions depend on: maxima over all ranks, so every rank has exactly the same ones."""

    loss: float
    """Infinite if any rank's is not finite."""
    grad_norm: float
    """Infinite if the gradients are not finite; the step then changed nothing."""
    asked: list[float]
    """1 for each signal that asked any rank to stop."""


@dataclass
class StepUnderWay:
    """A step that was submitted to the device and may still be running."""

    step: int
    """Number of steps before it."""
    rates: dict[str, float]
    """`lr`, the highest, and `lr/<part>` for each trained part."""
    sources: list[str]
    """The sources in the phase's mix."""
    numbers: OnTheWay
    began: Moment
    """When the device was free to start it."""
    ended: Moment

    def metrics(self) -> tuple[dict[str, float], Agreed]:
        """The step's metrics, and the values that all ranks agree on. Waits for the step to finish.

        Metrics are `loss` (mean over the targets of the global batch), `grad_norm` (before clipping; not finite if the step
        was skipped for that), `rates`, the global batch's `targets`, `tokens`, `samples` and `skipped` samples, the share of
        its positions that are not padding (`real_token_share`), and `loss/<source>` for each source of the mix in it.
        """
        numbers = self.numbers.read()
        (targets, tokens, skipped, samples, positions), numbers = numbers[:5], numbers[5:]
        (loss, grad_norm), numbers = numbers[:2], numbers[2:]
        agreed, sums = Agreed(loss, grad_norm, numbers[: len(NONE_ASKED)]), numbers[len(NONE_ASKED) :]
        loss_sums, counts = sums[: len(self.sources)], sums[len(self.sources) :]
        loss = sum(loss_sums) / max(1.0, targets)
        measured = {"loss": loss, "grad_norm": agreed.grad_norm, **self.rates}
        measured |= {"targets": targets, "tokens": tokens, "skipped": skipped, "samples": samples}
        measured["real_token_share"] = tokens / positions
        for source, loss_sum, count in zip(self.sources, loss_sums, counts, strict=True):
            if count:
                measured[f"loss/{source}"] = loss_sum / count
        return measured, agreed


class Engine:
    """One model with its optimizer, spread over the ranks.

    The loss of a step is the sum over all target tokens of the global batch divided by their number, regardless of the
    number of ranks and micro-batches.
    """

    def __init__(
        self, model: OneDiffModel, config: RunConfig, phase: PhaseConfig, topology: Topology, swap: Path | None = None
    ) -> None:
        """`swap` is the folder for optimizer states on NVMe, if the configuration puts them there.

        Raises UserError on every rank if a part or kernel is not available or the states do not fit.
        """
        freeze(model, phase)
        self.objective = build_objective(phase, config.training)
        self.sources = list(phase.mix)
        for part in (model.vision.model, model.language):
            checkpoint_layers(part, config.checkpointing_of(phase))
        self.optimizer_config: OptimizerConfig = config.optimizer
        groups = parameter_groups(model, phase, config.optimizer)
        if phase.matrices == "muon":
            optimizer, self.optimizer_kernel = build_muon(groups, config.optimizer, topology.data_group)
        else:
            offloaded = config.parallel.offload_optimizer != "none"
            optimizer, self.optimizer_kernel = build_optimizer(groups, config.optimizer, offloaded)
        if swap is not None:
            with raise_on_all_ranks():
                check_room(swap, groups, topology.copies, topology.ranks.local_world)
        self.peaks = [group["peak_lr"] for group in groups]
        self.peak_of = {group["part"]: group["peak_lr"] for group in groups}
        settings = deepspeed_config(config, phase, topology.dp_size, _trained(model), swap)
        self.sharded = ZeroEngine.start(model, optimizer, settings, topology, swaps=swap is not None)
        self.dp_size, self.cp_size = topology.dp_size, topology.cp_size
        self.device = self.sharded.device

    @property
    def model(self) -> OneDiffModel:
        """The model inside; under ZeRO-3 its parameters are gathered as it runs."""
        return self.sharded.module

    def step(
        self, micro_batches: list[Batch], step: int, steps: int, asked: tuple[float, ...] = NONE_ASKED
    ) -> StepUnderWay:
        """Takes one optimizer step over this rank's micro-batches of a global batch; does not wait for the device.

        If gradients are not finite, the step changes nothing: no weights, moments or counts. `asked` holds this rank's
        stop requests. Collective.
        """
        began = Moment(self.device)
        for group, peak in zip(self.sharded.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_multiplier(self.optimizer_config, step, steps)
        self.model.train()
        own = [float(sum(counts)) for counts in zip(*map(_counts, micro_batches), strict=True)]
        totals, wanted = self._on_device(own), self._on_device(list(asked))
        dist.all_reduce(totals, group=self.sharded.data_group)
        totals /= self.cp_size  # the ranks of a context group have the same rows
        # DeepSpeed averages gradients over ranks and accumulation steps; undo both, divide by the global count.
        scale = (torch.full_like(totals[0], self.dp_size * len(micro_batches)) / totals[0].clamp(min=1)).float()
        # Row 0: loss summed by source; row 1: targets by source.
        sums = torch.zeros(2, len(self.sources), dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            batch = batch.to(self.device)
            losses = self.sharded(batch, self.objective)
            self.sharded.backward(losses.sum() * scale)
            sums[0].index_add_(0, batch.target_sources, losses.detach().double())
            sums[1].index_add_(0, batch.target_sources, torch.ones_like(losses, dtype=torch.float64))
            self.sharded.step()
        dist.all_reduce(sums, group=self.sharded.data_group)
        sums /= self.cp_size
        norm = self.sharded.gradient_norm()
        if not torch.is_tensor(norm):
            norm = torch.full_like(totals[0], norm or 0.0)
        loss = sums[0].sum() / totals[0].clamp(min=1)
        agreed = torch.cat(
            [torch.stack([loss, norm.to(totals).view(())]).nan_to_num(nan=math.inf, posinf=math.inf), wanted]
        )
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        numbers = torch.cat([totals, agreed, sums.flatten()])
        scheduled = lr_multiplier(self.optimizer_config, step, steps)
        rates = {"lr": max(self.peaks) * scheduled}
        rates |= {f"lr/{part}": peak * scheduled for part, peak in self.peak_of.items()}
        return StepUnderWay(step, rates, self.sources, OnTheWay(numbers), began, Moment(self.device))

    def close(self) -> None:
        """Drops the model and all states; they are freed once nothing else refers to them."""
        self.sharded.close()

    def _on_device(self, numbers: list[float]) -> torch.Tensor:
        """Numbers of the host as fp64 on the device, copied without waiting."""
        return pinned(torch.tensor(numbers, dtype=torch.float64)).to(self.device, non_blocking=True)


def _counts(batch: Batch) -> tuple[int, int, int, int, int]:
    """Targets, tokens, skipped samples, samples, and positions including padding."""
    info = batch.info
    samples = info.get("samples", len(batch.token_ids))
    return batch.targets, info["tokens"], len(info["skipped"]), samples, batch.token_ids.numel()
