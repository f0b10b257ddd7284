"""The global gradient norm at every ZeRO stage."""

from __future__ import annotations

from typing import Any


def keep_gradient_norm(engine: Any) -> None:
    """Lets `engine.get_global_grad_norm()` answer at stage 0 in fp32 too, where DeepSpeed clips and forgets the norm."""
    if engine.zero_optimization_stage() != 0 or hasattr(engine.optimizer, "_global_grad_norm"):
        return
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        limit = engine.gradient_clipping()
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), limit, mpu=engine.mpu)

    engine.clip_fp32_gradients = clip
