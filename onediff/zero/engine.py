"""`protocol.ShardedEngine` on DeepSpeed ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from onediff.model.lean import lean_imports
from onediff.parallel.topology import Topology
from onediff.zero import state
from onediff.zero.gradient_norm import keep_gradient_norm
from onediff.zero.lean import deepspeed
from onediff.zero.nvme import keep_gradients
from onediff.zero.parameters import drop_node_copies
from onediff.zero.protocol import ParameterShard
from onediff.zero.release import release
from onediff.zero.swapped import Swapped


class ZeroEngine:
    """`ShardedEngine` on DeepSpeed. The protocol documents the methods."""

    def __init__(self, engine: Any, context_size: int = 1) -> None:
        self.deepspeed = engine
        self.context_size = context_size

    @classmethod
    def start(
        cls,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: dict[str, Any],
        topology: Topology,
        swaps: bool = False,
    ) -> ZeroEngine:
        """Shards a model and its optimizer. `swaps` means that optimizer states are in files. Collective."""
        from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

        if type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS:
            ZERO_SUPPORTED_OPTIMIZERS.append(type(optimizer))  # a subclass of torch's own, so no warning is needed
        with lean_imports():  # ZeRO-3 marks a function for torch's compiler in every layer
            engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings, mpu=topology.mpu, dist_init_required=False
            )
        drop_node_copies(engine.module.parameters())  # the weights may still be loaded from a checkpoint
        keep_gradient_norm(engine)
        if swaps:
            keep_gradients(engine.optimizer)
        return cls(engine, topology.cp_size)

    @property
    def module(self) -> Any:
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    @property
    def stage(self) -> int:
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def data_group(self) -> dist.ProcessGroup:
        return self.deepspeed.data_parallel_group

    @property
    def tensor_rank(self) -> int:
        return self.deepspeed.mpu.get_tensor_model_parallel_rank() if self.deepspeed.mpu is not None else 0

    @property
    def tensor_size(self) -> int:
        return self.deepspeed.mpu.get_tensor_model_parallel_world_size() if self.deepspeed.mpu is not None else 1

    def __call__(self, *inputs: Any) -> Any:
        return self.deepspeed(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        self.deepspeed.backward(loss)

    def step(self) -> None:
        self.deepspeed.step()

    def gradient_norm(self) -> torch.Tensor | float | None:
        return self.deepspeed.get_global_grad_norm()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.deepspeed.optimizer.param_groups

    def close(self) -> None:
        release(self.deepspeed)

    def shards(self) -> Iterator[ParameterShard]:
        return state.shards(self.deepspeed)

    def swap_in(self, *, changes: bool) -> Swapped:
        return Swapped(self.deepspeed, changes=changes)

    def moments(self, shard: ParameterShard) -> dict[str, torch.Tensor]:
        return state.moments(self.deepspeed, shard)

    def create_moments(self, shards: list[ParameterShard]) -> None:
        state.create_moments(self.deepspeed, shards)

    def steps_of(self, shard: ParameterShard) -> int | None:
        return state.steps_of(self.deepspeed, shard)

    def set_steps(self, owner: torch.Tensor, steps: int) -> None:
        state.set_steps(self.deepspeed, owner, steps)

    def publish(self, shard: ParameterShard) -> None:
        state.publish(self.deepspeed, shard)

    def publish_all(self) -> None:
        state.publish_weights(self.deepspeed)

    def continue_after(self, step: int) -> None:
        self.deepspeed.global_steps = step

    @property
    def optimizer_groups(self) -> list[dict[str, Any]]:
        optimizer = state.optimizer_of(self.deepspeed)
        return [] if optimizer is None else optimizer.param_groups
