"""(d) Captions per second, compared with Hugging Face's `generate` of a LLaVA with the same parts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch

from gpu_parts.llava import Llava
from gpu_parts.measure import Record, Setting
from gpu_parts.models import SIZES, TINY, Size, build, model_config, pair_rows
from onediff.data.rows import collate

NEW_TOKENS = 48
"""Tokens per caption; none ends earlier, so that all do the same work."""


def captions(setting: Setting) -> Iterator[Record]:
    """(d)"""
    sizes = TINY[:1] if setting.dry else [size for size in SIZES if size.name in ("1B", "7B")]
    ways = {"onediff": False} if setting.dry else {"onediff": False, "onediff, CUDA graphs": True}
    for size in sizes:
        for pairs in (2,) if setting.dry else (1, 16):
            for way, graph in ways.items():
                record = {"model": size.name, "batch": pairs, "way": way}
                yield from setting.attempt(
                    record, lambda size=size, pairs=pairs, graph=graph: _ours(setting, size, pairs, graph)
                )
                gc.collect()
            record = {"model": size.name, "batch": pairs, "way": "LLaVA of Hugging Face"}
            yield from setting.attempt(record, lambda size=size, pairs=pairs: _theirs(setting, size, pairs))
            gc.collect()


def _tokens(setting: Setting) -> int:
    return 4 if setting.dry else NEW_TOKENS


def _ours(setting: Setting, size: Size, pairs: int, graph: bool) -> Record:
    """With `graph`, uses recorded steps and also reports the share of tokens that equal the plain ones."""
    config = model_config(size, setting.dry)
    model = build(config, setting.device, setting.dtype).eval()
    rows = pair_rows(config, pairs, "one", prompt_only=True)
    batch = collate(rows, pad_left=True).to(setting.device)

    def generate(graph: bool) -> torch.Tensor:
        return model.generate(batch, max_new_tokens=_tokens(setting), cuda_graph=graph)

    found = _rate(setting, pairs, lambda: generate(graph))
    if graph:
        found["tokens_as_without_graphs"] = float((generate(True) == generate(False)).float().mean())
    return found


def _theirs(setting: Setting, size: Size, pairs: int) -> Record:
    config = model_config(size, setting.dry)
    peer = Llava(config, setting.device, setting.dtype)
    peer.model.eval()
    batch = peer.collated(pair_rows(config, pairs, "one", prompt_only=True), left=True)
    tokens = _tokens(setting)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return _rate(setting, pairs, lambda: peer.generate(batch, **options))


def _rate(setting: Setting, pairs: int, work: Any) -> Record:
    setting.peak_gib(reset=True)
    taken = min(setting.seconds(work, 4.0, warm_up=1, most=5))
    return {"captions_per_second": pairs / taken, "seconds": taken, "peak_gib": setting.peak_gib()}
