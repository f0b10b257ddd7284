"""Places a Hugging Face part of the model on this rank, whole or sharded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from onediff.model.architecture import described
from onediff.model.families import check_divisible
from onediff.parallel.materialize import InMemory, WeightSource, place
from onediff.parallel.pretrained import Pretrained
from onediff.parallel.pretrained_files import PretrainedFiles
from onediff.parallel.topology import Topology
from onediff.ranks import Ranks
from onediff.zero.parameters import is_sharded

Adapt = Callable[[Any], Callable[[WeightSource], WeightSource]]
"""Modifies a model on the meta device; returns a function that adapts a source of the plain model's weights to it."""


@dataclass(frozen=True)
class Placement:
    """How to place the parts of the model."""

    topology: Topology
    zero_config: dict[str, Any] | None = None
    """DeepSpeed's configuration under ZeRO-3, else None."""
    filled_later: bool = False
    """Only allocate this rank's part, because the weights will come from a checkpoint."""
    later: Collection[str] = ()
    """Parts, `vision` or `language`, that are filled later although others are not."""
    device: str = "cpu"
    dtype: torch.dtype | None = torch.float32
    """Dtype of the parameters, None for the model's own; under ZeRO-3 with bf16, DeepSpeed expects bf16 and keeps separate
    fp32 master weights."""

    def of(self, part: str) -> Placement:
        """The placement of one part of the model."""
        return replace(self, filled_later=True) if part in self.later else self

    def build(
        self,
        auto: Any,
        architecture: Any,
        name: str | None,
        *,
        revision: str | None = None,
        attention: str | None = None,
        cut: bool = False,
        adapt: Adapt | None = None,
    ) -> Any:
        """Builds a model of the class that `auto` (`AutoModelForCausalLM`, `AutoModel`) chooses for `architecture`.

        Weights come from `name`, a folder or hub id, else they are random by torch's seed and the same for every topology.
        `cut=True` splits layers over the tensor group; `adapt` modifies them first. Collective under ZeRO-3. Before reading
        any weights, raises UserError for an architecture that cannot be split, and what `adapt` raises.
        """
        tp_size = self.topology.tp_size if cut else 1
        if tp_size > 1:
            check_divisible(architecture, tp_size)
        dtype = self.dtype or architecture.dtype
        if name is None and tp_size == 1 and not self.filled_later and adapt is None:
            return described(auto, architecture, attn_implementation=attention, dtype=dtype)
        with torch.device("meta"):
            model = described(auto, architecture, attn_implementation=attention, dtype=dtype)
            plain = model if adapt is None else described(auto, architecture, dtype=dtype)
        adapted = None if adapt is None else adapt(model)
        source: WeightSource | None = None
        if not self.filled_later and name is not None:
            source = Pretrained(PretrainedFiles(name, revision), plain)
        elif not self.filled_later:
            source = InMemory(described(auto, architecture, dtype=dtype).state_dict())
        if source is not None and adapted is not None:
            source = adapted(source)
        return place(model, source, self.topology, zero_config=self.zero_config, device=self.device, cut=cut)

    def settle(self, model: nn.Module) -> None:
        """Moves parameters that `build` did not create to the same device and dtype, as ZeRO-3 requires."""
        for parameter in model.parameters():
            if not is_sharded(parameter):
                parameter.data = parameter.data.to(self.device, self.dtype)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.device)


ALONE = Placement(Topology(Ranks(), 1, None), dtype=None)
"""The whole model on the CPU, in its own dtype."""
