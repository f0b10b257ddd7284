"""The delta module compared with two plain implementations, at 336 px: peak memory and time of a training step.

  python benchmarks/delta_attention.py --json delta.json

All three compute the same function with the same weights, forward and backward:
  ours      keys and values projected once per image and read in place, multiplied values recomputed in the backward pass;
  copied    keys and values gathered for each pair, which get their roles there, then torch's fused attention;
  eager     the features of both images concatenated, attention as matrix products and a softmax, as in BERT.
Peak memory counts all tensors made in a step, without weights, their gradients and the tower's output. Steps alternate;
times are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from live import LiveBytes
from machine import machine
from torch import Tensor

from onediff.config.model import DeltaConfig
from onediff.model.delta import DeltaModule, place_embedding, spread

IMAGE_TOKENS, TOWER_WIDTH, LEVELS = 576, 1024, 3


def plain(module: DeltaModule, levels: list[Tensor], pairs: int, fused: bool) -> Tensor:
    """`copied` if `fused`, else `eager`."""
    normed = [norm(level) for norm, level in zip(module.level_norms, levels, strict=True)]
    places = place_embedding(torch.tensor(spread(IMAGE_TOKENS)), module.tokens.shape[1], module.heads)
    x = module.tokens.expand(pairs, -1, -1)
    index = torch.arange(2 * pairs).view(-1, 2)
    layers: list[Any] = list(module.layers)
    for layer, level in zip(layers, module.level_of_layer, strict=True):
        own, cross = layer.self_attention, layer.cross_attention
        x = attended(own, x, own.query(x), own.key(x), own.value(x), module.heads, fused)
        if fused:
            k = (cross.key(normed[level]) + places)[index] + layer.role_keys[:, None]
            v = cross.value(normed[level])[index] * layer.role_values[:, None]
        else:
            both = torch.cat([normed[level][0::2], normed[level][1::2]], 1).unflatten(1, (2, -1))
            k = cross.key(both) + places + layer.role_keys[:, None]
            v = cross.value(both) * layer.role_values[:, None]
        x = attended(cross, x, cross.query(x) + module.places, k.flatten(1, 2), v.flatten(1, 2), module.heads, fused)
        x = layer.norm(x + layer.contract(F.gelu(layer.expand(x))))
    return x


def attended(attention: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, fused: bool) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if fused:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return attention.norm(x + attention.output(mixed.transpose(1, 2).flatten(2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    module = DeltaModule(DeltaConfig(), TOWER_WIDTH, LEVELS)
    levels = [torch.randn(2 * args.pairs, IMAGE_TOKENS, TOWER_WIDTH, requires_grad=True) for _ in range(LEVELS)]
    for tensor in (*levels, *module.parameters()):
        tensor.grad = torch.zeros_like(tensor)  # exists in training too, and is the same for all
    ways = {
        "ours": lambda: module(levels, args.pairs),
        "copied": lambda: plain(module, levels, args.pairs, fused=True),
        "eager": lambda: plain(module, levels, args.pairs, fused=False),
    }
    with torch.no_grad():
        results = {name: way() for name, way in ways.items()}
    for name, result in results.items():
        torch.testing.assert_close(result, results["ours"], rtol=1e-4, atol=1e-4, msg=f"{name} computes something else")
    peaks = {}
    for name, way in ways.items():
        with LiveBytes() as live:
            way().sum().backward()
        peaks[name] = live.peak
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way().sum().backward()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{args.pairs} pairs at 336 px, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, fp32"
    )
    for name in ways:
        print(
            f"{name:8} {peaks[name] / 1e6:8.0f} MB ({peaks['ours'] / peaks[name]:4.0%} of it are ours)   "
            f"{medians[name]:6.3f} s (ours takes {medians['ours'] / medians[name]:4.2f} of it)"
        )
    if args.json:
        found = {"machine": machine("torch"), "pairs": args.pairs, "peak_bytes": peaks, "seconds": seconds}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
