"""Packed and padded rows: time of a training step per real token, and how full the rows are.

  python benchmarks/packing.py --json packing.json

Uses the same samples, in the proportions of the paper's second phase (a third pairs, LLaVA's single images, some texts):
once with one sample per row, padded to the longest in the micro-batch, and once packed. To suit a CPU, lengths are those at
336 px divided by `--scale`; the tower is small, as it is relative to a 7B language model. Micro-batches have the same number
of positions in both cases. Steps alternate; times are medians. The script fails if the summed losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import machine

from onediff.config.model import ModelConfig
from onediff.data.batch import Batch
from onediff.data.packing import Packer
from onediff.data.prompts import DELTA, IMAGE
from onediff.data.rows import TokenRow, collate, collate_packed
from onediff.model.onediff import OneDiffModel

ROW = 4096
SIDE, PATCH = 112, 14  # 64 tokens per image, a ninth of 576


def model_config(image_tokens: int, delta_tokens: int) -> ModelConfig:
    assert image_tokens == (SIDE // PATCH) ** 2
    return ModelConfig.model_validate(
        {
            "vision": {
                "config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": 64,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "intermediate_size": 128,
                    "image_size": SIDE,
                    "patch_size": PATCH,
                },
                "levels": [1, 2, 3],
                "image": {"size": SIDE},
            },
            "delta": {"tokens": delta_tokens, "layers": 3, "width": 64, "heads": 2, "intermediate": 128},
            "language": {
                "tokenizer": {"vocabulary": 1000},
                "config": {
                    "model_type": "llama",
                    "hidden_size": 512,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 8,
                    "intermediate_size": 1376,
                    "vocab_size": 1000,
                    "max_position_embeddings": ROW,
                },
            },
        }
    )


def drawn_rows(count: int, scale: int, seed: int) -> list[TokenRow]:
    """Samples as rows: placeholders for images and deltas, and random text, half of it as targets."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    made = []
    for number in range(count):
        (images,) = rng.choices([2, 1, 0], [335, 625, 40])
        text = min(1400, rng.lognormvariate(0, 0.6) * {2: 90, 1: 280, 0: 600}[images])
        words = max(4, round(text / scale))
        seats = [IMAGE] * (576 // scale * images) + [DELTA] * (64 // scale * (images == 2))
        ids = torch.tensor([1, *seats, *(rng.randrange(2, 1000) for _ in range(words))])
        targets = torch.zeros(len(ids), dtype=torch.bool)
        targets[-(words // 2) :] = True
        shape = (images, 3, SIDE, SIDE)
        made.append(
            TokenRow(
                ids,
                targets,
                torch.randint(0, 256, shape, dtype=torch.uint8),
                (576 // scale,) * images,
                images == 2,
                0,
                (str(number),),
            )
        )
    return made


def packed_rows(rows: list[TokenRow], tokens: int) -> list[list[TokenRow]]:
    """The rows that the packer makes from all these samples."""
    stream: Any = SimpleNamespace(tokens=lambda lane, index: len(rows[index].token_ids))
    packer, made = Packer(stream, tokens), []
    cursor: tuple[int, ...] = (0,)
    while cursor[-1] < len(rows) - 8:
        chosen, cursor = packer.chosen(0, cursor, [])
        made.append([rows[index] for index in chosen])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=9)
    parser.add_argument(
        "--micro-batch", type=int, default=16, help="padded rows of a micro-batch (default: 16, as LLaVA trains)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokens = ROW // args.scale
    packed = packed_rows(drawn_rows(160, args.scale, 0), tokens)[:16]
    samples = [sample for row in packed for sample in row]
    random.Random(1).shuffle(samples)
    real = sum(len(sample.token_ids) for sample in samples)
    size = args.micro_batch
    padded = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]
    positions = sum(batch.token_ids.numel() for batch in padded) // len(padded)
    rows = max(1, positions // tokens)
    batches = {
        "padded": padded,
        "packed": [collate_packed(packed[start : start + rows], tokens) for start in range(0, len(packed), rows)],
    }
    torch.manual_seed(0)
    model = OneDiffModel(model_config(576 // args.scale, 64 // args.scale)).train()

    def step(micro_batches: list[Batch]) -> float:
        total = 0.0
        for batch in micro_batches:
            loss = model(batch).sum()
            loss.backward()
            total += float(loss.detach())
        model.zero_grad()
        return total

    steps: dict[str, Callable[[], float]] = {name: lambda made=made: step(made) for name, made in batches.items()}
    losses = {name: run() for name, run in steps.items()}
    assert abs(losses["packed"] - losses["padded"]) < 1e-4 * abs(losses["padded"]), f"the losses differ: {losses}"
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    full = {name: real / sum(batch.token_ids.numel() for batch in made) for name, made in batches.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole = packed_rows(drawn_rows(4000, 1, 2), ROW)
    share = sum(len(sample.token_ids) for row in whole for sample in row) / (ROW * len(whole))
    print(f"{len(samples)} samples, {real} real tokens, {os.cpu_count()} cores, torch {torch.__version__}, fp32")
    for name in steps:
        print(f"{name}  {full[name]:6.1%} real  {medians[name]:6.2f} s  {real / medians[name]:8.0f} real tokens/s")
    print(f"packed is {medians['padded'] / medians['packed']:.2f} times as fast per real token")
    print(f"at 336 px, rows of {ROW}: {share:.2%} real, {sum(map(len, whole)) / len(whole):.2f} samples per row")
    if args.json:
        figures = {
            "machine": machine("torch"),
            "real_tokens": real,
            "real_share": full,
            "seconds": seconds,
            "full_size_real_share": share,
        }
        args.json.write_text(json.dumps({"machine": machine("torch"), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
