"""What the order of a very large data set costs a rank: 10⁹ samples in 10⁵ uneven shards, 4,096 ranks.

    python benchmarks/lanes.py [--samples 1e9] [--shards 1e5] [--ranks 4096] [--lanes-per-rank 1] [--json FILE]

Prints the time to set up, the time of a look-up in order and at random positions, the memory that a rank keeps, and by how
many samples the ranks differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import tracemalloc
from pathlib import Path

import numpy as np

from onediff.data.lanes import Lanes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e9)
    parser.add_argument("--shards", type=float, default=1e5)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--lanes-per-rank", type=int, default=1)
    parser.add_argument("--look-ups", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    shards = uneven(int(args.samples), int(args.shards))
    count = args.ranks * args.lanes_per_rank
    mine = range(args.ranks - 1, count, args.ranks)  # the last rank's
    began = time.perf_counter()
    lanes = Lanes(shards, count, seed=0)
    for lane in mine:
        lanes.at(lane, 0)
    ready = time.perf_counter() - began
    in_order = [(mine[i % len(mine)], i // len(mine)) for i in range(args.look_ups)]
    random = np.random.default_rng(0)
    longest = lanes.length(mine[0])
    far = [(mine[i % len(mine)], int(random.integers(0, longest * 3))) for i in range(args.look_ups // 20)]
    seconds = timed(lanes, in_order), timed(lanes, far)
    tracemalloc.start()  # apart from the times, which it falsifies
    lanes = Lanes(shards, count, seed=0)
    timed(lanes, in_order[:: max(1, args.look_ups // 2000)] + far[:200])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    totals = [sum(lanes.length(lane) for lane in range(rank, count, args.ranks)) for rank in range(args.ranks)]
    found = {
        "samples": lanes.samples,
        "shards": len(shards),
        "smallest_shard": int(shards.min()),
        "largest_shard": int(shards.max()),
        "ranks": args.ranks,
        "lanes": count,
        "seconds_to_first_sample": round(ready, 4),
        "microseconds_in_order": round(seconds[0] * 1e6, 1),
        "microseconds_at_random": round(seconds[1] * 1e6, 1),
        "kept_MB": round(kept / 1e6, 2),
        "peak_MB": round(peak / 1e6, 2),
        "ranks_differ_by_samples": max(totals) - min(totals),
        "sum_over_ranks": sum(totals),
        "machine": f"{cpu()}, Python {platform.python_version()}, numpy {np.__version__}",
    }
    for name, value in found.items():
        print(f"{name:<26} {value:,}" if isinstance(value, int) else f"{name:<26} {value}")
    assert sum(totals) == lanes.samples
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def cpu() -> str:
    """The processor's name and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def uneven(samples: int, shards: int) -> np.ndarray:
    """Sizes from one sample to twice the mean; the last makes up the sum."""
    sizes = np.random.default_rng(0).integers(1, 2 * samples // shards, shards)
    sizes[-1] = max(1, sizes[-1] + samples - sizes.sum())
    return sizes


def timed(lanes: Lanes, places: list[tuple[int, int]]) -> float:
    """Seconds a look-up."""
    began = time.perf_counter()
    for lane, position in places:
        lanes.at(lane, position)
    return (time.perf_counter() - began) / len(places)


if __name__ == "__main__":
    main()
