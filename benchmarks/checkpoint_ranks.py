"""What the table of contents of a checkpoint costs, from 8 to 4,096 ranks: of a 7B model under ZeRO-3, without its weights.

    python benchmarks/checkpoint_ranks.py

Every rank's table is made as that rank would make it. Then rank 0 takes in what all of them send, merges it and writes the
manifest, and a rank of as many reads the manifest and finds its own ranges of every parameter, weights and both moments.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path

import numpy as np

from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.training.checkpoint.manifest import CheckpointManifest, StoredParameter, read_manifest
from onediff.training.checkpoint.save import merged
from onediff.training.checkpoint.table import RankTable

WIDTH, INNER, VOCABULARY, LAYERS = 4096, 11008, 32000, 32
STATES = ("weight", "exp_avg", "exp_avg_sq")


def shapes() -> dict[str, tuple[int, ...]]:
    """Llama 7B's parameters."""
    found: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, WIDTH), "head": (VOCABULARY, WIDTH), "norm": (WIDTH,)}
    for layer in range(LAYERS):
        found |= {f"{layer}.{name}": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{layer}.gate": (INNER, WIDTH), f"{layer}.up": (INNER, WIDTH), f"{layer}.down": (WIDTH, INNER)}
        found |= {f"{layer}.norm{number}": (WIDTH,) for number in (1, 2)}
    return found


def held(shape: tuple[int, ...], rank: int, world: int) -> BlockRange:
    """What a rank holds of a parameter."""
    block = Block.whole(shape)
    share = -(-block.real // world)
    offset = min(rank * share, block.real)
    return BlockRange(block, offset, min(share, block.real - offset))


def table(model: dict[str, tuple[int, ...]], rank: int, world: int) -> RankTable:
    """The table that a rank sends."""
    ranges = (held(shape, rank, world) for shape in model.values())
    rows = [(one.block.start, one.block.size, one.offset, one.length, 100, 0) for one in ranges]
    return RankTable(np.array(rows, dtype=np.int64), [STATES])


def measured(model: dict[str, tuple[int, ...]], world: int, folder: Path) -> tuple[int, float, int, float]:
    """Bytes that a rank sends, seconds of rank 0, bytes of the manifest, seconds of a rank that reads it."""
    sent = [pickle.dumps(table(model, rank, world)) for rank in range(world)]
    files = {f"rank-{rank:05d}-of-{world:05d}.safetensors": {"bytes": 1, "sha256": "0" * 64} for rank in range(world)}
    began = time.process_time()
    blank = {name: StoredParameter(shape, "bfloat16", 0, [], None, []) for name, shape in model.items()}
    found = merged(blank, list(files), [pickle.loads(one) for one in sent])
    CheckpointManifest("x", 100, world, 1, 3, {}, [], found, files=files).write(folder)
    saved = time.process_time() - began
    began = time.process_time()
    manifest = read_manifest(folder)
    names = list(manifest.files)
    for name, shape in model.items():
        own = held(shape, world // 2, world)
        for _ in STATES:
            near = manifest.parameters[name].near(own, names)
            assert sum(o.rows * o.columns for _, one in near for o in overlaps(one, own)) == own.length
    return len(sent[0]), saved, (folder / "manifest.json").stat().st_size, time.process_time() - began


def main() -> None:
    model = shapes()
    print("| ranks | a rank sends | rank 0 merges and writes | manifest | a rank reads and finds |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for world in (8, 64, 512, 4096):
        with tempfile.TemporaryDirectory() as folder:
            sent, saved, size, found = measured(model, world, Path(folder))
        print(f"| {world:,} | {sent / 1e3:.0f} kB | {saved:.2f} s | {size / 1e3:,.0f} kB | {found:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
