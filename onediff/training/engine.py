"""The DeepSpeed engine of one phase: ZeRO over the data-parallel ranks, bf16 or fp32, the loss of the global batch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from onediff.config.tree import RunConfig
from onediff.data.batch import Batch
from onediff.model.onediff import OneDiffModel
from onediff.parallel.gradient_norm import keep_gradient_norm
from onediff.parallel.lean import deepspeed
from onediff.parallel.topology import Topology
from onediff.plan.memory import BUCKET
from onediff.training.activations import checkpoint_layers
from onediff.training.config import OptimizerConfig, PhaseConfig
from onediff.training.parts import freeze, parameter_groups
from onediff.training.schedule import rate


class LossIsNotANumber(RuntimeError):
    """The loss became NaN or infinite: nothing that follows would be worth computing."""


def deepspeed_config(config: RunConfig, phase: PhaseConfig, dp_size: int, trained: int = BUCKET) -> dict[str, Any]:
    """What DeepSpeed is told; everything else about a step is decided here. `trained`: elements of this rank that train."""
    # By default DeepSpeed takes memory for 500 million elements, even where a phase trains one million.
    zero: dict[str, Any] = {"stage": config.parallel.zero_stage, "reduce_bucket_size": max(1, min(BUCKET, trained))}
    for part, device in (
        ("offload_optimizer", config.parallel.offload_optimizer),
        ("offload_param", config.parallel.offload_parameters),
    ):
        if device != "none":
            zero[part] = {"device": device, "pin_memory": torch.cuda.is_available()}
    bf16 = config.training.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": phase.micro_batch,
        "gradient_accumulation_steps": phase.global_batch // (phase.micro_batch * dp_size),
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": bf16},
        # Gradients of several micro-batches are added up in fp32; stage 0 cannot.
        "data_types": {"grad_accum_dtype": "fp32" if bf16 and config.parallel.zero_stage else None},
        "zero_optimization": zero,
        # torch's AdamW is handed in, so that no C++ optimizer is compiled on the user's machine.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _trained(model: OneDiffModel) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)


class Engine:
    """One model with its optimizer, spread over the ranks.

    The loss of a step is the sum over all target tokens of the global batch divided by their number, whatever the number
    of ranks and micro-batches they were computed in.
    """

    def __init__(self, model: OneDiffModel, config: RunConfig, phase: PhaseConfig, topology: Topology) -> None:
        freeze(model, phase)
        self.sources = list(phase.mix)
        for part in (model.vision.model, model.language):
            checkpoint_layers(part, config.training.activation_checkpointing)
        self.optimizer_config: OptimizerConfig = config.optimizer
        groups = parameter_groups(model, phase, config.optimizer)
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps)
        self.peaks = [group["peak_lr"] for group in groups]
        self.peak_of = {group["part"]: group["peak_lr"] for group in groups}
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, phase, topology.dp_size, _trained(model)),
            mpu=topology.mpu,
            dist_init_required=False,
        )
        keep_gradient_norm(self.engine)
        self.dp_size = topology.dp_size
        self.device = self.engine.device

    @property
    def model(self) -> OneDiffModel:
        """The model inside; under ZeRO-3 its parameters are gathered as it runs."""
        return self.engine.module

    def step(self, micro_batches: list[Batch], step: int, steps: int) -> dict[str, float]:
        """One optimizer step over this rank's micro-batches of one global batch.

        Returns `loss` (mean over the targets of the global batch), `grad_norm` (before clipping), `lr`, the global
        batch's `targets`, `tokens` and `skipped` samples, and `loss/<source>` for each source of the mix in it.
        Collective. Raises LossIsNotANumber on every rank alike.
        """
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * rate(self.optimizer_config, step, steps)
        self.engine.train()
        totals = torch.tensor(
            [(batch.targets, batch.info["tokens"], len(batch.info["skipped"])) for batch in micro_batches],
            device=self.device,
        ).sum(0)
        dist.all_reduce(totals, group=self.engine.data_parallel_group)
        targets, tokens, skipped = totals.tolist()
        targets = max(1, targets)
        # Row 0: loss summed by source; row 1: targets by source.
        sums = torch.zeros(2, len(self.sources), dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            batch = batch.to(self.device)
            losses = self.engine(batch)
            # DeepSpeed averages gradients over ranks and accumulation steps; undo both, divide by the global count.
            scale = self.dp_size * len(micro_batches) / targets
            self.engine.backward(losses.sum() * scale)
            sums[0].index_add_(0, batch.target_sources, losses.detach().double())
            sums[1].index_add_(0, batch.target_sources, torch.ones_like(losses, dtype=torch.float64))
            self.engine.step()
        dist.all_reduce(sums, group=self.engine.data_parallel_group)
        loss = float(sums[0].sum()) / targets
        if not math.isfinite(loss):
            raise LossIsNotANumber(f"the loss is {loss} at step {step + 1}")
        measured = {
            "loss": loss,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "lr": max(group["lr"] for group in self._groups()),
            "targets": float(targets),
            "tokens": float(tokens),
            "skipped": float(skipped),
        }
        scheduled = rate(self.optimizer_config, step, steps)
        measured |= {f"lr/{part}": peak * scheduled for part, peak in self.peak_of.items()}
        for source, loss_sum, count in zip(self.sources, *sums.tolist(), strict=True):
            if count:
                measured[f"loss/{source}"] = loss_sum / count
        return measured

    def _groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups
