"""The cost of a checkpoint's table of contents for 8 to 4,096 ranks: a 7B model under ZeRO-3, without its weights.

    python benchmarks/checkpoint_ranks.py

Makes every rank's table as that rank would. The rank with the most parameters then merges its share, rank 0 combines the
merged shares and writes the manifest, and a rank of a run with the same number of ranks reads the manifest and finds its
ranges of every parameter, for weights and both moments. Times are the minimum of `REPEATS`.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from onediff.parallel.agreement import shares, split_rows
from onediff.parallel.block import Block, BlockRange, overlaps
from onediff.parallel.safetensors_writer import Written
from onediff.training.checkpoint.files import Files, file_of, stamp
from onediff.training.checkpoint.manifest import CheckpointManifest, StoredParameter, read_manifest
from onediff.training.checkpoint.save import filled
from onediff.training.checkpoint.table import RankTable, merged_row

WIDTH, INNER, VOCABULARY, LAYERS = 4096, 11008, 32000, 32
STATES = ("weight", "exp_avg", "exp_avg_sq")


REPEATS = 5
Value = TypeVar("Value")


class Measured(NamedTuple):
    """Bytes, and seconds of processor time."""

    received: int
    """for the rank that merges the most"""
    merging: float
    finishing: float
    manifest: int
    finding: float


def shapes() -> dict[str, tuple[int, ...]]:
    """Llama 7B's parameters."""
    found: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, WIDTH), "head": (VOCABULARY, WIDTH), "norm": (WIDTH,)}
    for layer in range(LAYERS):
        found |= {f"{layer}.{name}": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{layer}.gate": (INNER, WIDTH), f"{layer}.up": (INNER, WIDTH), f"{layer}.down": (WIDTH, INNER)}
        found |= {f"{layer}.norm{number}": (WIDTH,) for number in (1, 2)}
    return found


def held(shape: tuple[int, ...], rank: int, world: int) -> BlockRange:
    """The range of a parameter that a rank holds."""
    block = Block.whole(shape)
    share = -(-block.real // world)
    offset = min(rank * share, block.real)
    return BlockRange(block, offset, min(share, block.real - offset))


def table(model: dict[str, tuple[int, ...]], rank: int, world: int) -> RankTable:
    """The table that a rank sends."""
    ranges = (held(shape, rank, world) for shape in model.values())
    rows = [(one.block.start, one.block.size, one.offset, one.length, 100, 0) for one in ranges]
    return RankTable(np.array(rows, dtype=np.int64), [STATES])


def least(work: Callable[[], Value]) -> tuple[float, Value]:
    """The minimum processor time in seconds, and the result."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        result = work()
        times.append(time.process_time() - began)
    return min(times), result


def measured(model: dict[str, tuple[int, ...]], world: int, folder: Path) -> Measured:
    files = [file_of(rank, world) for rank in range(world)]
    rows = np.stack([table(model, rank, world).counted() for rank in range(world)], axis=1)  # [parameters, ranks, 7]
    shared = np.split(rows, np.cumsum(shares(len(model), world))[:-1])
    largest = max(shared, key=len)
    merging, _ = least(lambda: [merged_row(one, files) for one in largest])

    def record(share: np.ndarray) -> bytes:
        own = [merged_row(one, files) for one in share]
        return stamp(Written(10**10, "0" * 64)) + (pickle.dumps(([STATES], own)) if own else b"")

    contents = [record(share) for share in shared]
    longest = max(map(len, contents))
    sent = b"".join(len(one).to_bytes(8, "little") + one.ljust(longest, b"\0") for one in contents)

    def finish() -> None:
        told = split_rows(sent, longest + 8)
        records = [pickle.loads(one[40:]) if len(one) > 40 else ([STATES], ()) for one in told]
        states, merged = zip(*records, strict=True)
        blank = {name: StoredParameter(shape, "bfloat16", 0, [], None, []) for name, shape in model.items()}
        found = filled(blank, chain.from_iterable(merged), states)
        stored = Files.of_stamps(b"".join(one[:40] for one in told))
        CheckpointManifest("x", 100, world, 1, 3, {}, [], found, files=stored).write(folder)

    def find() -> None:
        manifest = read_manifest(folder)
        names = list(manifest.files)
        for name, shape in model.items():
            own = held(shape, world // 2, world)
            for _ in STATES:
                near = manifest.parameters[name].near(own, names)
                assert sum(o.rows * o.columns for _, one in near for o in overlaps(one, own)) == own.length

    finishing, _ = least(finish)
    finding, _ = least(find)
    received = max(largest.nbytes, longest)
    return Measured(received, merging, finishing, (folder / "manifest.json").stat().st_size, finding)


def main() -> None:
    model = shapes()
    print("| ranks | a rank receives | merges | rank 0 finishes | manifest | a rank reads and finds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for world in (8, 64, 512, 4096):
        with tempfile.TemporaryDirectory() as folder:
            one = measured(model, world, Path(folder))
        print(
            f"| {world:,} | {one.received / 1e3:.0f} kB | {1e3 * one.merging:.1f} ms | {1e3 * one.finishing:.0f} ms "
            f"| {one.manifest / 1e3:,.0f} kB | {1e3 * one.finding:.0f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
