"""Low-rank adapters for the language model (LoRA, arXiv 2106.09685), built with `peft`.

`peft` wraps a layer `q_proj`: its own weight becomes `q_proj.base_layer.weight` and stays frozen, while
`q_proj.lora_A.default.weight`, `[rank, in]`, and `q_proj.lora_B.default.weight`, `[out, rank]`, train.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onediff.config.model import LoraConfig
from onediff.config.section import nearest
from onediff.errors import UserError
from onediff.parallel.block import BlockRange
from onediff.parallel.materialize import InMemory, WeightSource

_BASE = ".base_layer."
_HALVES = (".lora_A.default.", ".lora_B.default.")


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return any(half in name for half in _HALVES)


def plain_name(name: str) -> str:
    """The name of a parameter in the model without adapters."""
    return name.replace(_BASE, ".")


def halves_of(name: str) -> tuple[str, str]:
    """The two adapter parameters of the weight `name` (as named in the model without adapters)."""
    layer = name.removesuffix("weight").removesuffix(".")
    return f"{layer}{_HALVES[0]}weight", f"{layer}{_HALVES[1]}weight"


def _for_peft(config: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_adapters(language: Any, config: LoraConfig) -> type[WithAdapters]:
    """Adds an adapter to every layer in `config.targets` and freezes everything else.

    The new parameters are on the model's device, which may be meta. Returns a class that extends a source of plain weights
    to a source of all weights. Raises UserError if no layer has a target's name.
    """
    # PEFT uses this package without importing it.
    import torch.distributed.tensor
    from peft import inject_adapter_in_model

    layers = {
        name.rpartition(".")[2] for name, module in language.named_modules() if isinstance(module, torch.nn.Linear)
    }
    layers -= {"lm_head"}
    for target in config.targets:
        if target not in layers:
            raise UserError(f"lora.targets: the language model has no layer {target!r}{nearest(target, layers)}")
    dtype = language.dtype
    inject_adapter_in_model(_for_peft(config), language, low_cpu_mem_usage=language.device.type == "meta")
    for name, parameter in language.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.to(dtype)
    return WithAdapters


def initial(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Initial values of an adapter, the same on every rank.

    `lora_B` is zero, so the model is unchanged at first; `lora_A` is random, by torch's seed and the parameter's name.
    """
    values = torch.zeros(shape)
    if _HALVES[0] in name:
        seed = (torch.initial_seed() + zlib.crc32(name.encode())) % 2**63
        torch.nn.init.kaiming_uniform_(values, math.sqrt(5), generator=torch.Generator().manual_seed(seed))
    return values


class WithAdapters:
    """Extends a source of plain weights with newly initialised adapters."""

    def __init__(self, base: WeightSource) -> None:
        self.base = base

    def fill(self, name: str, piece: BlockRange, target: torch.Tensor) -> None:
        """Copies the range `piece` of the parameter `name` into the flat tensor `target`."""
        if is_adapter(name):
            InMemory({name: initial(name, piece.block.shape)}).fill(name, piece, target)
        else:
            self.base.fill(plain_name(name), piece, target)


def update(a: torch.Tensor, b: torch.Tensor, config: LoraConfig) -> torch.Tensor:
    """An adapter's contribution to its layer's weight, `[out, in]` fp32, from `[rank, in]` and `[out, rank]`."""
    return config.alpha / config.rank * (b.float() @ a.float())


def save_adapter(folder: Path, config: LoraConfig, base: str | None, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes the adapter in `peft`'s format, for `PeftModel.from_pretrained(model, folder)`.

    `weights` are named as in the language model; `base` is the name of the base model.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    about = _for_peft(config)
    about.base_model_name_or_path = base
    about.inference_mode = True
    about.save_pretrained(folder)
    named = {"base_model.model." + name.replace(".default.", "."): weight for name, weight in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
