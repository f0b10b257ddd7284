"""DeepSpeed's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from onediff.config.parallel import SUB_GROUP, SWAPPED_TENSORS
from onediff.config.run import RunConfig
from onediff.config.section import nearest
from onediff.config.training import PhaseConfig
from onediff.errors import UserError
from onediff.plan.setup import BUCKET


def deepspeed_config(
    config: RunConfig, phase: PhaseConfig, dp_size: int, trained: int = BUCKET, swap: Path | None = None
) -> dict[str, Any]:
    """The configuration of DeepSpeed's engine.

    `trained` is the number of trained elements on this rank; `swap` is the folder for optimizer states on NVMe. Raises
    UserError for unknown keys and invalid values in `parallel.deepspeed`.
    """
    # By default, DeepSpeed allocates 500 million elements, even if a phase trains only one million.
    zero: dict[str, Any] = {"stage": config.parallel.zero_stage, "reduce_bucket_size": max(1, min(BUCKET, trained))}
    for part, device in (
        ("offload_optimizer", config.parallel.offload_optimizer),
        ("offload_param", config.parallel.offload_parameters),
    ):
        if device != "none":
            zero[part] = {"device": device, "pin_memory": torch.cuda.is_available()}
    if config.parallel.offload_optimizer == "nvme":
        zero["offload_optimizer"] |= {"nvme_path": swap and str(swap), "buffer_count": SWAPPED_TENSORS}
        zero["sub_group_size"] = SUB_GROUP
    zero |= config.parallel.deepspeed
    check_zero(config.parallel.deepspeed)
    bf16 = config.training.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": phase.micro_batch,
        "gradient_accumulation_steps": phase.global_batch // (phase.micro_batch * dp_size),
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": bf16},
        # Gradients of several micro-batches are accumulated in fp32, except at stage 0, which does not support it.
        "data_types": {"grad_accum_dtype": "fp32" if bf16 and config.parallel.zero_stage else None},
        "communication_data_type": "fp32" if bf16 and config.parallel.reduce_in == "fp32" else None,
        "zero_optimization": zero,
        # DeepSpeed uses torch's AdamW, so no C++ optimizer is compiled on the user's machine.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # DeepSpeed's timer synchronises four times per step; `Moment` never does.
        "timers": {"throughput": {"enabled": False}},
    }


def check_zero(keys: dict[str, Any], where: str = "parallel.deepspeed") -> None:
    """Raises UserError, with the key `where`, for keys that DeepSpeed does not know, or values that it does not take."""
    if not keys:
        return
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {field.alias or name for name, field in fields.items()} | set(fields)
    for key in keys:
        if key not in known:
            raise UserError(f"{where}: DeepSpeed's zero_optimization has no {key!r}{nearest(key, known)}")
    try:
        DeepSpeedZeroConfig(**keys)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
